/*
 * Values of a collective: staging, conversion, addition. Belongs to a collective, runs on its thread, owns the segments
 * that it has taken until they are given back; completes when it returns.
 */
#include "proto/value.h"

#include "bytes/dtype.h"
#include "math/reduce.h"

#include <string.h>

static pcclDataType_t wide_type(const struct pc_collective *c) {
    return pc_dtype_accumulator(c->dtype);
}

struct pc_segment *pc_value_take(struct pc_collective *c, uint32_t origin, uint32_t elems) {
    struct pc_segment *segment = pc_pool_take_segment(c->pool);
    if (segment == NULL) return NULL;
    segment->origin = origin;
    segment->elems = elems;
    segment->holders = 1;
    segment->contribution = false;
    pc_list_append(&c->segments, &segment->node);
    return segment;
}

void pc_value_give(struct pc_collective *c, struct pc_segment *segment) {
    if (segment == NULL || --segment->holders > 0) return;
    if (segment->contribution) c->staged_out--;
    if (segment->origin != c->plan.rank) c->user.consumed(c->user.context, segment->origin, segment->elems);
    pc_list_remove(&segment->node);
    pc_pool_give_segment(c->pool, segment);
}

/* Memory for value in another form. Credit follows the value: the staging memory holds it still. */
static struct pc_segment *take_for(struct pc_collective *c, const struct pc_value *value, uint32_t elems) {
    struct pc_segment *segment = pc_value_take(c, c->plan.rank, elems);
    if (segment == NULL || value->segment == NULL) return segment;
    segment->origin = value->segment->origin;
    value->segment->origin = c->plan.rank;
    return segment;
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
    pc_reduce_scale(wide_type(c), scratch, range.elems, c->feedback.decay);
    pc_reduce_accumulate(wide_type(c), pcclSum, contribution, scratch, range.elems);
}

pc_status pc_value_own(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value *value) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    const uint8_t *own = c->send + (chunk->own_elem + range.first_elem) * c->plan.elem_bytes;
    *value = (struct pc_value){.data = own, .wide = !pc_collective_widens(c), .weight = c->weight};
    if (c->weight == 0 || (c->scale == 1.0 && c->residual == NULL)) return pcclSuccess;
    PC_TRY(pc_value_make_accumulator(c, value, range.elems));
    if (c->scale != 1.0) pc_reduce_scale(wide_type(c), value->segment->data, range.elems, c->scale);
    if (c->residual != NULL) add_residual(c, chunk, range, value->segment->data);
    return pcclSuccess;
}

/* Codecs -------------------------------------------------------------------------------------------------------- */

static uint32_t seed_of(const struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment) {
    const uint64_t place = (uint64_t)chunk->number << 32 | segment;
    return (uint32_t)((place + c->seed) * 0x9e3779b97f4a7c15ull >> 32);
}

/*
 * residual = value - what will be decoded, as a sum; value is used up. Where the root has coded its own contribution too,
 * what that lacks is there already.
 */
static void keep_residual(struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                          struct pc_value *value, const struct pc_value *coded, bool final) {
    const pcclDataType_t type = wide_type(c);
    uint8_t *residual = new_residual(c, chunk, range), *left_out = value->segment->data;
    pc_codec_left_out(&c->plan.codec, type, left_out, coded->data, coded->coded_bytes, range.elems);
    if (final && c->redop == pcclAvg) pc_reduce_scale(type, left_out, range.elems, (double)value->weight);
    if (final && c->plan.codec.kind == pcclQuantIntSum) {
        pc_reduce_accumulate(type, pcclSum, residual, left_out, range.elems);
    } else {
        memcpy(residual, left_out, (size_t)range.elems * c->plan.acc_bytes);
    }
}

pc_status pc_value_encode(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment, struct pc_value *value,
                          bool final) {
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    if (value->coded_bytes > 0 || value->weight == 0 || range.elems == 0) return pcclSuccess;
    if (!value->wide) PC_TRY(pc_value_make_accumulator(c, value, range.elems));
    struct pc_segment *memory = take_for(c, value, range.elems);
    if (memory == NULL) return pcclNoMemory;
    const size_t bytes = pc_codec_encode(&c->plan.codec, wide_type(c), memory->data, value->data, range.elems,
                                         seed_of(c, chunk, segment));
    if (bytes == 0) return pcclNotEncodable;
    const struct pc_value coded = {memory->data, memory, false, (uint32_t)bytes, value->weight};
    if (c->residual != NULL) keep_residual(c, chunk, range, value, &coded, final);
    pc_value_give(c, value->segment);
    *value = coded;
    return pcclSuccess;
}

bool pc_value_intact(const struct pc_collective *c, const struct pc_arrival *arrival, uint32_t elems) {
    return pc_codec_intact(&c->plan.codec, wide_type(c), arrival->data, arrival->len_bytes, elems);
}

static void decode(const struct pc_collective *c, uint8_t *out, const struct pc_value *value, uint32_t elems, bool add) {
    pc_codec_decode(&c->plan.codec, wide_type(c), out, value->data, value->coded_bytes, elems, add);
}

pc_status pc_value_decode(struct pc_collective *c, uint8_t *out, const struct pc_value *value, uint32_t elems) {
    if (!pc_collective_widens(c)) {
        decode(c, out, value, elems, false);
        return pcclSuccess;
    }
    struct pc_segment *scratch = pc_value_take(c, c->plan.rank, elems);
    if (scratch == NULL) return pcclNoMemory;
    decode(c, scratch->data, value, elems, false);
    pc_reduce_narrow(c->dtype, pcclSum, out, scratch->data, elems, 1);
    pc_value_give(c, scratch);
    return pcclSuccess;
}

/* Addition ------------------------------------------------------------------------------------------------------ */

pc_status pc_value_make_accumulator(struct pc_collective *c, struct pc_value *value, uint32_t elems) {
    if (value->segment != NULL && value->wide) return pcclSuccess;
    struct pc_segment *segment = take_for(c, value, elems);
    if (segment == NULL) return pcclNoMemory;
    if (value->coded_bytes == 0) {
        pc_reduce_widen(value->wide ? wide_type(c) : c->dtype, segment->data, value->data, elems);
    } else {
        decode(c, segment->data, value, elems, false);
    }
    pc_value_give(c, value->segment);
    *value = (struct pc_value){.data = segment->data, .segment = segment, .wide = true, .weight = value->weight};
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
        decode(c, acc->segment->data, &value, elems, true);
    } else {
        if (value.coded_bytes > 0) PC_TRY(pc_value_make_accumulator(c, &value, elems));
        const pcclDataType_t dtype = value.wide ? wide_type(c) : c->dtype;
        pc_reduce_accumulate(dtype, c->redop, acc->segment->data, value.data, elems);
    }
    acc->weight += value.weight;
    pc_value_give(c, value.segment);
    return pcclSuccess;
}
