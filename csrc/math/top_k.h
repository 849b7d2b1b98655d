/*
 * K2: the codes of codec top_k, for one block of at most 4096 elements: the largest magnitudes, one of every 64 elements,
 * ties by index. An entry is a 12-bit index and two bits: the sign, and which of two magnitudes stands for it. Source: the
 * SparseLoCo paper, arXiv 2508.15706, for the sizes; the two magnitudes are the means of the smaller and the larger ones.
 */
#ifndef PC_TOP_K_H
#define PC_TOP_K_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PC_TOP_K_BLOCK = 4096, PC_TOP_K_SPARSENESS = 64 };

/* Bytes of codes of count elements. */
size_t pc_top_k_bytes(size_t count);
/* All of in are finite. magnitudes: the two that stand for the others. */
void pc_top_k_encode(float magnitudes[2], uint8_t *codes, const float *in, size_t count);
/* Whether codes are of count elements: all indices are less. */
bool pc_top_k_intact(const uint8_t *codes, size_t count);
/* out[i] = the element, 0 for most. codes are intact. */
void pc_top_k_decode(float *out, const float magnitudes[2], const uint8_t *codes, size_t count);

#endif
