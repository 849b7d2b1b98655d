/* The index arithmetic of the ring, derived once in ring_plan.h, and the order of its members. Pure. */
#include "plan/ring_plan.h"

#include "bytes/dtype.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Chunk c starts at floor(count * c / n), computed without overflow. */
static uint64_t chunk_first(const struct pc_ring_plan *plan, uint32_t chunk) {
    const uint64_t whole = plan->count_elems / plan->n, rest = plan->count_elems % plan->n;
    return whole * chunk + rest * chunk / plan->n;
}

static uint64_t chunk_elems(const struct pc_ring_plan *plan, uint32_t chunk) {
    return chunk_first(plan, chunk + 1) - chunk_first(plan, chunk);
}

static uint32_t segments_of(const struct pc_ring_plan *plan, uint64_t elems) {
    return (uint32_t)((elems + plan->segment_elems - 1) / plan->segment_elems);
}

pc_status pc_ring_plan_init(struct pc_ring_plan *plan, const struct pc_op_shape *shape, uint32_t n) {
    memset(plan, 0, sizeof *plan);
    if (n < 2 || !pc_dtype_valid(shape->dtype) || !pc_redop_valid(shape->redop)) return pcclInvalidArgument;
    const pcclDataType_t dtype = (pcclDataType_t)shape->dtype;
    plan->n = n;
    plan->rounds = 2 * (n - 1);
    plan->count_elems = shape->count;
    plan->elem_bytes = (uint32_t)pc_dtype_bytes(dtype);
    plan->acc_bytes = (uint32_t)pc_dtype_bytes(pc_dtype_accumulator(dtype));
    const uint64_t longest = shape->count / n + (shape->count % n != 0);
    if (longest > UINT64_MAX / 8 / n) return pcclInvalidArgument;
    /* Four segments a chunk keep all rounds busy; longer ones only cost cache, shorter ones system calls. */
    uint64_t bytes = longest * plan->acc_bytes / 4;
    if (bytes < PC_SEGMENT_MIN_BYTES) bytes = PC_SEGMENT_MIN_BYTES;
    if (bytes > PC_SEGMENT_MAX_BYTES) bytes = PC_SEGMENT_MAX_BYTES;
    plan->segment_elems = (uint32_t)(bytes / plan->acc_bytes);
    plan->segments_per_chunk = segments_of(plan, longest);
    if (longest / plan->segment_elems > UINT32_MAX / n / 2) return pcclInvalidArgument;
    assert(chunk_first(plan, 0) == 0 && chunk_first(plan, n) == shape->count);
    return pcclSuccess;
}

uint32_t pc_ring_plan_sent_chunk(const struct pc_ring_plan *plan, uint32_t position, uint32_t round) {
    return (position + 2 * plan->n - round) % plan->n;
}

uint32_t pc_ring_plan_received_chunk(const struct pc_ring_plan *plan, uint32_t position, uint32_t round) {
    return (position + 2 * plan->n - round - 1) % plan->n;
}

uint32_t pc_ring_plan_segment_count(const struct pc_ring_plan *plan, uint32_t chunk) {
    return segments_of(plan, chunk_elems(plan, chunk));
}

struct pc_range pc_ring_plan_segment(const struct pc_ring_plan *plan, uint32_t chunk, uint32_t segment) {
    const uint64_t start = (uint64_t)segment * plan->segment_elems, elems = chunk_elems(plan, chunk);
    assert(start < elems);
    const uint64_t left = elems - start;
    return (struct pc_range){
        .first_elem = chunk_first(plan, chunk) + start,
        .elems = left < plan->segment_elems ? (uint32_t)left : plan->segment_elems,
    };
}

bool pc_ring_plan_is_partial(const struct pc_ring_plan *plan, uint32_t round) {
    return round < plan->n - 1;
}

uint64_t pc_ring_plan_link_bytes(const struct pc_ring_plan *plan) {
    if (plan->n == 0) return 0; /* of an operation that never got a plan */
    const uint64_t longest = plan->count_elems / plan->n + (plan->count_elems % plan->n != 0);
    return longest * (plan->n - 1) * (plan->acc_bytes + plan->elem_bytes);
}

/* Ring order ---------------------------------------------------------------------------------------------------- */

static bool is_bad(uint64_t a, uint64_t b, const uint64_t (*bad_pairs)[2], uint32_t bad_count) {
    for (uint32_t i = 0; i < bad_count; i++) {
        if ((bad_pairs[i][0] == a && bad_pairs[i][1] == b) || (bad_pairs[i][0] == b && bad_pairs[i][1] == a)) {
            return true;
        }
    }
    return false;
}

struct search {
    uint64_t *ids;
    uint32_t n, steps_left;
    const uint64_t (*bad_pairs)[2];
    uint32_t bad_count;
};

/* Depth-first with swaps; the first choice everywhere is the order by id. Few bad pairs make it end at once. */
static bool extend(struct search *search, uint32_t placed) {
    if (search->steps_left-- == 0) return false;
    uint64_t *ids = search->ids;
    if (placed == search->n) return !is_bad(ids[placed - 1], ids[0], search->bad_pairs, search->bad_count);
    for (uint32_t i = placed; i < search->n && search->steps_left > 0; i++) {
        if (is_bad(ids[placed - 1], ids[i], search->bad_pairs, search->bad_count)) continue;
        const uint64_t chosen = ids[i];
        memmove(ids + placed + 1, ids + placed, (i - placed) * sizeof *ids);
        ids[placed] = chosen;
        if (extend(search, placed + 1)) return true;
        memmove(ids + placed, ids + placed + 1, (i - placed) * sizeof *ids);
        ids[i] = chosen;
    }
    return false;
}

bool pc_ring_order(uint64_t *ids, uint32_t n, const uint64_t (*bad_pairs)[2], uint32_t bad_count) {
    if (n < 2 || bad_count == 0) return true;
    struct search search = {ids, n, 100000, bad_pairs, bad_count};
    return extend(&search, 1);
}
