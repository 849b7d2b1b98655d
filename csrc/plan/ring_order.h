/*
 * K2: the order of the members of a group in its ring, from what was measured between them. A ring is as fast as its
 * slowest edge, so the largest bottleneck comes first; among rings of the same bottleneck the one with the smallest sum of
 * latencies wins, for a chunk travels along all of them.
 */
#ifndef PC_RING_ORDER_H
#define PC_RING_ORDER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PC_RING_MEMBERS_MAX = 4096,
    PC_RING_EXACT_MAX = 12, /* members up to which the answer is always the best one */
    /*
     * Steps of search for an order that somebody waits for: below 200 ms on one core of 2020, whatever the matrix. A
     * background search may have a thousand times as many.
     */
    PC_RING_BUDGET = 12000000
};

/* Latencies are compared up to here (68 s), so that the sum over any ring fits. */
#define PC_RING_LATENCY_MAX_NS ((uint64_t)1 << 36)

struct pc_ring_request {
    uint32_t n;
    const uint64_t *bandwidth; /* bytes/s from member i to j at [i * n + j]; 0: j must not follow i */
    const uint64_t *latency_ns; /* one way, likewise; NULL: alike everywhere */
    uint64_t budget; /* steps, read beyond PC_RING_EXACT_MAX members */
    const atomic_bool *stop; /* set by another thread: the budget is spent; NULL: nobody does */
};

struct pc_ring_quality {
    uint64_t bottleneck; /* bytes/s of the slowest edge */
    uint64_t latency_ns; /* once round */
    bool widest; /* proved: no ring has a larger bottleneck */
};

/* The larger bottleneck, then the shorter way round. */
static inline bool pc_ring_better(const struct pc_ring_quality *a, const struct pc_ring_quality *b) {
    return a->bottleneck != b->bottleneck ? a->bottleneck > b->bottleneck : a->latency_ns < b->latency_ns;
}

/* Bytes of memory that ordering n members takes, aligned to 8. */
size_t pc_ring_order_bytes(uint32_t n);
/*
 * Writes indices of members in ring order, beginning with 0; where all edges are alike, ascending. Returns false,
 * order untouched, when there is no ring, or none was found within the budget, or there are more members than
 * PC_RING_MEMBERS_MAX. A function of its arguments alone. memory holds pc_ring_order_bytes(n), aligned to 8, and is free
 * afterwards.
 */
bool pc_ring_order(const struct pc_ring_request *request, uint32_t *order, struct pc_ring_quality *quality, void *memory);
/* Bottleneck and latency of order, a permutation; bottleneck 0: it is no ring. widest is left as it is. */
void pc_ring_judge(const struct pc_ring_request *request, const uint32_t *order, struct pc_ring_quality *quality);

#endif
