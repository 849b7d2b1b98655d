/*
 * K2, private to the codecs: the codes of one block, all elements at once. Inlined into the entry functions of
 * codec_blocks.c, and compiled there for each SIMD level.
 *
 * Why the bits don't depend on the level: every operation is one that IEEE 754 defines to the bit, the maximum and minimum
 * of a block are taken over integers that are ordered as the floats are, and nothing is contracted. Rounding to a whole
 * number is done by adding 1.5 * 2^23, whose last place is 1; needs the default rounding mode. No subnormal enters or
 * leaves an operation whose result matters, so threads that flush them get the same bytes.
 */
#ifndef PC_CODEC_LOOPS_H
#define PC_CODEC_LOOPS_H

#include "math/half.h"
#include "math/loops.h"

#include <stddef.h>

/* Between them no product or inverse of a code overflows or is subnormal. */
#define PC_CODEC_TINY 0x1p-100f
#define PC_CODEC_HUGE 0x1p126f

/* The bits of what has the largest magnitude, without its sign: 0x7f800000 and more are not finite. */
INLINE uint32_t peak_bits(const any_u32 *in, size_t count) {
    uint32_t peak = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t magnitude = in[i] & 0x7fffffffu;
        peak = magnitude > peak ? magnitude : peak;
    }
    return peak;
}

