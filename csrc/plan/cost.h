/*
 * K2: what a collective costs by each algorithm, from what was measured between the members of a group. All members
 * hold the same numbers and the arithmetic is of integers, so all come to the same estimate, choice and shares.
 *
 * A member sends over all of its links through one uplink, and receives through one downlink: each as fast as the
 * fastest link over it. Beside that, the host of a member copies every byte that it sends or receives, and wakes up for
 * every message.
 */
#ifndef PC_COST_H
#define PC_COST_H

#include "wire/message.h"

enum {
    PC_COST_MEMBERS_MAX = 128, /* beyond, nothing is measured: there are too many pairs */
    PC_SHARE_UNITS = 1 << 16, /* of the whole payload */
    PC_FAST_BYTES_PER_MS = 500000 /* a link as fast as that is not what a member waits for, but its host */
};

/* From member i to member j at [i * n + j], ranks; the diagonal is not read. */
struct pc_cost_request {
    uint32_t n;
    const uint32_t *ring; /* ranks in ring order */
    const uint32_t *rtt_us;
    const uint32_t *bytes_per_ms; /* 0: unknown */
};

struct pc_cost;

/* Bytes of memory that a model of n members takes, aligned to 8. */
size_t pc_cost_bytes(uint32_t n);
/*
 * Lays the model out in memory. NULL: it has nothing to say. Some bandwidth is unknown, or there are too few or too
 * many members; or all links are as short and fast as within a host or a good data centre, where the hosts decide, and
 * what was measured with them (pc_algorithm_choose) is better than an estimate.
 */
const struct pc_cost *pc_cost_init(const struct pc_cost_request *request, void *memory);

/* Estimated time; UINT64_MAX: there is no such algorithm for the collective. */
uint64_t pc_cost_ns(const struct pc_cost *cost, const struct pc_op_shape *shape, uint8_t algorithm);
/*
 * Where the shares of a direct all-reduce begin, by rank, in PC_SHARE_UNITS, and the end of the last: the faster a
 * member, the larger its share. NULL: all alike. So the members are, within a quarter; or the payload is so small that
 * bandwidth does not matter.
 */
const uint32_t *pc_cost_shares(const struct pc_cost *cost, const struct pc_op_shape *shape);

#endif
