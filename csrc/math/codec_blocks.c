/*
 * Blocks of float32: which loop codes them, and once for each SIMD level. Pure functions of their arguments, on the caller's
 * thread, complete when they return. Why their bits don't depend on the level is in codec_loops.h.
 */
#include "math/codec_blocks.h"

#include "math/codec_avx2.h"
#include "math/codec_header.h"
#include "math/codec_loops.h"
#include "math/simd.h"

/* One block of float32 ------------------------------------------------------------------------------------------ */

/* peak_bits: of the block. What its header and codes stand for is 0 where it counts as constant 0. */
INLINE bool code_by_peak_bits(struct coding *c, uint8_t *header, uint32_t peak_bits, int32_t most, float in_scale) {
    const float peak = pc_half_float_of_bits(peak_bits);
    if (!(peak < PC_CODEC_HUGE)) return false;
    const bool tiny = peak < PC_CODEC_TINY;
    pc_put_f32(header, tiny ? 0.0f : peak / in_scale);
    c->factor = tiny ? 0.0f : in_scale / peak;
    c->least = -most;
    c->most = most;
    return true;
}

INLINE bool code_by_peak(struct coding *c, uint8_t *header, const any_f32 *in, size_t count, int32_t most,
                         float in_scale) {
    return code_by_peak_bits(c, header, peak_bits((const any_u32 *)(const void *)in, count), most, in_scale);
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
    pc_put_f32(header, c->offset);
    pc_put_f32(header + 4, step);
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
    pc_put_f32(header, 0.0f);
    return peak < PC_CODEC_HUGE && peak * c->factor <= (float)INT16_MAX;
}

/* Magnitudes from which on bfloat16 rounds to infinity, and from which on it might. */
#define BF16_BEYOND 0x7f7f8000u
#define BF16_MAYBE 0x7f7f0001u

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
    case pcclQuantBf16:
        pc_put_f32(header, 0.0f);
        if (peak_bits((const any_u32 *)(const void *)in, count) >= (c.stochastic ? BF16_MAYBE : BF16_BEYOND)) return false;
        encode_bf16(c, (any_u16 *)(void *)codes, in, count);
        return true;
    case pcclQuantFp16:
        pc_put_f32(header, 0.0f);
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

INLINE void decode_block(uint8_t kind, uint8_t bits, any_f32 *out, const any_f32 *base, const uint8_t *header,
                         const uint8_t *codes, size_t count) {
    const float first = pc_get_f32(header);
    const any_u16 *wide = (const any_u16 *)(const void *)codes;
    switch (kind) {
    case pcclQuantInt8: decode_int8(out, base, codes, count, 0, first); break;
    case pcclQuantInt4: decode_int4(out, base, codes, count, first); break;
    case pcclQuantFp8E4M3: decode_e4m3(out, base, codes, count, 0, first); break;
    case pcclQuantE3M0: decode_e3m0(out, base, codes, count, first); break;
    case pcclQuantIntSum: decode_int16(out, base, wide, count, 0, shared_scale(bits, false)); break;
    case pcclQuantBf16: decode_bf16(out, base, wide, count, 0, 0); break;
    case pcclQuantFp16: decode_fp16(out, base, wide, count, 0, 0); break;
    default:
        if (bits == 8) decode_step8(out, base, codes, count, first, pc_get_f32(header + 4));
        else decode_step16(out, base, wide, count, first, pc_get_f32(header + 4));
    }
}

/* Levels -------------------------------------------------------------------------------------------------------- */

/* kind and stochastic are constants where it is inlined. */
INLINE size_t encode_blocks(uint8_t kind, bool stochastic, const struct pc_codec_blocks *b, const any_f32 *in,
                            uint32_t seed) {
    for (size_t i = 0; i < b->count; i++, in += b->elems) {
        const struct coding c = {.stochastic = stochastic, .seed = seed, .first = b->first + (uint32_t)(i * b->elems)};
        if (!encode_block(kind, b->codec->bits, c, b->header + i * b->header_bytes, b->codes + i * b->code_bytes, in,
                          b->elems)) {
            return i;
        }
    }
    return b->count;
}

