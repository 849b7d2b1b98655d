/*
 * K2, private to codec_blocks.c: loops of codec_loops.h by hand, for AVX2. The compilers make vector code of those too,
 * but narrow the codes with two to three times the instructions; here each is narrowed by the instructions made for it.
 * The same bytes: roundings are those of the processor's mode either way, and no code is out of range.
 */
#ifndef PC_CODEC_AVX2_H
#define PC_CODEC_AVX2_H

#include "math/codec_loops.h"
#include "math/simd.h"

#if PC_SIMD_X86
#include <immintrin.h>

#define PC_CODEC_AVX2 static inline __attribute__((target(PC_SIMD_TARGET_AVX2)))

PC_CODEC_AVX2 uint32_t pc_codec_most_avx2(__m256i words) {
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(most);
}

/* 16 elements that are read soon. The processor itself looks ahead too little: it stops whenever the codes are made. */
PC_CODEC_AVX2 void pc_codec_fetch_avx2(const any_f32 *in) {
    enum { AHEAD_BYTES = 2048 };
    _mm_prefetch((const char *)((uintptr_t)in + AHEAD_BYTES), _MM_HINT_T0);
}

/* The larger magnitude, lane by lane. */
PC_CODEC_AVX2 __m256i pc_codec_larger_avx2(__m256i peak, const any_f32 *in) {
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)in);
    return _mm256_max_epu32(peak, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
}

PC_CODEC_AVX2 uint32_t pc_codec_peak_avx2(const any_f32 *in, size_t count) {
    __m256i a = _mm256_setzero_si256(), b = a;
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        pc_codec_fetch_avx2(in + i);
        pc_codec_fetch_avx2(in + i + 16);
        a = pc_codec_larger_avx2(pc_codec_larger_avx2(a, in + i), in + i + 8);
        b = pc_codec_larger_avx2(pc_codec_larger_avx2(b, in + i + 16), in + i + 24);
    }
    const uint32_t most = pc_codec_most_avx2(_mm256_max_epu32(a, b));
    const uint32_t rest = peak_bits((const any_u32 *)(const void *)(in + i), count - i);
    return rest > most ? rest : most;
}

/* The codes of 8 elements by their scale. */
PC_CODEC_AVX2 __m256i pc_codec_whole_avx2(const any_f32 *in, __m256 factor) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps((const float *)in), factor));
}

/* 32 codes to bytes. The packing instructions work within 16 bytes: the last one brings the parts into order. */
PC_CODEC_AVX2 __m256i pc_codec_bytes_avx2(const any_f32 *in, __m256 factor) {
    const __m256i a = pc_codec_whole_avx2(in, factor), b = pc_codec_whole_avx2(in + 8, factor);
    const __m256i c = pc_codec_whole_avx2(in + 16, factor), d = pc_codec_whole_avx2(in + 24, factor);
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

PC_CODEC_AVX2 void pc_codec_int8_avx2(struct coding c, any_u8 *out, const any_f32 *in, size_t count) {
    const __m256 factor = _mm256_set1_ps(c.factor);
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        _mm256_storeu_si256((__m256i *)(void *)(out + i), pc_codec_bytes_avx2(in + i, factor));
    }
    encode_int8(c, out + i, in + i, count - i);
}

PC_CODEC_AVX2 void pc_codec_int4_avx2(struct coding c, any_u8 *out, const any_f32 *in, size_t count) {
    const __m256 factor = _mm256_set1_ps(c.factor);
    const __m256i low = _mm256_set1_epi8(15);
    const size_t half = count / 2;
    if (count % 64 != 0) { /* not a whole block */
        encode_int4(c, out, in, count);
        return;
    }
    for (size_t i = 0; i < half; i += 32) {
        const __m256i a = _mm256_and_si256(pc_codec_bytes_avx2(in + i, factor), low);
        const __m256i b = _mm256_andnot_si256(low, _mm256_slli_epi16(pc_codec_bytes_avx2(in + half + i, factor), 4));
        _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_or_si256(a, b));
    }
}

/* 8 elements, none of them a NaN, to bfloat16 in the low halves of words. */
PC_CODEC_AVX2 __m256i pc_codec_brain_avx2(__m256i bits) {
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
}

/* Encodes what it can, and returns the bits of the largest magnitude. */
PC_CODEC_AVX2 uint32_t pc_codec_bf16_avx2(struct coding c, any_u16 *out, const any_f32 *in, size_t count) {
    __m256i peak = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)(in + i));
        const __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)(in + i + 8));
        pc_codec_fetch_avx2(in + i);
        peak = pc_codec_larger_avx2(pc_codec_larger_avx2(peak, in + i), in + i + 8);
        const __m256i codes = _mm256_packus_epi32(pc_codec_brain_avx2(a), pc_codec_brain_avx2(b));
        _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_permute4x64_epi64(codes, 0xd8));
    }
    const uint32_t most = pc_codec_most_avx2(peak);
    const uint32_t rest = peak_bits((const any_u32 *)(const void *)(in + i), count - i);
    encode_bf16(c, out + i, in + i, count - i);
    return rest > most ? rest : most;
}
#endif

#endif
