/*
 * Codecs: layout of encoded bytes, and the walk over their blocks, once for each SIMD level. Pure functions of their
 * arguments, on the caller's thread, complete when they return; they own and allocate nothing. What the codes mean and
 * why their bits don't depend on the level is in codec.h and codec_loops.h.
 */
#include "math/codec.h"

#include "bytes/dtype.h"
#include "math/codec_loops.h"
#include "math/simd.h"
#include "math/top_k.h"

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

/* Headers ------------------------------------------------------------------------------------------------------- */

static void put_f32(uint8_t *out, float value) {
    memcpy(out, &value, sizeof value);
}

static void put_f64(uint8_t *out, double value) {
    memcpy(out, &value, sizeof value);
}

static float get_f32(const uint8_t *in) {
    float value;
    memcpy(&value, in, sizeof value);
    return value;
}

static double get_f64(const uint8_t *in) {
    double value;
    memcpy(&value, in, sizeof value);
    return value;
}

static void mark_raw(const struct layout *l, uint8_t *header) {
    memset(header, 0, l->header);
    if (l->header == 16) put_f64(header, (double)NAN);
    else put_f32(header, NAN);
}

static bool marked_raw(const struct layout *l, const uint8_t *header) {
    return l->header == 16 ? isnan(get_f64(header)) : isnan(get_f32(header));
}

/* Steps of float64 ---------------------------------------------------------------------------------------------- */

#define WIDE_TINY 0x1p-900
#define WIDE_HUGE 0x1p1000

struct wide_steps {
    double offset, step, inverse, most;
};

static double element(const void *in, pcclDataType_t dtype, size_t i) {
    return dtype == pcclDouble ? ((const any_f64 *)in)[i] : (double)((const any_f32 *)in)[i];
}

static double code_most(uint8_t bits) {
    return bits == 64 ? 0x1p53 - 1 : (double)((1ull << bits) - 1);
}

static bool find_wide_steps(const struct pc_codec *codec, pcclDataType_t dtype, const void *in, size_t count,
                            struct wide_steps *s) {
    double least = element(in, dtype, 0), most = least;
    for (size_t i = 0; i < count; i++) {
        const double value = element(in, dtype, i);
        if (!isfinite(value)) return false;
        if (value < least) least = value;
        if (value > most) most = value;
    }
    if (least < -WIDE_HUGE || most > WIDE_HUGE) return false;
    *s = (struct wide_steps){.offset = least, .most = code_most(codec->bits)};
    s->step = (most - least) / s->most;
    if (s->step < WIDE_TINY) s->step = 0;
    if (s->step == 0) return true;
    s->inverse = 1 / s->step;
    if (codec->kind == pcclQuantZeroPointScale && least <= 0 && most >= 0) s->offset = -(rint(-least * s->inverse) * s->step);
    return true;
}

static void put_code(uint8_t *codes, uint8_t bits, size_t i, uint64_t code) {
    for (size_t byte = 0; byte < bits / 8u; byte++) codes[i * (bits / 8u) + byte] = (uint8_t)(code >> (byte * 8));
}

static uint64_t get_code(const uint8_t *codes, uint8_t bits, size_t i) {
    uint64_t code = 0;
    for (size_t byte = 0; byte < bits / 8u; byte++) code |= (uint64_t)codes[i * (bits / 8u) + byte] << (byte * 8);
    return code;
}

static bool encode_wide_steps(const struct pc_codec *codec, pcclDataType_t dtype, uint8_t *header, uint8_t *codes,
                              const void *in, size_t count, uint32_t seed, uint32_t first) {
    struct wide_steps s;
    if (!find_wide_steps(codec, dtype, in, count, &s)) return false;
    put_f64(header, s.offset);
    put_f64(header + 8, s.step);
    for (size_t i = 0; i < count; i++) {
        double steps = (element(in, dtype, i) - s.offset) * s.inverse;
        steps = codec->stochastic ? floor(steps + (double)dither(noise(seed, first + (uint32_t)i)) + 0.5) : rint(steps);
        put_code(codes, codec->bits, i, steps <= 0 ? 0 : (uint64_t)(steps < s.most ? steps : s.most));
    }
    return true;
}