/* base is NULL, or is known not to be, where it is inlined. */
INLINE void decode_blocks(uint8_t kind, const struct pc_codec_blocks *b, any_f32 *out, const any_f32 *base) {
    for (size_t i = 0; i < b->count; i++) {
        const size_t at = i * b->elems;
        decode_block(kind, b->codec->bits, out + at, base == NULL ? NULL : base + at, b->header + i * b->header_bytes,
                     b->codes + i * b->code_bytes, b->elems);
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

#if PC_SIMD_X86
static bool by_hand(const struct pc_codec *codec) {
    const bool written = codec->kind == pcclQuantInt8 || codec->kind == pcclQuantInt4 || codec->kind == pcclQuantBf16;
    return written && !codec->stochastic;
}

PC_CODEC_AVX2 size_t encode_bf16_avx2(const struct pc_codec_blocks *b, const any_f32 *in) {
    const struct coding c = {.stochastic = false};
    for (size_t i = 0; i < b->count; i++, in += b->elems) {
        pc_put_f32(b->header + i * b->header_bytes, 0.0f);
        any_u16 *codes = (any_u16 *)(void *)(b->codes + i * b->code_bytes);
        if (pc_codec_bf16_avx2(c, codes, in, b->elems) >= BF16_BEYOND) return i;
    }
    return b->count;
}

/* The peak of the next block is looked for first: while it is, the scale of this one is computed, and memory fetched. */
PC_CODEC_AVX2 size_t encode_whole_avx2(const struct pc_codec_blocks *b, const any_f32 *in) {
    const bool nibbles = b->codec->kind == pcclQuantInt4;
    struct coding c = {.stochastic = false};
    uint32_t peak = pc_codec_peak_avx2(in, b->elems);
    for (size_t i = 0; i < b->count; i++, in += b->elems) {
        const uint32_t next = i + 1 < b->count ? pc_codec_peak_avx2(in + b->elems, b->elems) : 0;
        uint8_t *header = b->header + i * b->header_bytes, *codes = b->codes + i * b->code_bytes;
        if (!code_by_peak_bits(&c, header, peak, nibbles ? 7 : 127, nibbles ? 7.0f : 127.0f)) return i;
        if (nibbles) pc_codec_int4_avx2(c, codes, in, b->elems);
        else pc_codec_int8_avx2(c, codes, in, b->elems);
        peak = next;
    }
    return b->count;
}
#endif

#define ENCODE_KIND(kind)                                                                                              \
    case kind: return b->codec->stochastic ? encode_blocks(kind, true, b, in, seed)                                    \
                                           : encode_blocks(kind, false, b, in, seed);
#define DECODE_KIND(kind)                                                                                              \
    case kind:                                                                                                         \
        if (base == NULL) decode_blocks(kind, b, out, NULL);                                                           \
        else decode_blocks(kind, b, out, base);                                                                        \
        break;

/* The functions differ by their attribute alone. Wider registers than AVX2's gain nothing: blocks are short. */
#define DEFINE_LEVEL(level, attribute)                                                                                 \
    attribute static size_t encode_##level(const struct pc_codec_blocks *b, const any_f32 *in, uint32_t seed) {        \
        switch (b->codec->kind) { FOR_EACH_KIND(ENCODE_KIND) }                                                         \
        return 0;                                                                                                      \
    }                                                                                                                  \
    attribute static void decode_##level(const struct pc_codec_blocks *b, any_f32 *out, const any_f32 *base) {         \
        switch (b->codec->kind) { FOR_EACH_KIND(DECODE_KIND) }                                                         \
    }

DEFINE_LEVEL(portable, )
#if PC_SIMD_X86
DEFINE_LEVEL(avx2, __attribute__((target(PC_SIMD_TARGET_AVX2))))
#endif

size_t pc_codec_blocks_encode(const struct pc_codec_blocks *blocks, const any_f32 *in, uint32_t seed) {
#if PC_SIMD_X86
    if (pc_simd_level() >= PC_SIMD_AVX2) {
        if (!by_hand(blocks->codec)) return encode_avx2(blocks, in, seed);
        return blocks->codec->kind == pcclQuantBf16 ? encode_bf16_avx2(blocks, in) : encode_whole_avx2(blocks, in);
    }
#endif
    return encode_portable(blocks, in, seed);
}

void pc_codec_blocks_decode(const struct pc_codec_blocks *blocks, any_f32 *out, const any_f32 *base) {
#if PC_SIMD_X86
    if (pc_simd_level() >= PC_SIMD_AVX2) {
        decode_avx2(blocks, out, base);
        return;
    }
#endif
    decode_portable(blocks, out, base);
}

uint32_t pc_codec_peak_bits(const any_f32 *in, size_t count) {
    return peak_bits((const any_u32 *)(const void *)in, count);
}