/* Integers in the order of the floats whose bits they are, and back. */
INLINE int32_t ordered(int32_t bits) {
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

INLINE void range_bits(const any_i32 *in, size_t count, int32_t *least, int32_t *most) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (size_t i = 0; i < count; i++) {
        const int32_t value = ordered(in[i]);
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    *least = low;
    *most = high;
}

/* Random bits for an element: a mixing function of its own number. */
INLINE uint32_t noise(uint32_t seed, uint32_t index) {
    uint32_t x = index * 0x9e3779b9u + seed;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* In (-0.5, 0.5): a whole number plus it is rounded to that number. */
INLINE float dither(uint32_t bits) {
    return (float)(int32_t)(bits >> 16) * 0x1p-16f + (0x1p-17f - 0.5f);
}

/* The nearest whole number, for magnitudes under 2^22. */
INLINE int32_t nearest(float value) {
    return (int32_t)pc_half_bits_of_float(value + 0x1.8p23f) - 0x4b400000;
}

INLINE int32_t clamp(int32_t value, int32_t low, int32_t high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

/* What one block is coded with. stochastic is a constant wherever this is inlined. */
struct coding {
    float factor, offset; /* code = (element - offset) * factor */
    int32_t least, most; /* codes */
    bool stochastic;
    uint32_t seed, first; /* number of the first element */
};

INLINE int32_t whole_code(struct coding c, float value, size_t i) {
    const float scaled = value * c.factor;
    if (!c.stochastic) return nearest(scaled);
    return clamp(nearest(scaled + dither(noise(c.seed, c.first + (uint32_t)i))), c.least, c.most);
}

/* int8 ---------------------------------------------------------------------------------------------------------- */

INLINE void encode_int8(struct coding c, any_u8 *out, const any_f32 *in, size_t count) {
    INDEPENDENT
    for (size_t i = 0; i < count; i++) out[i] = (uint8_t)whole_code(c, in[i], i);
}

INLINE float decoded_int8(uint8_t code, float scale) {
    return (float)(int8_t)code * scale;
}

/* int4 and e3m0: two to a byte ---------------------------------------------------------------------------------- */

INLINE uint32_t e3m0_code(struct coding c, float value, size_t i) {
    const float scaled = value * c.factor;
    const uint32_t bits = pc_half_bits_of_float(scaled), magnitude = bits & 0x7fffffffu;
    const uint32_t random = c.stochastic ? noise(c.seed, c.first + (uint32_t)i) : 0;
    /* Between two powers of two the mantissa says how far it is from the lower one. */
    const uint32_t rounded = (magnitude + (c.stochastic ? random & 0x7fffffu : 0x400000u)) >> 23;
    const uint32_t large = rounded > 127 ? 7 : rounded - 120;
    const float in_smallest = pc_half_float_of_bits(magnitude) * 64.0f;
    const uint32_t below = c.stochastic ? (uint32_t)nearest(in_smallest + dither(random)) & 1u
                                        : pc_half_if_below(magnitude, 0x3c000000u, 0, 1);
    return pc_half_if_below(magnitude, 0x3c800000u, below, large) | ((bits >> 28) & 8u);
}

INLINE float decoded_e3m0(uint32_t code, float scale) {
    const uint32_t level = code & 7u;
    const uint32_t magnitude = pc_half_if_below(level, 1, 0, (level + 120u) << 23);
    return pc_half_float_of_bits(magnitude | (code & 8u) << 28) * scale;
}

INLINE uint32_t int4_code(struct coding c, float value, size_t i) {
    return (uint32_t)whole_code(c, value, i) & 15u;
}

INLINE float decoded_int4(uint32_t code, float scale) {
    return (float)((int32_t)(code << 28) >> 28) * scale;
}

#define DEFINE_NIBBLES(name)                                                                                           \
    INLINE void encode_##name(struct coding c, any_u8 *out, const any_f32 *in, size_t count) {                         \
        const size_t half = (count + 1) / 2, pairs = count / 2;                                                        \
        INDEPENDENT                                                                                                    \
        for (size_t i = 0; i < pairs; i++) {                                                                           \
            out[i] = (uint8_t)(name##_code(c, in[i], i) | name##_code(c, in[i + half], i + half) << 4);                \
        }                                                                                                              \
        if (pairs < half) out[pairs] = (uint8_t)name##_code(c, in[pairs], pairs);                                      \
    }                                                                                                                  \
    INLINE void decode_##name(any_f32 *out, const any_f32 *base, const any_u8 *in, size_t count, float scale) {        \
        const size_t half = (count + 1) / 2, pairs = count / 2;                                                        \
        INDEPENDENT                                                                                                    \
        for (size_t i = 0; i < pairs; i++) {                                                                           \
            const float low = decoded_##name(in[i] & 15u, scale), high = decoded_##name(in[i] >> 4, scale);            \
            out[i] = base != NULL ? base[i] + low : low;                                                               \
            out[i + half] = base != NULL ? base[i + half] + high : high;                                               \
        }                                                                                                              \
        if (pairs == half) return;                                                                                     \
        const float last = decoded_##name(in[pairs] & 15u, scale);                                                     \
        out[pairs] = base != NULL ? base[pairs] + last : last;                                                         \
    }

DEFINE_NIBBLES(int4)
DEFINE_NIBBLES(e3m0)

/* fp8_e4m3 ------------------------------------------------------------------------------------------------------ */

INLINE uint8_t e4m3_code(struct coding c, float value, size_t i) {
    const uint32_t bits = pc_half_bits_of_float(value * c.factor), magnitude = bits & 0x7fffffffu;
    const uint32_t random = c.stochastic ? noise(c.seed, c.first + (uint32_t)i) : 0;
    const uint32_t up = c.stochastic ? random & 0xfffffu : 0x7ffffu + ((magnitude >> 20) & 1u);
    const uint32_t normal = ((magnitude + up) >> 20) - (120u << 3);
    /* Under 2^-6 the step is 2^-9. */
    const float steps = pc_half_float_of_bits(magnitude) * 512.0f;
    const uint32_t subnormal = (uint32_t)nearest(c.stochastic ? steps + dither(random) : steps);
    const uint32_t code = pc_half_if_below(magnitude, 121u << 23, subnormal, normal);
    return (uint8_t)((code > 0x7eu ? 0x7eu : code) | ((bits >> 24) & 0x80u));
}

INLINE float decoded_e4m3(uint8_t code, float scale) {
    const uint32_t magnitude = code & 0x7fu;
    const uint32_t normal = (magnitude << 20) + (120u << 23);
    const uint32_t subnormal = pc_half_bits_of_float((float)(int32_t)(magnitude & 7u) * 0x1p-9f);
    const uint32_t bits = pc_half_if_below(magnitude, 8, subnormal, normal);
    return pc_half_float_of_bits(bits | (code & 0x80u) << 24) * scale;
}

INLINE void encode_e4m3(struct coding c, any_u8 *out, const any_f32 *in, size_t count) {
    INDEPENDENT
    for (size_t i = 0; i < count; i++) out[i] = e4m3_code(c, in[i], i);
}

/* bf16 and fp16 ------------------------------------------------------------------------------------------------- */

INLINE uint16_t bf16_code(struct coding c, float value, size_t i) {
    if (!c.stochastic) return pc_half_narrow_bf16(value);
    return (uint16_t)((pc_half_bits_of_float(value) + (noise(c.seed, c.first + (uint32_t)i) & 0xffffu)) >> 16);
}

INLINE uint16_t fp16_code(struct coding c, float value, size_t i) {
    if (!c.stochastic) return pc_half_narrow_f16(value);
    const uint32_t bits = pc_half_bits_of_float(value), magnitude = bits & 0x7fffffffu;
    const uint32_t random = noise(c.seed, c.first + (uint32_t)i);
    const uint32_t normal = (magnitude - (112u << 23) + (random & 0x1fffu)) >> 13;
    /* Under 2^-14 the step is 2^-24. */
    const uint32_t subnormal = (uint32_t)nearest(pc_half_float_of_bits(magnitude) * 0x1p24f + dither(random));
    const uint32_t code = pc_half_if_below(magnitude, 113u << 23, subnormal, normal);
    return (uint16_t)((code > 0x7bffu ? 0x7bffu : code) | ((bits >> 16) & 0x8000u));
}

/* min_max and zero_point with 8 and 16 bits --------------------------------------------------------------------- */

INLINE int32_t step_code(struct coding c, float value, size_t i) {
    const float steps = (value - c.offset) * c.factor;
    const float moved = c.stochastic ? steps + dither(noise(c.seed, c.first + (uint32_t)i)) : steps;
    return clamp(nearest(moved), c.least, c.most);
}

INLINE float decoded_step(uint32_t code, float offset, float step) {
    return offset + (float)(int32_t)code * step;
}

/* Loops of one code an element. */
#define DEFINE_ENCODE(name, type, code)                                                                                \
    INLINE void encode_##name(struct coding c, any_##type *out, const any_f32 *in, size_t count) {                     \
        INDEPENDENT                                                                                                    \
        for (size_t i = 0; i < count; i++) out[i] = (any_##type)(code);                                                \
    }
#define DEFINE_DECODE(name, type, value)                                                                               \
    INLINE void decode_##name(any_f32 *out, const any_f32 *base, const any_##type *in, size_t count, float offset,     \
                              float scale) {                                                                           \
        (void)offset, (void)scale;                                                                                     \
        INDEPENDENT                                                                                                    \
        for (size_t i = 0; i < count; i++) {                                                                           \
            const float decoded = value;                                                                               \
            out[i] = base != NULL ? base[i] + decoded : decoded;                                                       \
        }                                                                                                              \
    }

DEFINE_ENCODE(int16, u16, whole_code(c, in[i], i))
DEFINE_ENCODE(bf16, u16, bf16_code(c, in[i], i))
DEFINE_ENCODE(fp16, u16, fp16_code(c, in[i], i))
DEFINE_ENCODE(step8, u8, step_code(c, in[i], i))
DEFINE_ENCODE(step16, u16, step_code(c, in[i], i))

DEFINE_DECODE(int8, u8, decoded_int8(in[i], scale))
DEFINE_DECODE(int16, u16, (float)(int16_t)in[i] * scale)
DEFINE_DECODE(e4m3, u8, decoded_e4m3(in[i], scale))
DEFINE_DECODE(bf16, u16, pc_half_float_of_bits((uint32_t)in[i] << 16))
DEFINE_DECODE(fp16, u16, pc_half_widen_f16(in[i]))
DEFINE_DECODE(step8, u8, decoded_step(in[i], offset, scale))
DEFINE_DECODE(step16, u16, decoded_step(in[i], offset, scale))

#endif
