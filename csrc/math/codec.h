/*
 * K2: codecs of payloads: float32 or float64 to fewer bits and back, block by block. Pure; the same bytes and the same
 * values at every SIMD level and on every processor.
 *
 * An encoded run of elements is: the headers of all blocks, then the codes of all blocks, then the elements of those
 * blocks that could not be coded (a NaN, an infinity, a range beyond the codec's), as they are. All little-endian. A
 * header whose first word is a NaN marks such a block; its codes are there and zero.
 *
 *   codec       header of a block         code of an element
 *   bf16, fp16  0                         the 16-bit float nearest to it
 *   int8, int4  float32 peak / 127 or 7   whole multiple of that, -127..127 or -7..7
 *   fp8_e4m3    float32 peak / 448        8-bit float (4 exponent, 3 mantissa bits, no infinity) of the multiple
 *   e3m0        float32 peak              sign, and 0 or one of 2^-6 .. 2^0 of that
 *   min_max     offset, step              how many steps above offset, which is the least element
 *   zero_point  offset, step              the same, with 0 exactly on a step if it lies within the range
 *   int_sum     0                         16-bit whole multiple of a power of two that the codec names
 *   top_k       two float32 magnitudes    of every 64 elements the largest one: 12-bit index, sign, which magnitude
 *
 * peak: the largest magnitude of the block. offset and step are float64 for float64 elements and for codes of 32 and 64
 * bits (of which 53 are used), else float32. Two 4-bit codes share a byte: the first half of a block lies in the low
 * halves. A peak or step under 2^-100 counts as 0; elements beyond 2^126 cannot be coded (float64 steps: 2^-900 and 2^1000),
 * but as bf16. Codes are rounded to the nearest, ties to even; with stochastic, up or down with odds that make the mean
 * exact.
 *
 * Relative errors to be expected on normal data: int8 0.0070, int4 0.117, fp8_e4m3 0.026, e3m0 0.192, bf16 0.0017,
 * fp16 0.00021, 8-bit min_max 0.0064 (blocks of 256, 128 for 4 bits).
 */
#ifndef PC_CODEC_H
#define PC_CODEC_H

#include "pccl.h"

enum {
    PC_CODEC_BLOCK_MIN = 32,
    PC_CODEC_BLOCK_MAX = 4096,
    PC_CODEC_EXPONENT_MAX = 100,
    PC_CODEC_EXPONENT_BIAS = 128
};

struct pc_codec {
    uint8_t kind; /* pcclQuantizationAlgorithm_t */
    uint8_t bits; /* min_max, zero_point: of a code: 8, 16, 32 or 64; int_sum: the exponent + 128; else 0 */
    bool stochastic;
    bool finite_only; /* a block that cannot be coded is an error */
    uint32_t block; /* elements: a power of two */
};

/*
 * Error feedback: what coding has left out of a peer's contributions so far. Times decay it is added to the next one. As
 * many elements as the payload, of the accumulator's type. residual NULL: none.
 */
struct pc_feedback {
    void *residual;
    double decay;
};

/* The codec with its own block size, if block is 0. */
struct pc_codec pc_codec_make(uint8_t kind, uint8_t bits, uint32_t block);
bool pc_codec_valid(const struct pc_codec *codec);
/* "int8", ... Never NULL. */
const char *pc_codec_name(uint8_t kind);

/* dtype below is pcclFloat or pcclDouble. */

/* Bytes of count encoded elements if all blocks can be coded, and if none can. */
size_t pc_codec_bytes(const struct pc_codec *codec, pcclDataType_t dtype, size_t count);
size_t pc_codec_bytes_max(const struct pc_codec *codec, pcclDataType_t dtype, size_t count);

/*
 * Encodes count elements into out, of pc_codec_bytes_max; returns how many bytes were used. 0: finite_only, and there is
 * a block that cannot be coded (never so for count 0). seed: of stochastic rounding; the same seed gives the same bytes.
 */
size_t pc_codec_encode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *in, size_t count,
                       uint32_t seed);

/* Whether the bytes, whoever made them, are count encoded elements. */
bool pc_codec_intact(const struct pc_codec *codec, pcclDataType_t dtype, const void *in, size_t len_bytes, size_t count);

/* out[i] = the i-th element, plus base[i]. base may be out; NULL: nothing is added. The bytes are intact. */
void pc_codec_decode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *base, const void *in,
                     size_t len_bytes, size_t count);

/*
 * The same piece by piece, from front to back, so that what is done with a piece finds it in the cache. A piece is a
 * multiple of the block, but for the last one.
 */
struct pc_codec_walk {
    const struct pc_codec *codec;
    pcclDataType_t dtype;
    size_t at, count; /* elements done, and in all */
    uint8_t *header, *codes, *raw; /* of the next block; elements of the next one that could not be coded */
    uint8_t *end; /* of the encoded bytes: moves on while such blocks are encoded */
};

/* Of count elements, encoded in len_bytes at coded; 0: they are yet to be encoded. codec stays where it is. */
void pc_codec_walk_init(struct pc_codec_walk *walk, const struct pc_codec *codec, pcclDataType_t dtype, const void *coded,
                        size_t len_bytes, size_t count);
/* False: finite_only, and there is a block that cannot be coded. */
bool pc_codec_walk_encode(struct pc_codec_walk *walk, const void *in, size_t count, uint32_t seed);
/* To decode what another walk has just encoded, take over its end. */
void pc_codec_walk_decode(struct pc_codec_walk *walk, void *out, const void *base, size_t count);
/*
 * values[i] -= the i-th element; values are what was encoded: what coding has left out. 0 of those that are no number,
 * which travel as they are.
 */
void pc_codec_walk_left_out(struct pc_codec_walk *walk, void *values, size_t count);

#endif
