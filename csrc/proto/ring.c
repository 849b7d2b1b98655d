/* The ring all-reduce as a pure machine; see ring.h for memory and ring_plan.h for the schedule. */
#include "proto/ring.h"

#include "base/checked.h"
#include "math/reduce.h"
#include "proto/mutant.h"

#include <assert.h>
#include <string.h>

static bool test_bit(const uint8_t *bits, uint64_t index) {
    return (bits[index / 8] >> (index % 8) & 1) != 0;
}

static void set_bit(uint8_t *bits, uint64_t index) {
    bits[index / 8] = (uint8_t)(bits[index / 8] | 1u << (index % 8));
}

static bool widened(const struct pc_ring *ring) {
    return ring->plan.acc_bytes != ring->plan.elem_bytes;
}

static bool last_partial_round(const struct pc_ring *ring, uint32_t round) {
    return round == ring->plan.n - 2;
}

/* Segments that this member sends, or receives, over all rounds: each but one chunk in each half. */
static uint64_t count_segments(const struct pc_ring *ring, bool received) {
    uint64_t sum = 0;
    for (uint32_t round = 0; round < ring->plan.rounds; round++) {
        const uint32_t chunk = received ? pc_ring_plan_received_chunk(&ring->plan, ring->position, round)
                                        : pc_ring_plan_sent_chunk(&ring->plan, ring->position, round);
        sum += pc_ring_plan_segment_count(&ring->plan, chunk);
    }
    return sum;
}

pc_status pc_ring_init(struct pc_ring *ring, const struct pc_ring_config *config) {
    memset(ring, 0, sizeof *ring);
    ring->pool = config->pool;
    PC_TRY(pc_ring_plan_init(&ring->plan, config->shape, config->n));
    ring->position = config->position;
    ring->dtype = (pcclDataType_t)config->shape->dtype;
    ring->redop = (pcclRedOp_t)config->shape->redop;
    ring->send = config->send;
    ring->recv = config->recv;
    ring->in_place = config->send == config->recv;
    ring->emit = config->emit;
    ring->emit_context = config->emit_context;
    ring->receives_left = count_segments(ring, true);
    ring->sends_left = count_segments(ring, false);
    const uint64_t per_round = ring->plan.segments_per_chunk;
    const size_t seen_bytes = (size_t)(per_round * ring->plan.rounds / 8 + 1);
    const size_t saved_bytes = (size_t)(per_round * ring->plan.n / 8 + 1);
    ring->seen = pc_pool_take_buffer(ring->pool, seen_bytes + saved_bytes, &ring->bits_capacity);
    if (ring->seen == NULL) return pcclNoMemory;
    memset(ring->seen, 0, seen_bytes + saved_bytes);
    ring->saved = ring->seen + seen_bytes;
    if ((ring->in_place || widened(ring)) && ring->plan.count_elems > 0) {
        size_t bytes = 0;
        if (pc_mul_overflows(ring->plan.count_elems, ring->plan.acc_bytes, &bytes)) return pcclInvalidArgument;
        ring->shadow = pc_pool_take_buffer(ring->pool, bytes, &ring->shadow_capacity);
        if (ring->shadow == NULL) return pcclNoMemory;
    }
    return pcclSuccess;
}

static uint64_t range_bit(const struct pc_ring *ring, uint32_t chunk, uint32_t segment) {
    return (uint64_t)chunk * ring->plan.segments_per_chunk + segment;
}

static uint8_t *final_place(const struct pc_ring *ring, struct pc_range range) {
    return ring->recv + range.first_elem * ring->plan.elem_bytes;
}

static const uint8_t *own_place(const struct pc_ring *ring, struct pc_range range) {
    return ring->send + range.first_elem * ring->plan.elem_bytes;
}

static uint8_t *shadow_place(const struct pc_ring *ring, struct pc_range range) {
    return ring->shadow + range.first_elem * ring->plan.acc_bytes;
}

/* Where a partial result goes when the pool has no segment left. */
static uint8_t *spare_place(const struct pc_ring *ring, struct pc_range range) {
    return ring->shadow != NULL ? shadow_place(ring, range) : final_place(ring, range);
}

