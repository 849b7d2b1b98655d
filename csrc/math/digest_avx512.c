/*
 * XXH3 for AVX-512: the library's header, compiled inline for that target. The whole build has one set of flags, so the
 * target is set from here; the system headers come first, so that they keep the build's own.
 */
#include "math/digest_levels.h"

#if PC_SIMD_X86
#include <assert.h>
#include <immintrin.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(PC_SIMD_TARGET_AVX512))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,avx512f,avx512bw,avx512vl,avx512dq") /* PC_SIMD_TARGET_AVX512: no macro is expanded here */
#endif

#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX512
#include <xxhash.h>

uint64_t pc_digest64_avx512(const void *data, size_t len_bytes) {
    return XXH3_64bits(data, len_bytes);
}

void pc_digest128_avx512(const void *data, size_t len_bytes, uint8_t *out) {
    XXH128_canonicalFromHash((XXH128_canonical_t *)(void *)out, XXH3_128bits(data, len_bytes));
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
typedef int pc_digest_avx512_not_compiled; /* a translation unit may not be empty */
#endif