static void decode_wide_steps(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const uint8_t *header,
                              const uint8_t *codes, size_t count, bool add) {
    const double offset = get_f64(header), step = get_f64(header + 8);
    for (size_t i = 0; i < count; i++) {
        const double value = offset + (double)get_code(codes, codec->bits, i) * step;
        if (dtype == pcclDouble) {
            any_f64 *to = (any_f64 *)out + i;
            *to = add ? *to + value : value;
        } else {
            any_f32 *to = (any_f32 *)out + i;
            *to = add ? *to + (float)value : (float)value;
        }
    }
}

/* One block of float32 ------------------------------------------------------------------------------------------ */

/* What value stands for, and 0 for blocks that count as constant 0. */
INLINE bool code_by_peak(struct coding *c, uint8_t *header, const any_f32 *in, size_t count, int32_t most,
                         float in_scale) {
    const uint32_t bits = peak_bits((const any_u32 *)(const void *)in, count);
    const float peak = pc_half_float_of_bits(bits);
    if (!(peak < PC_CODEC_HUGE)) return false;
    const bool tiny = peak < PC_CODEC_TINY;
    put_f32(header, tiny ? 0.0f : peak / in_scale);
    c->factor = tiny ? 0.0f : in_scale / peak;
    c->least = -most;
    c->most = most;
    return true;
}

INLINE bool code_by_steps(struct coding *c, uint8_t kind, uint8_t *header, const any_f32 *in, size_t count,
                          int32_t most) {
    int32_t low = 0, high = 0;
    range_bits((const any_i32 *)(const void *)in, count, &low, &high);
    const float least = pc_half_float_of_bits((uint32_t)ordered(low));
    const float greatest = pc_half_float_of_bits((uint32_t)ordered(high));
    /* NaNs are beyond the infinities in this order: one among the elements is among these two. */
    if (!(least > -PC_CODEC_HUGE && greatest < PC_CODEC_HUGE)) return false;
    float step = (greatest - least) / (float)most;
    if (step < PC_CODEC_TINY) step = 0;
    c->factor = step == 0 ? 0.0f : 1.0f / step;
    c->offset = least;
    c->least = 0;
    c->most = most;
    if (kind == pcclQuantZeroPointScale && least <= 0.0f && greatest >= 0.0f) {
        c->offset = -((float)nearest(-least * c->factor) * step);
    }
    put_f32(header, c->offset);
    put_f32(header + 4, step);
    return true;
}

/* 2^exponent of int_sum, or its inverse. */
INLINE float shared_scale(uint8_t bits, bool inverse) {
    const int32_t exponent = (int32_t)bits - PC_CODEC_EXPONENT_BIAS;
    return pc_half_float_of_bits((uint32_t)(127 + (inverse ? -exponent : exponent)) << 23);
}

INLINE bool code_by_shared_scale(struct coding *c, uint8_t bits, uint8_t *header, const any_f32 *in, size_t count) {
    const float peak = pc_half_float_of_bits(peak_bits((const any_u32 *)(const void *)in, count));
    c->factor = shared_scale(bits, true);
    c->least = -INT16_MAX;
    c->most = INT16_MAX;
    put_f32(header, 0.0f);
    return peak < PC_CODEC_HUGE && peak * c->factor <= (float)INT16_MAX;
}

/* kind and c.stochastic are constants where it is inlined. False: the block cannot be coded. */
INLINE bool encode_block(uint8_t kind, uint8_t bits, struct coding c, uint8_t *header, uint8_t *codes,
                         const any_f32 *in, size_t count) {
    switch (kind) {
    case pcclQuantInt8:
        if (!code_by_peak(&c, header, in, count, 127, 127.0f)) return false;
        encode_int8(c, codes, in, count);
        return true;
    case pcclQuantInt4:
        if (!code_by_peak(&c, header, in, count, 7, 7.0f)) return false;
        encode_int4(c, codes, in, count);
        return true;
    case pcclQuantFp8E4M3:
        if (!code_by_peak(&c, header, in, count, 0, 448.0f)) return false;
        encode_e4m3(c, codes, in, count);
        return true;
    case pcclQuantE3M0:
        if (!code_by_peak(&c, header, in, count, 0, 1.0f)) return false;
        encode_e3m0(c, codes, in, count);
        return true;
    case pcclQuantIntSum:
        if (!code_by_shared_scale(&c, bits, header, in, count)) return false;
        encode_int16(c, (any_u16 *)(void *)codes, in, count);
        return true;
    case pcclQuantBf16: /* limits: what would be rounded to infinity, or might be */
        put_f32(header, 0.0f);
        if (peak_bits((const any_u32 *)(const void *)in, count) >= (c.stochastic ? 0x7f7f0001u : 0x7f7f8000u)) return false;
        encode_bf16(c, (any_u16 *)(void *)codes, in, count);
        return true;
    case pcclQuantFp16:
        put_f32(header, 0.0f);
        if (peak_bits((const any_u32 *)(const void *)in, count) >= 0x477ff000u) return false;
        encode_fp16(c, (any_u16 *)(void *)codes, in, count);
        return true;
    default:
        if (!code_by_steps(&c, kind, header, in, count, bits == 8 ? 255 : 65535)) return false;
        if (bits == 8) encode_step8(c, codes, in, count);
        else encode_step16(c, (any_u16 *)(void *)codes, in, count);
        return true;
    }
}