static uint8_t *take_segment(struct pc_ring *ring) {
    uint8_t *segment = pc_pool_take_segment(ring->pool);
    if (segment != NULL) ring->taken[ring->taken_count++] = segment;
    return segment;
}

/* Gives data back to the pool if it came from there; false if it did not. */
static bool give_segment(struct pc_ring *ring, const uint8_t *data) {
    for (uint32_t i = 0; i < ring->taken_count; i++) {
        if (ring->taken[i] != data) continue;
        pc_pool_give_segment(ring->pool, ring->taken[i]);
        ring->taken[i] = ring->taken[--ring->taken_count];
        return true;
    }
    return false;
}

/* Keeps what is about to be overwritten. Out of place there is nothing to keep. */
static void save(struct pc_ring *ring, uint32_t chunk, uint32_t segment, struct pc_range range) {
    if (!ring->in_place) return;
    memcpy(shadow_place(ring, range), final_place(ring, range), (size_t)range.elems * ring->plan.elem_bytes);
    set_bit(ring->saved, range_bit(ring, chunk, segment));
}

static pc_status emit(struct pc_ring *ring, uint32_t round, uint32_t segment, struct pc_range range,
                      const uint8_t *bulk) {
    const uint32_t elem = pc_ring_plan_is_partial(&ring->plan, round) ? ring->plan.acc_bytes : ring->plan.elem_bytes;
    const uint32_t len_bytes = range.elems * elem;
    ring->tx_bytes += len_bytes;
    return ring->emit(ring->emit_context, round, segment, range.first_elem, bulk, len_bytes);
}

pc_status pc_ring_start(struct pc_ring *ring) {
    const uint32_t chunk = pc_ring_plan_sent_chunk(&ring->plan, ring->position, 0);
    const uint32_t segments = pc_ring_plan_segment_count(&ring->plan, chunk);
    for (uint32_t segment = 0; segment < segments; segment++) {
        const struct pc_range range = pc_ring_plan_segment(&ring->plan, chunk, segment);
        const uint8_t *bulk = own_place(ring, range);
        if (widened(ring)) {
            pc_reduce_widen(ring->dtype, shadow_place(ring, range), bulk, range.elems);
            bulk = shadow_place(ring, range);
        }
        PC_TRY(emit(ring, 0, segment, range, bulk));
    }
    return pcclSuccess;
}

pc_status pc_ring_sink(struct pc_ring *ring, uint32_t round, uint32_t segment, uint32_t len_bytes, uint8_t **data) {
    if (round >= ring->plan.rounds) return pcclProtocolError;
    const uint32_t chunk = pc_ring_plan_received_chunk(&ring->plan, ring->position, round);
    if (segment >= pc_ring_plan_segment_count(&ring->plan, chunk)) return pcclProtocolError;
    const struct pc_range range = pc_ring_plan_segment(&ring->plan, chunk, segment);
    const bool partial = pc_ring_plan_is_partial(&ring->plan, round);
    const uint64_t bit = (uint64_t)round * ring->plan.segments_per_chunk + segment;
    const uint32_t elem = partial ? ring->plan.acc_bytes : ring->plan.elem_bytes;
    if (len_bytes != range.elems * elem || test_bit(ring->seen, bit)) return pcclProtocolError;
    set_bit(ring->seen, bit);
    if (partial) {
        *data = take_segment(ring);
        if (*data == NULL) *data = spare_place(ring, range);
    } else {
        save(ring, chunk, segment, range);
        *data = final_place(ring, range);
    }
    return pcclSuccess;
}

/*
 * The last addition to a chunk. Block by block, so that what the undo copy reads is still in the cache for the sum. When
 * the partial sum lies in the very place of the result or of the undo copy, a block's result waits aside.
 */
