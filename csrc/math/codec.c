/*
 * Codecs: layout of encoded bytes, and the walk over their blocks. Pure functions of their arguments, on the caller's
 * thread, complete when they return; they own and allocate nothing. What the codes mean and why their bits don't depend on
 * the SIMD level is in codec.h and codec_loops.h.
 */
#include "math/codec.h"

#include "bytes/dtype.h"
#include "math/codec_blocks.h"
#include "math/codec_header.h"
#include "math/top_k.h"
#include "math/wide_steps.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Codecs -------------------------------------------------------------------------------------------------------- */

static bool by_steps(uint8_t kind) {
    return kind == pcclQuantMinMax || kind == pcclQuantZeroPointScale;
}

static uint32_t default_block(uint8_t kind, uint8_t bits) {
    switch (kind) {
    case pcclQuantMinMax:
    case pcclQuantZeroPointScale: return bits == 8 ? 256 : 4096;
    case pcclQuantInt8:
    case pcclQuantFp8E4M3: return 256;
    case pcclQuantInt4:
    case pcclQuantE3M0: return 128;
    default: return 4096;
    }
}

struct pc_codec pc_codec_make(uint8_t kind, uint8_t bits, uint32_t block) {
    return (struct pc_codec){.kind = kind, .bits = bits, .block = block != 0 ? block : default_block(kind, bits)};
}

bool pc_codec_valid(const struct pc_codec *codec) {
    if (codec->block < PC_CODEC_BLOCK_MIN || codec->block > PC_CODEC_BLOCK_MAX) return false;
    if ((codec->block & (codec->block - 1)) != 0) return false;
    if (by_steps(codec->kind)) {
        return codec->bits == 8 || codec->bits == 16 || codec->bits == 32 || codec->bits == 64;
    }
    if (codec->kind == pcclQuantIntSum) {
        return codec->bits >= PC_CODEC_EXPONENT_BIAS - PC_CODEC_EXPONENT_MAX &&
               codec->bits <= PC_CODEC_EXPONENT_BIAS + PC_CODEC_EXPONENT_MAX;
    }
    if (codec->bits != 0) return false;
    if (codec->kind == pcclQuantTopK) return codec->block == PC_TOP_K_BLOCK;
    return codec->kind >= pcclQuantBf16 && codec->kind < pcclQuantTopK;
}

const char *pc_codec_name(uint8_t kind) {
    switch (kind) {
    case pcclQuantNone: return "none";
    case pcclQuantMinMax: return "min_max";
    case pcclQuantZeroPointScale: return "zero_point";
    case pcclQuantBf16: return "bf16";
    case pcclQuantFp16: return "fp16";
    case pcclQuantInt8: return "int8";
    case pcclQuantInt4: return "int4";
    case pcclQuantFp8E4M3: return "fp8_e4m3";
    case pcclQuantE3M0: return "e3m0";
    case pcclQuantTopK: return "top_k";
    case pcclQuantIntSum: return "int_sum";
    default: return "unknown";
    }
}

/* Layout -------------------------------------------------------------------------------------------------------- */

/* Offset and step are float64. */
static bool wide_steps(const struct pc_codec *codec, pcclDataType_t dtype) {
    return by_steps(codec->kind) && (codec->bits > 16 || dtype == pcclDouble);
}

static size_t header_bytes(const struct pc_codec *codec, pcclDataType_t dtype) {
    if (by_steps(codec->kind)) return wide_steps(codec, dtype) ? 16 : 8;
    return codec->kind == pcclQuantTopK ? 8 : 4;
}

static size_t code_bytes(const struct pc_codec *codec, size_t count) {
    switch (codec->kind) {
    case pcclQuantMinMax:
    case pcclQuantZeroPointScale: return count * (codec->bits / 8u);
    case pcclQuantBf16:
    case pcclQuantFp16:
    case pcclQuantIntSum: return count * 2;
    case pcclQuantInt4:
    case pcclQuantE3M0: return (count + 1) / 2;
    case pcclQuantTopK: return pc_top_k_bytes(count);
    default: return count;
    }
}

