/*
 * Selection of the largest magnitudes by counting: magnitudes are ordered as their bits are, so a histogram of the upper
 * bits finds the bin in which the limit lies, and histograms of lower bits within that bin the limit itself. Linear time
 * whatever the data. Indices are ascending. Pure.
 */
#include "math/top_k.h"

#include <string.h>

enum { INDEX_BITS = 12 };

static size_t entries_of(size_t count) {
    return (count + PC_TOP_K_SPARSENESS - 1) / PC_TOP_K_SPARSENESS;
}

static size_t index_bytes(size_t entries) {
    return (entries * INDEX_BITS + 7) / 8;
}

size_t pc_top_k_bytes(size_t count) {
    const size_t entries = entries_of(count);
    return index_bytes(entries) + (entries * 2 + 7) / 8;
}

static uint32_t magnitude_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffffu;
}

/* The bin, counted from the top, in which the wanted-th largest lies; *above: how many lie in bins above it. */
static uint32_t find_bin(const uint16_t *histogram, uint32_t bins, size_t wanted, size_t *above) {
    uint32_t bin = bins;
    size_t total = 0;
    do {
        *above = total;
        total += histogram[--bin];
    } while (total < wanted);
    return bin;
}

/* The magnitude of the wanted-th largest; *ties: how many of exactly that magnitude are among them. */
static uint32_t find_limit(const float *in, size_t count, size_t wanted, size_t *ties) {
    uint16_t histogram[1 << 11];
    uint32_t prefix = 0, shift = 31;
    size_t above = 0, left = wanted;
    /* 31 bits: 11, then 10, then 10 of those that share what is known so far. */
    for (uint32_t round = 0; round < 3; round++) {
        const uint32_t bits = round == 0 ? 11 : 10, bins = 1u << bits;
        memset(histogram, 0, bins * sizeof histogram[0]);
        shift -= bits;
        for (size_t i = 0; i < count; i++) {
            const uint32_t magnitude = magnitude_bits(in[i]);
            const bool member = round == 0 || magnitude >> (shift + bits) == prefix;
            histogram[magnitude >> shift & (bins - 1)] = (uint16_t)(histogram[magnitude >> shift & (bins - 1)] + member);
        }
        prefix = prefix << bits | find_bin(histogram, bins, left, &above);
        left -= above;
    }
    *ties = left;
    return prefix;
}

static void put_index(uint8_t *codes, size_t entry, uint32_t index) {
    uint8_t *at = codes + entry / 2 * 3;
    if (entry % 2 == 0) {
        at[0] = (uint8_t)index;
        at[1] = (uint8_t)(at[1] | index >> 8);
    } else {
        at[1] = (uint8_t)(at[1] | (index & 15u) << 4);
        at[2] = (uint8_t)(index >> 4);
    }
}

static uint32_t get_index(const uint8_t *codes, size_t entry) {
    const uint8_t *at = codes + entry / 2 * 3;
    return entry % 2 == 0 ? at[0] | (uint32_t)(at[1] & 15u) << 8 : (uint32_t)at[1] >> 4 | (uint32_t)at[2] << 4;
}

/* The smaller and the larger ones are told apart by their mean; summed in the order of the indices. */
static float split(float magnitudes[2], const float *chosen, size_t entries) {
    double sum = 0, sums[2] = {0, 0};
    size_t counts[2] = {0, 0};
    for (size_t i = 0; i < entries; i++) sum += (double)chosen[i];
    const float mean = (float)(sum / (double)entries);
    for (size_t i = 0; i < entries; i++) {
        sums[chosen[i] > mean] += (double)chosen[i];
        counts[chosen[i] > mean]++;
    }
    for (int i = 0; i < 2; i++) magnitudes[i] = counts[i] == 0 ? 0.0f : (float)(sums[i] / (double)counts[i]);
    return mean;
}

void pc_top_k_encode(float magnitudes[2], uint8_t *codes, const float *in, size_t count) {
    const size_t entries = entries_of(count);
    float chosen[PC_TOP_K_BLOCK / PC_TOP_K_SPARSENESS];
    uint8_t negative[PC_TOP_K_BLOCK / PC_TOP_K_SPARSENESS];
    size_t ties = 0, entry = 0;
    const uint32_t limit = find_limit(in, count, entries, &ties);
    memset(codes, 0, pc_top_k_bytes(count));
    for (size_t i = 0; i < count && entry < entries; i++) {
        const uint32_t magnitude = magnitude_bits(in[i]);
        if (magnitude < limit || (magnitude == limit && ties == 0)) continue;
        ties -= magnitude == limit;
        put_index(codes, entry, (uint32_t)i);
        negative[entry] = in[i] < 0.0f;
        memcpy(&chosen[entry++], &magnitude, sizeof magnitude);
    }
    const float mean = split(magnitudes, chosen, entries);
    uint8_t *signs = codes + index_bytes(entries);
    for (size_t i = 0; i < entries; i++) {
        const uint32_t code = (uint32_t)negative[i] << 1 | (chosen[i] > mean);
        signs[i / 4] = (uint8_t)(signs[i / 4] | code << (i % 4 * 2));
    }
}

bool pc_top_k_intact(const uint8_t *codes, size_t count) {
    const size_t entries = entries_of(count);
    for (size_t i = 0; i < entries; i++) {
        if (get_index(codes, i) >= count) return false;
    }
    return true;
}

void pc_top_k_decode(float *out, const float magnitudes[2], const uint8_t *codes, size_t count) {
    const size_t entries = entries_of(count);
    const uint8_t *signs = codes + index_bytes(entries);
    memset(out, 0, count * sizeof *out);
    for (size_t i = 0; i < entries; i++) {
        const uint32_t index = get_index(codes, i), code = (uint32_t)signs[i / 4] >> (i % 4 * 2) & 3u;
        const float magnitude = magnitudes[code & 1u];
        out[index] = (code & 2u) != 0 ? -magnitude : magnitude;
    }
}
