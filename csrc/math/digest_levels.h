/*
 * K2, private to digest.c: XXH3 compiled for wider registers than the shared library uses. Call one only where
 * pc_simd_level allows it. The 128-bit digest is written in its canonical form.
 */
#ifndef PC_DIGEST_LEVELS_H
#define PC_DIGEST_LEVELS_H

#include "math/simd.h"

#include <stddef.h>
#include <stdint.h>

#if PC_SIMD_X86
uint64_t pc_digest64_avx2(const void *data, size_t len_bytes);
void pc_digest128_avx2(const void *data, size_t len_bytes, uint8_t *out);
uint64_t pc_digest64_avx512(const void *data, size_t len_bytes);
void pc_digest128_avx512(const void *data, size_t len_bytes, uint8_t *out);
#endif

#endif
