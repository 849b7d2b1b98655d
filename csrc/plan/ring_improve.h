/* K2: a ring with a smaller sum of latencies, from one that there is. */
#ifndef PC_RING_IMPROVE_H
#define PC_RING_IMPROVE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct pc_ring_improve {
    uint32_t n;
    const uint64_t *bandwidth, *latency_ns; /* as in struct pc_ring_request; no NULL */
    uint64_t least; /* bandwidth of the edges that may be used */
    uint64_t budget;
    const atomic_bool *stop; /* likewise */
};

size_t pc_ring_improve_bytes(uint32_t n);
/* order is a ring of edges that may be used, and stays one. It begins with 0 afterwards. */
void pc_ring_improve(const struct pc_ring_improve *request, uint32_t *order, void *memory);

#endif