struct layout {
    size_t block, elem; /* elements of a block, bytes of an element */
    size_t header, codes; /* bytes of a header, and of a full block's codes */
    size_t codes_at, raw_at;
};

static struct layout layout_of(const struct pc_codec *codec, pcclDataType_t dtype, size_t count) {
    struct layout l = {.block = codec->block, .elem = pc_dtype_bytes(dtype), .header = header_bytes(codec, dtype)};
    const size_t blocks = (count + l.block - 1) / l.block, rest = count % l.block;
    l.codes = code_bytes(codec, l.block);
    l.codes_at = blocks * l.header;
    l.raw_at = l.codes_at + count / l.block * l.codes + (rest > 0 ? code_bytes(codec, rest) : 0);
    return l;
}

size_t pc_codec_bytes(const struct pc_codec *codec, pcclDataType_t dtype, size_t count) {
    return layout_of(codec, dtype, count).raw_at;
}

size_t pc_codec_bytes_max(const struct pc_codec *codec, pcclDataType_t dtype, size_t count) {
    return pc_codec_bytes(codec, dtype, count) + count * pc_dtype_bytes(dtype);
}

static void mark_raw(const struct layout *l, uint8_t *header) {
    memset(header, 0, l->header);
    if (l->header == 16) pc_put_f64(header, (double)NAN);
    else pc_put_f32(header, NAN);
}

static bool marked_raw(const struct layout *l, const uint8_t *header) {
    return l->header == 16 ? isnan(pc_get_f64(header)) : isnan(pc_get_f32(header));
}

/* Elements that are not float32 --------------------------------------------------------------------------------- */