INLINE void decode_block(uint8_t kind, uint8_t bits, any_f32 *out, const uint8_t *header, const uint8_t *codes,
                         size_t count, bool add) {
    const float first = get_f32(header);
    const any_u16 *wide = (const any_u16 *)(const void *)codes;
    switch (kind) {
    case pcclQuantInt8: decode_int8(out, codes, count, 0, first, add); break;
    case pcclQuantInt4: decode_int4(out, codes, count, first, add); break;
    case pcclQuantFp8E4M3: decode_e4m3(out, codes, count, 0, first, add); break;
    case pcclQuantE3M0: decode_e3m0(out, codes, count, first, add); break;
    case pcclQuantIntSum: decode_int16(out, wide, count, 0, shared_scale(bits, false), add); break;
    case pcclQuantBf16: decode_bf16(out, wide, count, 0, 0, add); break;
    case pcclQuantFp16: decode_fp16(out, wide, count, 0, 0, add); break;
    default:
        if (bits == 8) decode_step8(out, codes, count, first, get_f32(header + 4), add);
        else decode_step16(out, wide, count, first, get_f32(header + 4), add);
    }
}

/* Blocks -------------------------------------------------------------------------------------------------------- */

struct encoding {
    const struct pc_codec *codec;
    struct layout layout;
    pcclDataType_t dtype;
    uint32_t seed;
};

/* Blocks of elems float32 each, one after the other; all but a last one are full. */
struct run {
    uint8_t *header, *codes;
    any_f32 *values;
    size_t first, blocks, elems; /* number of the first element */
};

struct decoding {
    const struct pc_codec *codec;
    struct layout layout;
    pcclDataType_t dtype;
};

