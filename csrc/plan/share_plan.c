/*
 * Shares by running sums: border i lies at blocks * (weight of members before i) / (weight of all), rounded down, so that
 * no share is a block away from its due however many members there are. The last block may be shorter than the others, and
 * belongs to the last member that has any weight.
 */
#include "plan/share_plan.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

typedef unsigned __int128 uint128;

/*
 * blocks * part / whole rounded down, part <= whole < 2^96, by long multiplication and division at once: their product
 * may need more than 128 bits.
 */
static uint64_t scale(uint64_t blocks, uint128 part, uint128 whole) {
    uint64_t quotient = 0;
    uint128 rest = 0;
    for (int bit = 63; bit >= 0; bit--) {
        quotient *= 2;
        rest = 2 * rest + (blocks >> bit & 1 ? part : 0); /* below 3 * whole */
        for (; rest >= whole; rest -= whole) quotient++;
    }
    return quotient;
}

static uint64_t weight_of(const struct pc_share_request *request, uint32_t member, bool even) {
    return even ? 1 : request->weights[member];
}

static void prove(const struct pc_share_request *request, const uint64_t *borders) {
    assert(borders[0] == 0 && borders[request->n] == request->count_elems);
    for (uint32_t i = 0; i < request->n; i++) {
        assert(borders[i] <= borders[i + 1]);
        assert(borders[i] % request->block_elems == 0 || borders[i] == request->count_elems);
    }
    (void)request;
    (void)borders;
}

void pc_share_plan(const struct pc_share_request *request, uint64_t *borders) {
    assert(request->n >= 1 && request->block_elems >= 1);
    const uint64_t count = request->count_elems;
    const uint64_t blocks = count / request->block_elems + (count % request->block_elems != 0);
    uint128 whole = 0, part = 0;
    for (uint32_t i = 0; i < request->n && request->weights != NULL; i++) whole += request->weights[i];
    const bool even = whole == 0;
    if (even) whole = request->n;
    for (uint32_t i = 0; i < request->n; i++) {
        const uint64_t first = scale(blocks, part, whole);
        /* All blocks may end beyond 2^64 if the last one is short; a border is one of the others, or the end. */
        borders[i] = first == blocks ? count : first * request->block_elems;
        part += weight_of(request, i, even);
    }
    borders[request->n] = count;
    prove(request, borders);
}
