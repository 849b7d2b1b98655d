/*
 * K2: who is paired with whom, so that in n - 1 rounds (n if n is odd) each of n meets every other once, and nobody is in
 * two pairs of a round. One stays where it is while the others go round it.
 */
#ifndef PC_TOURNAMENT_H
#define PC_TOURNAMENT_H

#include <stdint.h>

static inline uint32_t pc_tournament_rounds(uint32_t n) {
    return n < 2 ? 0 : n - 1 + n % 2;
}

/* The partner of member in round; n: it has none. */
static inline uint32_t pc_tournament_partner(uint32_t n, uint32_t round, uint32_t member) {
    const uint32_t circle = pc_tournament_rounds(n); /* of that many, or one less, and the one in the middle */
    if (member == circle) return (uint32_t)((uint64_t)round * ((circle + 1) / 2) % circle);
    const uint32_t partner = (round + circle - member) % circle;
    if (partner != member) return partner;
    return circle < n ? circle : n;
}

#endif