/* Elements as float32; those beyond its range become infinite, and their block is not coded. */
static void narrow(float *out, const uint8_t *in, pcclDataType_t dtype, size_t count) {
    if (dtype == pcclFloat) {
        memcpy(out, in, count * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++) out[i] = (float)((const any_f64 *)(const void *)in)[i];
}

static bool encode_top_k(uint8_t *header, uint8_t *codes, const float *in, size_t count) {
    float magnitudes[2];
    if (peak_bits((const any_u32 *)(const void *)in, count) >= 0x7f800000u) return false;
    pc_top_k_encode(magnitudes, codes, in, count);
    put_f32(header, magnitudes[0]);
    put_f32(header + 4, magnitudes[1]);
    return true;
}

static void decode_top_k(float *out, const uint8_t *header, const uint8_t *codes, size_t count) {
    const float magnitudes[2] = {get_f32(header), get_f32(header + 4)};
    pc_top_k_decode(out, magnitudes, codes, count);
}

/* out[i] = or += in[i] */
static void widen(uint8_t *out, const float *in, pcclDataType_t dtype, size_t count, bool add) {
    any_f64 *wide = (any_f64 *)(void *)out;
    any_f32 *same = (any_f32 *)(void *)out;
    if (dtype == pcclDouble) {
        for (size_t i = 0; i < count; i++) wide[i] = add ? wide[i] + (double)in[i] : (double)in[i];
    } else {
        for (size_t i = 0; i < count; i++) same[i] = add ? same[i] + in[i] : in[i];
    }
}

static void take_raw(uint8_t *out, const uint8_t *in, pcclDataType_t dtype, size_t count, bool add) {
    if (!add) {
        memcpy(out, in, count * pc_dtype_bytes(dtype));
    } else if (dtype == pcclDouble) {
        for (size_t i = 0; i < count; i++) ((any_f64 *)(void *)out)[i] += ((const any_f64 *)(const void *)in)[i];
    } else {
        for (size_t i = 0; i < count; i++) ((any_f32 *)(void *)out)[i] += ((const any_f32 *)(const void *)in)[i];
    }
}

/* Levels -------------------------------------------------------------------------------------------------------- */

/* Codes blocks of float32 until one cannot be; returns how many were coded. kind and stochastic are constants. */
INLINE size_t encode_run(uint8_t kind, bool stochastic, const struct encoding *e, struct run run) {
    const struct layout *l = &e->layout;
    for (size_t done = 0; done < run.blocks; done++) {
        const size_t first = run.first + done * l->block;
        const struct coding c = {.stochastic = stochastic, .seed = e->seed, .first = (uint32_t)first};
        if (!encode_block(kind, e->codec->bits, c, run.header + done * l->header, run.codes + done * l->codes,
                          run.values + done * l->block, run.elems)) {
            return done;
        }
    }
    return run.blocks;
}

INLINE void decode_run(uint8_t kind, const struct decoding *d, struct run run, bool add) {
    const struct layout *l = &d->layout;
    for (size_t done = 0; done < run.blocks; done++) {
        decode_block(kind, d->codec->bits, run.values + done * l->block, run.header + done * l->header,
                     run.codes + done * l->codes, run.elems, add);
    }
}

#define FOR_EACH_KIND(X)                                                                                               \
    X(pcclQuantMinMax)                                                                                                 \
    X(pcclQuantZeroPointScale)                                                                                         \
    X(pcclQuantBf16)                                                                                                   \
    X(pcclQuantFp16)                                                                                                   \
    X(pcclQuantInt8)                                                                                                   \
    X(pcclQuantInt4)                                                                                                   \
    X(pcclQuantFp8E4M3)                                                                                                \
    X(pcclQuantE3M0)                                                                                                   \
    X(pcclQuantIntSum)

#define ENCODE_KIND(kind)                                                                                              \
    case kind: return e->codec->stochastic ? encode_run(kind, true, e, run) : encode_run(kind, false, e, run);
#define DECODE_KIND(kind)                                                                                              \
    case kind:                                                                                                         \
        if (add) decode_run(kind, d, run, true);                                                                       \
        else decode_run(kind, d, run, false);                                                                          \
        break;

/* The functions differ by their attribute alone. Wider registers than AVX2's gain nothing: blocks are short. */
#define DEFINE_LEVEL(level, attribute)                                                                                 \
    attribute static size_t encode_##level(const struct encoding *e, struct run run) {                                 \
        switch (e->codec->kind) { FOR_EACH_KIND(ENCODE_KIND) }                                                         \
        return 0;                                                                                                      \
    }                                                                                                                  \
    attribute static void decode_##level(const struct decoding *d, struct run run, bool add) {                         \
        switch (d->codec->kind) { FOR_EACH_KIND(DECODE_KIND) }                                                         \
    }

DEFINE_LEVEL(portable, )
#if PC_SIMD_X86
DEFINE_LEVEL(avx2, __attribute__((target(PC_SIMD_TARGET_AVX2))))
#endif

static size_t encode_floats(const struct encoding *e, struct run run) {
#if PC_SIMD_X86
    if (pc_simd_level() >= PC_SIMD_AVX2) return encode_avx2(e, run);
#endif
    return encode_portable(e, run);
}

static void decode_floats(const struct decoding *d, struct run run, bool add) {
#if PC_SIMD_X86
    if (pc_simd_level() >= PC_SIMD_AVX2) {
        decode_avx2(d, run, add);
        return;
    }
#endif
    decode_portable(d, run, add);
}

/* Walks --------------------------------------------------------------------------------------------------------- */

/* Blocks from element at on that can go to the kernels at once: all full ones, or the last one alone. */
static size_t run_elems(const struct layout *l, size_t at, size_t count, size_t *blocks) {
    *blocks = (count - at) / l->block;
    if (*blocks > 0) return l->block;
    *blocks = 1;
    return count - at;
}

/* One block that is not float32, or whose codec is not element by element. */
static bool encode_other(const struct encoding *e, struct run run, const uint8_t *in) {
    float scratch[PC_CODEC_BLOCK_MAX];
    if (wide_steps(e->codec, e->dtype)) {
        return encode_wide_steps(e->codec, e->dtype, run.header, run.codes, in, run.elems, e->seed, (uint32_t)run.first);
    }
    narrow(scratch, in, e->dtype, run.elems);
    if (e->codec->kind == pcclQuantTopK) return encode_top_k(run.header, run.codes, scratch, run.elems);
    run.values = scratch;
    return encode_floats(e, run) == 1;
}

