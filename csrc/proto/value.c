/*
 * Values of a collective: staging, conversion, addition. Belongs to a collective, runs on its thread, owns the segments
 * that it has taken until they are given back; completes when it returns.
 */
#include "proto/value.h"

#include "math/reduce.h"

#include <string.h>

struct pc_segment *pc_value_take(struct pc_collective *c, uint32_t origin, uint32_t elems) {
    struct pc_segment *segment = pc_pool_take_segment(c->pool);
    if (segment == NULL) return NULL;
    segment->origin = origin;
    segment->kind = PC_DATA_PARTIAL;
    segment->elems = elems;
    segment->holders = 1;
    segment->contribution = false;
    pc_list_append(&c->segments, &segment->node);
    return segment;
}

void pc_value_give(struct pc_collective *c, struct pc_segment *segment) {
    if (segment == NULL || --segment->holders > 0) return;
    if (segment->contribution && c->plan.ahead == 0) c->staged_out--;
    if (segment->origin != c->plan.rank) c->user.consumed(c->user.context, segment->origin, segment->kind, segment->elems);
    pc_list_remove(&segment->node);
    pc_pool_give_segment(c->pool, segment);
}

pc_status pc_value_take_for(struct pc_collective *c, const struct pc_value *value, uint32_t elems, struct pc_value *other) {
    struct pc_segment *segment = pc_value_take(c, c->plan.rank, elems);
    if (segment == NULL) return pcclNoMemory;
    if (value->segment != NULL) {
        segment->origin = value->segment->origin;
        value->segment->origin = c->plan.rank;
    }
    *other = (struct pc_value){.data = segment->data, .segment = segment, .weight = value->weight};
    return pcclSuccess;
}

/* Contributions ------------------------------------------------------------------------------------------------- */

static uint8_t *new_residual(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range) {
    return c->residual + (chunk->own_elem + range.first_elem) * c->plan.acc_bytes;
}

/* contribution += decay * residual */
static void add_residual(struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                         uint8_t *contribution) {
    uint8_t *scratch = new_residual(c, chunk, range);
    const size_t at = (size_t)(scratch - c->residual);
    memcpy(scratch, (const uint8_t *)c->feedback.residual + at, (size_t)range.elems * c->plan.acc_bytes);
    pc_reduce_scale(pc_collective_wide_type(c), scratch, range.elems, c->feedback.decay);
    pc_reduce_accumulate(pc_collective_wide_type(c), pcclSum, contribution, scratch, range.elems);
}

pc_status pc_value_own(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value *value) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    const uint8_t *own = c->send + (chunk->own_elem + range.first_elem) * c->plan.elem_bytes;
    *value = (struct pc_value){.data = own, .wide = !pc_collective_widens(c), .weight = c->weight};
    if (c->weight == 0 || (c->scale == 1.0 && c->residual == NULL)) return pcclSuccess;
    PC_TRY(pc_value_make_accumulator(c, value, range.elems));
    if (c->scale != 1.0) pc_reduce_scale(pc_collective_wide_type(c), value->segment->data, range.elems, c->scale);
    if (c->residual != NULL) add_residual(c, chunk, range, value->segment->data);
    return pcclSuccess;
}

/* Codecs -------------------------------------------------------------------------------------------------------- */

uint32_t pc_value_seed(const struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment) {
    const uint64_t place = (uint64_t)chunk->number << 32 | segment;
    return (uint32_t)((place + c->seed) * 0x9e3779b97f4a7c15ull >> 32);
}

void pc_value_walk(const struct pc_collective *c, struct pc_codec_walk *walk, const struct pc_value *value,
                   uint32_t elems) {
    pc_codec_walk_init(walk, &c->plan.codec, pc_collective_wide_type(c), value->data, value->coded_bytes, elems);
}

