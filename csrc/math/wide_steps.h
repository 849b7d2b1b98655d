/*
 * K2, private to codec.c: min_max and zero_point whose offset and step are float64, one block of float32 or float64. Codes
 * have 8, 16, 32 or 64 bits.
 */
#ifndef PC_WIDE_STEPS_H
#define PC_WIDE_STEPS_H

#include "math/codec.h"

/* False: the block cannot be coded. first: number of its first element. */
bool pc_wide_steps_encode(const struct pc_codec *codec, pcclDataType_t dtype, uint8_t *header, uint8_t *codes,
                          const void *in, size_t count, uint32_t seed, uint32_t first);
/* out[i] = the i-th element, plus base[i]. base may be out; NULL: nothing is added. */
void pc_wide_steps_decode(const struct pc_codec *codec, pcclDataType_t dtype, void *out, const void *base,
                          const uint8_t *header, const uint8_t *codes, size_t count);

#endif