size_t pc_codec_encode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *in, size_t count,
                       uint32_t seed) {
    assert(pc_codec_valid(codec) && (dtype == pcclFloat || dtype == pcclDouble));
    const struct encoding e = {codec, layout_of(codec, dtype, count), dtype, seed};
    const struct layout *l = &e.layout;
    const bool floats = dtype == pcclFloat && codec->kind != pcclQuantTopK && !wide_steps(codec, dtype);
    uint8_t *header = out, *codes = header + l->codes_at, *raw = header + l->raw_at;
    for (size_t at = 0; at < count;) {
        const uint8_t *from = (const uint8_t *)in + at * l->elem;
        struct run run = {.header = header, .codes = codes, .values = (any_f32 *)(uintptr_t)from, .first = at};
        run.elems = run_elems(l, at, count, &run.blocks);
        if (!floats) run.blocks = 1;
        size_t done = floats ? encode_floats(&e, run) : encode_other(&e, run, from);
        if (done < run.blocks) {
            if (codec->finite_only) return 0;
            from += done * run.elems * l->elem;
            mark_raw(l, header + done * l->header);
            memset(codes + done * l->codes, 0, code_bytes(codec, run.elems));
            memcpy(raw, from, run.elems * l->elem);
            raw += run.elems * l->elem;
            done++;
        }
        header += done * l->header;
        codes += done * l->codes;
        at += done * run.elems;
    }
    return (size_t)(raw - (uint8_t *)out);
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

static void decode_other(const struct decoding *d, struct run run, uint8_t *out, bool add) {
    float scratch[PC_CODEC_BLOCK_MAX];
    if (wide_steps(d->codec, d->dtype)) {
        decode_wide_steps(d->codec, d->dtype, out, run.header, run.codes, run.elems, add);
        return;
    }
    run.values = scratch;
    if (d->codec->kind != pcclQuantTopK) decode_floats(d, run, false);
    else decode_top_k(scratch, run.header, run.codes, run.elems);
    widen(out, scratch, d->dtype, run.elems, add);
}

void pc_codec_decode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *in, size_t len_bytes,
                     size_t count, bool add) {
    assert(pc_codec_valid(codec) && (dtype == pcclFloat || dtype == pcclDouble));
    const struct decoding d = {codec, layout_of(codec, dtype, count), dtype};
    const struct layout *l = &d.layout;
    const bool floats = dtype == pcclFloat && codec->kind != pcclQuantTopK && !wide_steps(codec, dtype);
    const bool any_raw = len_bytes > l->raw_at;
    uint8_t *header = (uint8_t *)(uintptr_t)in, *codes = header + l->codes_at, *raw = header + l->raw_at;
    for (size_t at = 0; at < count;) {
        uint8_t *to = (uint8_t *)out + at * l->elem;
        struct run run = {.header = header, .codes = codes, .values = (any_f32 *)(void *)to, .first = at};
        run.elems = run_elems(l, at, count, &run.blocks);
        if (!floats || any_raw) run.blocks = 1;
        if (any_raw && marked_raw(l, header)) {
            take_raw(to, raw, dtype, run.elems, add);
            raw += run.elems * l->elem;
        } else if (floats) {
            decode_floats(&d, run, add);
        } else {
            decode_other(&d, run, to, add);
        }
        header += run.blocks * l->header;
        codes += run.blocks * l->codes;
        at += run.blocks * run.elems;
    }
}

void pc_codec_left_out(const struct pc_codec *codec, pcclDataType_t dtype, void *values, const void *coded,
                       size_t len_bytes, size_t count) {
    any_f32 *single = (any_f32 *)values;
    any_f64 *wide = (any_f64 *)values;
    const bool floats = dtype == pcclFloat;
    for (size_t i = 0; i < count; i++) {
        if (floats) single[i] = -single[i];
        else wide[i] = -wide[i];
    }
    pc_codec_decode(codec, dtype, values, coded, len_bytes, count, true);
    for (size_t i = 0; i < count; i++) {
        if (floats) single[i] = isfinite(single[i]) ? -single[i] : 0.0f;
        else wide[i] = isfinite(wide[i]) ? -wide[i] : 0.0;
    }
}
