/*
 * K2, private to codec.c: blocks of float32, one after the other, to and from their headers and codes, at the SIMD level in
 * force. For the codecs that look at each element alone: all but top_k and those with float64 steps.
 */
#ifndef PC_CODEC_BLOCKS_H
#define PC_CODEC_BLOCKS_H

#include "math/codec.h"
#include "math/loops.h"

struct pc_codec_blocks {
    const struct pc_codec *codec;
    uint8_t *header, *codes; /* of the first block */
    size_t header_bytes, code_bytes; /* from one block to the next */
    size_t count, elems; /* blocks; elements of each */
    uint32_t first; /* number of the first element */
};

/* Until a block cannot be coded; returns how many were. */
size_t pc_codec_blocks_encode(const struct pc_codec_blocks *blocks, const any_f32 *in, uint32_t seed);
/* out[i] = the i-th element, plus base[i]. base may be out; NULL: nothing is added. */
void pc_codec_blocks_decode(const struct pc_codec_blocks *blocks, any_f32 *out, const any_f32 *base);

/* The bits of what has the largest magnitude, without its sign: 0x7f800000 and more are not finite. */
uint32_t pc_codec_peak_bits(const any_f32 *in, size_t count);

#endif
