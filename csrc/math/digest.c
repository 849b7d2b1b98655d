/*
 * XXH3 digests. Pure, on the caller's thread. Distributions build the shared library for the oldest processor, so long
 * inputs go to the variants compiled here; the digest is defined by its bytes and is the same from each.
 */
#include "math/digest.h"

#include "base/checked.h"
#include "math/digest_levels.h"

#include <xxhash.h>

uint64_t pc_digest64(const void *data, size_t len_bytes) {
#if PC_SIMD_X86
    int level = pc_simd_level();
    if (level == PC_SIMD_AVX512) return pc_digest64_avx512(data, len_bytes);
    if (level == PC_SIMD_AVX2) return pc_digest64_avx2(data, len_bytes);
#endif
    return XXH3_64bits(data, len_bytes);
}

void pc_digest128(const void *data, size_t len_bytes, uint8_t out[PC_DIGEST_BYTES]) {
#if PC_SIMD_X86
    int level = pc_simd_level();
    if (level == PC_SIMD_AVX512) {
        pc_digest128_avx512(data, len_bytes, out);
        return;
    }
    if (level == PC_SIMD_AVX2) {
        pc_digest128_avx2(data, len_bytes, out);
        return;
    }
#endif
    XXH128_canonicalFromHash((XXH128_canonical_t *)(void *)out, XXH3_128bits(data, len_bytes));
}

size_t pc_digest_block_count(size_t len_bytes) {
    return len_bytes / PC_STATE_BLOCK_BYTES + (len_bytes % PC_STATE_BLOCK_BYTES != 0);
}

void pc_digest_blocks(const void *data, size_t len_bytes, uint8_t *blocks, uint8_t tensor_out[PC_DIGEST_BYTES]) {
    size_t count = pc_digest_block_count(len_bytes);
    for (size_t i = 0; i < count; i++) {
        size_t offset = i * PC_STATE_BLOCK_BYTES;
        size_t block_bytes = pc_min_size(len_bytes - offset, PC_STATE_BLOCK_BYTES);
        pc_digest128((const uint8_t *)data + offset, block_bytes, blocks + i * PC_DIGEST_BYTES);
    }
    pc_digest128(blocks, count * PC_DIGEST_BYTES, tensor_out);
}