/* Elements as float32; those beyond its range become infinite, and their block is not coded. */
static void narrow(float *out, const uint8_t *in, pcclDataType_t dtype, size_t count) {
    if (dtype == pcclFloat) {
        memcpy(out, in, count * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++) out[i] = (float)((const any_f64 *)(const void *)in)[i];
}

/* out[i] = in[i], plus base[i] */
static void widen(uint8_t *out, const uint8_t *base, const float *in, pcclDataType_t dtype, size_t count) {
    any_f64 *wide = (any_f64 *)(void *)out;
    any_f32 *same = (any_f32 *)(void *)out;
    const any_f64 *wide_base = (const any_f64 *)(const void *)base;
    const any_f32 *same_base = (const any_f32 *)(const void *)base;
    if (dtype == pcclDouble) {
        for (size_t i = 0; i < count; i++) wide[i] = base != NULL ? wide_base[i] + (double)in[i] : (double)in[i];
    } else {
        for (size_t i = 0; i < count; i++) same[i] = base != NULL ? same_base[i] + in[i] : in[i];
    }
}

static void take_raw(uint8_t *out, const uint8_t *base, const uint8_t *in, pcclDataType_t dtype, size_t count) {
    if (base == NULL) {
        memcpy(out, in, count * pc_dtype_bytes(dtype));
    } else if (dtype == pcclDouble) {
        const any_f64 *a = (const any_f64 *)(const void *)base, *b = (const any_f64 *)(const void *)in;
        for (size_t i = 0; i < count; i++) ((any_f64 *)(void *)out)[i] = a[i] + b[i];
    } else {
        const any_f32 *a = (const any_f32 *)(const void *)base, *b = (const any_f32 *)(const void *)in;
        for (size_t i = 0; i < count; i++) ((any_f32 *)(void *)out)[i] = a[i] + b[i];
    }
}

static bool encode_top_k(uint8_t *header, uint8_t *codes, const float *in, size_t count) {
    float magnitudes[2];
    if (pc_codec_peak_bits(in, count) >= 0x7f800000u) return false;
    pc_top_k_encode(magnitudes, codes, in, count);
    pc_put_f32(header, magnitudes[0]);
    pc_put_f32(header + 4, magnitudes[1]);
    return true;
}

static void decode_top_k(float *out, const uint8_t *header, const uint8_t *codes, size_t count) {
    const float magnitudes[2] = {pc_get_f32(header), pc_get_f32(header + 4)};
    pc_top_k_decode(out, magnitudes, codes, count);
}

/* One block that is not float32, or whose codec is not element by element. */
static bool encode_other(const struct pc_codec_blocks *b, pcclDataType_t dtype, const uint8_t *in, uint32_t seed) {
    float scratch[PC_CODEC_BLOCK_MAX];
    if (wide_steps(b->codec, dtype)) {
        return pc_wide_steps_encode(b->codec, dtype, b->header, b->codes, in, b->elems, seed, b->first);
    }
    narrow(scratch, in, dtype, b->elems);
    if (b->codec->kind == pcclQuantTopK) return encode_top_k(b->header, b->codes, scratch, b->elems);
    return pc_codec_blocks_encode(b, scratch, seed) == 1;
}

static void decode_other(const struct pc_codec_blocks *b, pcclDataType_t dtype, uint8_t *out, const uint8_t *base) {
    float scratch[PC_CODEC_BLOCK_MAX];
    if (wide_steps(b->codec, dtype)) {
        pc_wide_steps_decode(b->codec, dtype, out, base, b->header, b->codes, b->elems);
        return;
    }
    if (b->codec->kind == pcclQuantTopK) decode_top_k(scratch, b->header, b->codes, b->elems);
    else pc_codec_blocks_decode(b, scratch, NULL);
    widen(out, base, scratch, dtype, b->elems);
}

/* Walks --------------------------------------------------------------------------------------------------------- */

void pc_codec_walk_init(struct pc_codec_walk *walk, const struct pc_codec *codec, pcclDataType_t dtype, const void *coded,
                        size_t len_bytes, size_t count) {
    assert(pc_codec_valid(codec) && (dtype == pcclFloat || dtype == pcclDouble));
    const struct layout l = layout_of(codec, dtype, count);
    uint8_t *start = (uint8_t *)(uintptr_t)coded;
    *walk = (struct pc_codec_walk){
        .codec = codec,
        .dtype = dtype,
        .count = count,
        .header = start,
        .codes = start + l.codes_at,
        .raw = start + l.raw_at,
        .end = start + (len_bytes == 0 ? l.raw_at : len_bytes),
    };
}

/* The next blocks of a piece of count elements, as many as are of one size: all full ones, or the last one alone. */
static struct pc_codec_blocks next_blocks(const struct pc_codec_walk *walk, const struct layout *l, size_t count) {
    struct pc_codec_blocks b = {walk->codec,    walk->header, walk->codes, l->header,
                                l->codes,       count / l->block, l->block, (uint32_t)walk->at};
    if (b.count == 0) {
        b.count = 1;
        b.elems = count;
    }
    return b;
}

static void advance(struct pc_codec_walk *walk, const struct layout *l, size_t blocks, size_t elems) {
    walk->header += blocks * l->header;
    walk->codes += blocks * l->codes;
    walk->at += blocks * elems;
}

static bool by_blocks(const struct pc_codec_walk *walk) {
    return walk->dtype == pcclFloat && walk->codec->kind != pcclQuantTopK && !wide_steps(walk->codec, walk->dtype);
}

bool pc_codec_walk_encode(struct pc_codec_walk *walk, const void *in, size_t count, uint32_t seed) {
    const struct layout l = layout_of(walk->codec, walk->dtype, 0);
    const uint8_t *from = in;
    for (size_t done = 0, coded = 0; done < count; from += coded * l.elem) {
        struct pc_codec_blocks b = next_blocks(walk, &l, count - done);
        const bool floats = by_blocks(walk);
        if (!floats) b.count = 1;
        size_t blocks = floats ? pc_codec_blocks_encode(&b, (const any_f32 *)(const void *)from, seed)
                               : encode_other(&b, walk->dtype, from, seed);
        if (blocks < b.count) {
            if (walk->codec->finite_only) return false;
            const size_t raw_bytes = b.elems * l.elem;
            mark_raw(&l, b.header + blocks * l.header);
            memset(b.codes + blocks * l.codes, 0, code_bytes(walk->codec, b.elems));
            memcpy(walk->end, from + blocks * raw_bytes, raw_bytes);
            walk->end += raw_bytes;
            blocks++;
        }
        advance(walk, &l, blocks, b.elems);
        coded = blocks * b.elems;
        done += coded;
    }
    return true;
}

void pc_codec_walk_decode(struct pc_codec_walk *walk, void *out, const void *base, size_t count) {
    const struct layout l = layout_of(walk->codec, walk->dtype, 0);
    uint8_t *to = out;
    const uint8_t *from = base;
    for (size_t done = 0, decoded = 0; done < count; done += decoded) {
        struct pc_codec_blocks b = next_blocks(walk, &l, count - done);
        const bool floats = by_blocks(walk), any_raw = walk->raw < walk->end;
        if (!floats || any_raw) b.count = 1;
        if (any_raw && marked_raw(&l, b.header)) {
            take_raw(to, from, walk->raw, walk->dtype, b.elems);
            walk->raw += b.elems * l.elem;
        } else if (floats) {
            pc_codec_blocks_decode(&b, (any_f32 *)(void *)to, (const any_f32 *)(const void *)from);
        } else {
            decode_other(&b, walk->dtype, to, from);
        }
        advance(walk, &l, b.count, b.elems);
        decoded = b.count * b.elems;
        to += decoded * l.elem;
        if (from != NULL) from += decoded * l.elem;
    }
}

void pc_codec_walk_left_out(struct pc_codec_walk *walk, void *values, size_t count) {
    any_f32 *single = (any_f32 *)values;
    any_f64 *wide = (any_f64 *)values;
    const bool floats = walk->dtype == pcclFloat;
    for (size_t i = 0; i < count; i++) {
        if (floats) single[i] = -single[i];
        else wide[i] = -wide[i];
    }
    pc_codec_walk_decode(walk, values, values, count);
    for (size_t i = 0; i < count; i++) {
        if (floats) single[i] = isfinite(single[i]) ? -single[i] : 0.0f;
        else wide[i] = isfinite(wide[i]) ? -wide[i] : 0.0;
    }
}

/* Whole runs ---------------------------------------------------------------------------------------------------- */

size_t pc_codec_encode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *in, size_t count,
                       uint32_t seed) {
    struct pc_codec_walk walk;
    pc_codec_walk_init(&walk, codec, dtype, out, 0, count);
    return pc_codec_walk_encode(&walk, in, count, seed) ? (size_t)(walk.end - (uint8_t *)out) : 0;
}

void pc_codec_decode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *base, const void *in,
                     size_t len_bytes, size_t count) {
    struct pc_codec_walk walk;
    pc_codec_walk_init(&walk, codec, dtype, in, len_bytes, count);
    pc_codec_walk_decode(&walk, out, base, count);
}

bool pc_codec_intact(const struct pc_codec *codec, pcclDataType_t dtype, const void *in, size_t len_bytes, size_t count) {
    const struct layout l = layout_of(codec, dtype, count);
    const uint8_t *header = in, *codes = header + l.codes_at;
    if (len_bytes < l.raw_at) return false;
    size_t raw_bytes = 0;
    for (size_t at = 0; at < count; at += l.block, header += l.header, codes += l.codes) {
        const size_t elems = count - at < l.block ? count - at : l.block;
        if (marked_raw(&l, header)) raw_bytes += elems * l.elem;
        else if (codec->kind == pcclQuantTopK && !pc_top_k_intact(codes, elems)) return false;
    }
    return len_bytes - l.raw_at == raw_bytes;
}
