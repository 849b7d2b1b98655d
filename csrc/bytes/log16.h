/*
 * K1: a number of 32 bits in 16, to within a thousandth: five bits say how far eleven are to be shifted, of which the
 * first is known to be set. Small numbers are exact; order is kept.
 */
#ifndef PC_LOG16_H
#define PC_LOG16_H

#include <stdint.h>

enum { PC_LOG16_BITS = 10 };

static inline uint16_t pc_log16_of(uint32_t value) {
    uint32_t shift = 0;
    while (value >> shift >= 2u << PC_LOG16_BITS) shift++;
    return (uint16_t)((shift << PC_LOG16_BITS) + (value >> shift));
}

/* The smallest number that has this code; a code that no number has gives the largest. */
static inline uint32_t pc_log16_value(uint16_t code) {
    if (code < 2u << PC_LOG16_BITS) return code;
    const uint32_t shift = ((uint32_t)code >> PC_LOG16_BITS) - 1;
    const uint32_t leading = (1u << PC_LOG16_BITS) + ((uint32_t)code & ((1u << PC_LOG16_BITS) - 1));
    return shift + PC_LOG16_BITS > 31 ? UINT32_MAX : leading << shift;
}

#endif
