/*
 * Results of a collective. Belongs to a collective, runs on its thread, takes no memory; complete when it returns.
 */
#include "proto/result.h"

#include "math/copy.h"
#include "math/reduce.h"

/* With a codec a piece is a block at least. The first-level cache holds it as it comes, as it goes and in between. */
enum { PIECE_ELEMS = 2048, PIECE_BYTES_MAX = PC_CODEC_BLOCK_MAX * sizeof(double) };

static struct pc_range piece_of(const struct pc_collective *c, struct pc_range range, uint32_t at) {
    uint32_t elems = PIECE_ELEMS;
    if (pc_collective_codes(c) && c->plan.codec.block > elems) elems = c->plan.codec.block;
    if (elems > range.elems - at) elems = range.elems - at;
    return (struct pc_range){range.first_elem + at, elems};
}

uint8_t *pc_result_place(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range) {
    return c->recv + (chunk->out_elem + range.first_elem) * c->plan.elem_bytes;
}

uint8_t *pc_result_shadow(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range) {
    return c->shadow + (chunk->out_elem + range.first_elem) * c->plan.elem_bytes;
}

void pc_result_save(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range) {
    if (!c->undo) return;
    pc_copy_past_cache(pc_result_shadow(c, chunk, range), pc_result_place(c, chunk, range),
                       (size_t)range.elems * c->plan.elem_bytes);
}

void pc_result_finish(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                      const struct pc_value *acc, const struct pc_value *last) {
    const uint64_t total = acc->weight + last->weight;
    for (uint32_t at = 0; at < range.elems;) {
        const struct pc_range piece = piece_of(c, range, at);
        const uint8_t *sum = acc->data + (size_t)at * c->plan.acc_bytes;
        uint8_t *place = pc_result_place(c, chunk, piece);
        pc_result_save(c, chunk, piece);
        if (last->weight > 0) {
            const uint8_t *own = last->data + (size_t)at * c->plan.elem_bytes;
            pc_reduce_finish(c->dtype, c->redop, place, sum, own, piece.elems, total);
        } else {
            pc_reduce_narrow(c->dtype, c->redop, place, sum, piece.elems, total);
        }
        at += piece.elems;
    }
}

/* With a codec -------------------------------------------------------------------------------------------------- */

/* An input of which a part has been taken. */
struct operand {
    const struct pc_value *value;
    struct pc_codec_walk walk; /* if it is encoded */
    size_t at; /* elements taken */
};

static struct operand operand_of(const struct pc_collective *c, const struct pc_value *value, uint32_t elems) {
    struct operand operand = {.value = value};
    if (value->coded_bytes > 0) pc_value_walk(c, &operand.walk, value, elems);
    return operand;
}

static const uint8_t *take_piece(const struct pc_collective *c, struct operand *operand, uint32_t elems) {
    const size_t elem_bytes = operand->value->wide ? c->plan.acc_bytes : c->plan.elem_bytes;
    const uint8_t *data = operand->value->data + operand->at * elem_bytes;
    operand->at += elems;
    return data;
}

/* The next elements of acc in the accumulator's type: in scratch, or where they are. */
static const uint8_t *wide_piece(const struct pc_collective *c, struct operand *acc, uint8_t *scratch, uint32_t elems) {
    if (acc->value->coded_bytes > 0) {
        pc_codec_walk_decode(&acc->walk, scratch, NULL, elems);
        return scratch;
    }
    const uint8_t *data = take_piece(c, acc, elems);
    if (acc->value->wide) return data;
    pc_reduce_widen(c->dtype, scratch, data, elems);
    return scratch;
}

/* out = acc op last, divided for averages, in the accumulator's type. */
static void combine_piece(const struct pc_collective *c, uint8_t *out, struct operand *acc, struct operand *last,
                          uint32_t elems) {
    const pcclDataType_t wide = pc_collective_wide_type(c);
    const uint64_t total = acc->value->weight + last->value->weight;
    const uint8_t *sum = wide_piece(c, acc, out, elems);
    if (last->value->weight > 0 && last->value->coded_bytes == 0 && last->value->wide) {
        pc_reduce_finish(wide, c->redop, out, sum, take_piece(c, last, elems), elems, total);
        return;
    }
    if (last->value->coded_bytes > 0) {
        pc_codec_walk_decode(&last->walk, out, sum, elems);
        sum = out;
    } else if (last->value->weight > 0) {
        pc_reduce_widen(wide, out, sum, elems);
        pc_reduce_accumulate(c->dtype, c->redop, out, take_piece(c, last, elems), elems);
        sum = out;
    }
    pc_reduce_narrow(wide, c->redop, out, sum, elems, total);
}

static void decode_piece(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range piece,
                         struct pc_codec_walk *walk, uint8_t *scratch) {
    uint8_t *place = pc_result_place(c, chunk, piece);
    pc_result_save(c, chunk, piece);
    if (!pc_collective_widens(c)) {
        pc_codec_walk_decode(walk, place, NULL, piece.elems);
        return;
    }
    pc_codec_walk_decode(walk, scratch, NULL, piece.elems);
    pc_reduce_narrow(c->dtype, pcclSum, place, scratch, piece.elems, 1);
}

pc_status pc_result_encode(struct pc_collective *c, const struct pc_chunk *chunk, uint32_t segment,
                           const struct pc_value *acc, const struct pc_value *last, struct pc_value *coded) {
    _Alignas(64) uint8_t scratch[PIECE_BYTES_MAX];
    const struct pc_range range = pc_chunk_segment(chunk, segment);
    const uint32_t seed = pc_value_seed(c, chunk, segment);
    struct operand sum = operand_of(c, acc, range.elems), own = operand_of(c, last, range.elems);
    struct pc_codec_walk encoder;
    pc_value_walk(c, &encoder, coded, range.elems);
    struct pc_codec_walk decoder = encoder;
    for (uint32_t at = 0; at < range.elems;) {
        const struct pc_range piece = piece_of(c, range, at);
        combine_piece(c, scratch, &sum, &own, piece.elems);
        if (!pc_codec_walk_encode(&encoder, scratch, piece.elems, seed)) {
            pc_result_save(c, chunk, (struct pc_range){piece.first_elem, range.elems - at});
            return pcclNotEncodable;
        }
        decoder.end = encoder.end;
        if (c->residual != NULL) {
            struct pc_codec_walk again = decoder;
            pc_value_keep_residual(c, chunk, piece, &again, scratch, acc->weight + last->weight);
        }
        decode_piece(c, chunk, piece, &decoder, scratch);
        at += piece.elems;
    }
    coded->coded_bytes = (uint32_t)(encoder.end - coded->data);
    return pcclSuccess;
}

void pc_result_decode(const struct pc_collective *c, const struct pc_chunk *chunk, struct pc_range range,
                      const struct pc_value *coded) {
    _Alignas(64) uint8_t scratch[PIECE_BYTES_MAX];
    struct pc_codec_walk walk;
    pc_value_walk(c, &walk, coded, range.elems);
    for (uint32_t at = 0; at < range.elems;) {
        const struct pc_range piece = piece_of(c, range, at);
        decode_piece(c, chunk, piece, &walk, scratch);
        at += piece.elems;
    }
}