/* Where the root has coded its own contribution too, what that lacks is there already. */
void pc_value_keep_residual(struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                            struct pc_codec_walk *coded, uint8_t *values, uint64_t divisor) {
    const pcclDataType_t type = pc_collective_wide_type(c);
    uint8_t *residual = new_residual(c, chunk, range);
    const bool final = divisor > 0;
    pc_codec_walk_left_out(coded, values, range.elems);
    if (final && c->redop == pcclAvg) pc_reduce_scale(type, values, range.elems, (double)divisor);
    if (final && c->plan.codec.kind == pcclQuantIntSum) {
        pc_reduce_accumulate(type, pcclSum, residual, values, range.elems);
    } else {
        memcpy(residual, values, (size_t)range.elems * c->plan.acc_bytes);
    }
}

pc_status pc_value_encode(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                          struct pc_value *value) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    if (value->coded_bytes > 0 || value->weight == 0 || range.elems == 0) return pcclSuccess;
    if (!value->wide) PC_TRY(pc_value_make_accumulator(c, value, range.elems));
    struct pc_value coded;
    PC_TRY(pc_value_take_for(c, value, range.elems, &coded));
    coded.coded_bytes = (uint32_t)pc_codec_encode(&c->plan.codec, pc_collective_wide_type(c), coded.segment->data,
                                                  value->data, range.elems, pc_value_seed(c, chunk, segment));
    if (coded.coded_bytes == 0) return pcclNotEncodable;
    if (c->residual != NULL) {
        struct pc_codec_walk walk;
        pc_value_walk(c, &walk, &coded, range.elems);
        pc_value_keep_residual(c, chunk, range, &walk, value->segment->data, 0);
    }
    pc_value_give(c, value->segment);
    *value = coded;
    return pcclSuccess;
}

bool pc_value_intact(const struct pc_collective *c, const struct pc_arrival *arrival, uint32_t elems) {
    return pc_codec_intact(&c->plan.codec, pc_collective_wide_type(c), arrival->data, arrival->len_bytes, elems);
}

/* out = base + value; base NULL: nothing. */
static void decode(const struct pc_collective *c, uint8_t *out, const uint8_t *base, const struct pc_value *value,
                   uint32_t elems) {
    pc_codec_decode(&c->plan.codec, pc_collective_wide_type(c), out, base, value->data, value->coded_bytes, elems);
}

/* Addition ------------------------------------------------------------------------------------------------------ */

pc_status pc_value_make_accumulator(struct pc_collective *c, struct pc_value *value, uint32_t elems) {
    if (value->segment != NULL && value->wide) return pcclSuccess;
    struct pc_value wide;
    PC_TRY(pc_value_take_for(c, value, elems, &wide));
    wide.wide = true;
    if (value->coded_bytes == 0) {
        pc_reduce_widen(value->wide ? pc_collective_wide_type(c) : c->dtype, wide.segment->data, value->data, elems);
    } else {
        decode(c, wide.segment->data, NULL, value, elems);
    }
    pc_value_give(c, value->segment);
    *value = wide;
    return pcclSuccess;
}

pc_status pc_value_absorb(struct pc_collective *c, struct pc_value *acc, struct pc_value value, uint32_t elems) {
    if (value.weight == 0) return pcclSuccess;
    if (acc->weight == 0) {
        *acc = value;
        return pcclSuccess;
    }
    PC_TRY(pc_value_make_accumulator(c, acc, elems));
    if (value.coded_bytes > 0 && (c->redop == pcclSum || c->redop == pcclAvg)) {
        decode(c, acc->segment->data, acc->segment->data, &value, elems);
    } else {
        if (value.coded_bytes > 0) PC_TRY(pc_value_make_accumulator(c, &value, elems));
        const pcclDataType_t dtype = value.wide ? pc_collective_wide_type(c) : c->dtype;
        pc_reduce_accumulate(dtype, c->redop, acc->segment->data, value.data, elems);
    }
    acc->weight += value.weight;
    pc_value_give(c, value.segment);
    return pcclSuccess;
}
