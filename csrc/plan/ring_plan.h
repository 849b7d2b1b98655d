/*
 * K2: who sends what when in a ring all-reduce. The buffer is cut into n chunks, one for each position; a chunk is cut
 * into segments. There are 2(n-1) rounds. In round t the member at position p sends chunk p - t and receives chunk
 * p - t - 1 (modulo n). Rounds 0 to n-2 are the reduce-scatter: what arrives is a partial sum, to which the receiver
 * adds its own; after round n-2 position p holds the final chunk p + 1. Rounds n-1 to 2n-3 are the all-gather: what
 * arrives is final. So each chunk is summed in one order: position c, c+1, ..., c+n-1.
 */
#ifndef PC_RING_PLAN_H
#define PC_RING_PLAN_H

#include "wire/message.h"

enum { PC_SEGMENT_MAX_BYTES = 256 << 10, PC_SEGMENT_MIN_BYTES = 16 << 10 };

struct pc_ring_plan {
    uint32_t n, rounds;
    uint64_t count_elems;
    uint32_t segment_elems; /* of every segment but a chunk's last */
    uint32_t segments_per_chunk; /* of the longest chunk */
    uint32_t elem_bytes, acc_bytes; /* final and partial element */
};

struct pc_range {
    uint64_t first_elem;
    uint32_t elems;
};

/* pcclInvalidArgument unless n >= 2 and the shape is valid. Proves that chunks and segments cover the buffer once. */
pc_status pc_ring_plan_init(struct pc_ring_plan *plan, const struct pc_op_shape *shape, uint32_t n);

uint32_t pc_ring_plan_sent_chunk(const struct pc_ring_plan *plan, uint32_t position, uint32_t round);
uint32_t pc_ring_plan_received_chunk(const struct pc_ring_plan *plan, uint32_t position, uint32_t round);
uint32_t pc_ring_plan_segment_count(const struct pc_ring_plan *plan, uint32_t chunk);
struct pc_range pc_ring_plan_segment(const struct pc_ring_plan *plan, uint32_t chunk, uint32_t segment);
bool pc_ring_plan_is_partial(const struct pc_ring_plan *plan, uint32_t round);
/* Payload bytes that each link carries one way, at most; the same for all members. */
uint64_t pc_ring_plan_link_bytes(const struct pc_ring_plan *plan);

/*
 * Orders members (ids ascending in, ring order out) so that no two neighbours are a bad pair; pairs holds bad_count
 * pairs of ids. Keeps the order by id when nothing forbids it. Returns false when there is no such ring.
 */
bool pc_ring_order(uint64_t *ids, uint32_t n, const uint64_t (*bad_pairs)[2], uint32_t bad_count);

#endif
