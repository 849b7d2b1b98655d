/*
 * K2: float16 and bfloat16 to and from float32, with integer operations and additions only. No branch depends on the
 * value, so loops over these functions become vector code, and every variant of such a loop computes the same bits as
 * the processors' own conversions: rounding to nearest even, subnormals kept, a NaN quieted and its upper payload kept.
 * Needs the default rounding mode; does not care whether the thread flushes float32 subnormals to zero.
 */
#ifndef PC_HALF_H
#define PC_HALF_H

#include <stdint.h>
#include <string.h>

/* Must become part of the caller's loop, and so of the caller's SIMD target, at any optimisation level. */
#define PC_HALF_INLINE static inline __attribute__((always_inline, unused))

PC_HALF_INLINE float pc_half_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

PC_HALF_INLINE uint32_t pc_half_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/*
 * x < limit ? below : other, for x and limit under 2^31. By mask: given ?: or a comparison, the compiler may move the
 * floating-point operation behind one of the values into a branch, since it might raise a flag, and could then not make
 * vector code of the loop.
 */
PC_HALF_INLINE uint32_t pc_half_if_below(uint32_t x, uint32_t limit, uint32_t below, uint32_t other) {
    uint32_t mask = 0u - ((x - limit) >> 31);
    return (below & mask) | (other & ~mask);
}

PC_HALF_INLINE float pc_half_widen_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    uint32_t shifted = magnitude << 13; /* exponent and mantissa where float32 has them, the exponent 112 too small */
    uint32_t normal = shifted + (112u << 23);
    /* Subnormal: with the exponent of 2^-14 the mantissa reads as 2^-14 + value; taking 2^-14 away is exact. */
    float two_pow_minus_14 = pc_half_float_of_bits(113u << 23);
    uint32_t subnormal = pc_half_bits_of_float(pc_half_float_of_bits(shifted + (113u << 23)) - two_pow_minus_14);
    uint32_t infinite = shifted | 0x7f800000u | (magnitude > 0x7c00u ? 0x00400000u : 0u);
    uint32_t finite = pc_half_if_below(magnitude, 0x0400u, subnormal, normal);
    return pc_half_float_of_bits(sign | pc_half_if_below(magnitude, 0x7c00u, finite, infinite));
}

PC_HALF_INLINE uint16_t pc_half_narrow_f16(float value) {
    uint32_t bits = pc_half_bits_of_float(value);
    uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    /* Normal: half a unit in the last kept place, less one unless that place is odd, carries exactly when due. */
    uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    /* Subnormal: the last place of 0.5 is 2^-24, which is also float16's; so the addition rounds to that place. */
    uint32_t subnormal = pc_half_bits_of_float(pc_half_float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t finite = pc_half_if_below(magnitude, 113u << 23, subnormal, normal);
    uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
    uint32_t infinite = pc_half_if_below(magnitude, 0x7f800001u, 0x7c00u, nan);
    /* 65520 = 0x477ff000 is half way to the first value beyond the range, and goes to even: infinity. */
    return (uint16_t)(sign | pc_half_if_below(magnitude, 0x477ff000u, finite, infinite));
}

PC_HALF_INLINE float pc_half_widen_bf16(uint16_t half) {
    uint32_t quiet = (half & 0x7fffu) > 0x7f80u ? 0x00400000u : 0u;
    return pc_half_float_of_bits(((uint32_t)half << 16) | quiet);
}

PC_HALF_INLINE uint16_t pc_half_narrow_bf16(float value) {
    uint32_t bits = pc_half_bits_of_float(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t nan = (bits >> 16) | 0x0040u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#endif