static void finish(struct pc_ring *ring, uint32_t chunk, uint32_t segment, struct pc_range range, const uint8_t *data) {
    enum { BLOCK_ELEMS = 2048, ELEM_MAX = 8 };
    uint8_t aside[BLOCK_ELEMS * ELEM_MAX];
    const uint32_t elem = ring->plan.elem_bytes;
    uint8_t *place = final_place(ring, range);
    const bool apart = data != place && (ring->shadow == NULL || data != shadow_place(ring, range));
    for (uint32_t at = 0; at < range.elems; at += BLOCK_ELEMS) {
        const uint32_t elems = range.elems - at < BLOCK_ELEMS ? range.elems - at : BLOCK_ELEMS;
        const size_t offset = (size_t)at * elem, len_bytes = (size_t)elems * elem;
        const uint8_t *sum = data + (size_t)at * ring->plan.acc_bytes, *own = own_place(ring, range) + offset;
        if (!apart) pc_reduce_finish(ring->dtype, ring->redop, aside, sum, own, elems, ring->plan.n);
        if (ring->in_place) memcpy(shadow_place(ring, range) + offset, place + offset, len_bytes);
        if (apart) {
            pc_reduce_finish(ring->dtype, ring->redop, place + offset, sum, own, elems, ring->plan.n);
        } else {
            memcpy(place + offset, aside, len_bytes);
        }
    }
    if (ring->in_place) set_bit(ring->saved, range_bit(ring, chunk, segment));
}

/* A partial sum has come: add the own part, then pass it on, or finish it where the chunk is owned. */
static pc_status reduce(struct pc_ring *ring, uint32_t round, uint32_t segment, uint32_t chunk, uint8_t *data) {
    const struct pc_range range = pc_ring_plan_segment(&ring->plan, chunk, segment);
    if (!last_partial_round(ring, round)) {
        pc_reduce_accumulate(ring->dtype, ring->redop, data, own_place(ring, range), range.elems);
        return emit(ring, round + 1, segment, range, data);
    }
    finish(ring, chunk, segment, range, data);
    (void)give_segment(ring, data);
    return emit(ring, round + 1, segment, range, final_place(ring, range));
}

pc_status pc_ring_received(struct pc_ring *ring, uint32_t round, uint32_t segment, uint8_t *data) {
    assert(ring->receives_left > 0);
    ring->receives_left--;
    const uint32_t chunk = pc_ring_plan_received_chunk(&ring->plan, ring->position, round);
    const struct pc_range range = pc_ring_plan_segment(&ring->plan, chunk, segment);
    if (pc_ring_plan_is_partial(&ring->plan, round)) {
        ring->rx_bytes += (uint64_t)range.elems * ring->plan.acc_bytes;
        return reduce(ring, round, segment, chunk, data);
    }
    ring->rx_bytes += (uint64_t)range.elems * ring->plan.elem_bytes;
    if (round + 1 == ring->plan.rounds) return pcclSuccess;
    return emit(ring, round + 1, segment, range, data);
}

void pc_ring_sent(struct pc_ring *ring, const uint8_t *bulk) {
    assert(ring->sends_left > 0);
    ring->sends_left--;
    (void)give_segment(ring, bulk);
}

bool pc_ring_complete(const struct pc_ring *ring) {
    return ring->receives_left == 0 && ring->sends_left == 0;
}

void pc_ring_undo(struct pc_ring *ring) {
    if (!ring->in_place || ring->shadow == NULL || PC_MUTANT(PC_MUTANT_NO_UNDO)) return;
    for (uint32_t chunk = 0; chunk < ring->plan.n; chunk++) {
        const uint32_t segments = pc_ring_plan_segment_count(&ring->plan, chunk);
        for (uint32_t segment = 0; segment < segments; segment++) {
            if (!test_bit(ring->saved, range_bit(ring, chunk, segment))) continue;
            const struct pc_range range = pc_ring_plan_segment(&ring->plan, chunk, segment);
            memcpy(final_place(ring, range), shadow_place(ring, range), (size_t)range.elems * ring->plan.elem_bytes);
        }
    }
}

void pc_ring_fini(struct pc_ring *ring) {
    if (ring->pool == NULL) return;
    while (ring->taken_count > 0) pc_pool_give_segment(ring->pool, ring->taken[--ring->taken_count]);
    pc_pool_give_buffer(ring->pool, ring->seen, ring->bits_capacity);
    pc_pool_give_buffer(ring->pool, ring->shadow, ring->shadow_capacity);
    memset(ring, 0, sizeof *ring);
}
