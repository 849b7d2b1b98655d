/* A search for a ring round bad pairs: depth-first with a budget of steps. Pure. */
#include "plan/ring_order.h"

#include <string.h>

static bool is_bad(uint64_t a, uint64_t b, const uint64_t (*bad_pairs)[2], uint32_t bad_count) {
    for (uint32_t i = 0; i < bad_count; i++) {
        if ((bad_pairs[i][0] == a && bad_pairs[i][1] == b) || (bad_pairs[i][0] == b && bad_pairs[i][1] == a)) {
            return true;
        }
    }
    return false;
}

struct search {
    uint64_t *ids;
    uint32_t n, steps_left;
    const uint64_t (*bad_pairs)[2];
    uint32_t bad_count;
};

/* Depth-first with swaps; the first choice everywhere is the order by id. Few bad pairs make it end at once. */
static bool extend(struct search *search, uint32_t placed) {
    if (search->steps_left-- == 0) return false;
    uint64_t *ids = search->ids;
    if (placed == search->n) return !is_bad(ids[placed - 1], ids[0], search->bad_pairs, search->bad_count);
    for (uint32_t i = placed; i < search->n && search->steps_left > 0; i++) {
        if (is_bad(ids[placed - 1], ids[i], search->bad_pairs, search->bad_count)) continue;
        const uint64_t chosen = ids[i];
        memmove(ids + placed + 1, ids + placed, (i - placed) * sizeof *ids);
        ids[placed] = chosen;
        if (extend(search, placed + 1)) return true;
        memmove(ids + placed, ids + placed + 1, (i - placed) * sizeof *ids);
        ids[i] = chosen;
    }
    return false;
}

bool pc_ring_order(uint64_t *ids, uint32_t n, const uint64_t (*bad_pairs)[2], uint32_t bad_count) {
    if (n < 2 || bad_count == 0) return true;
    struct search search = {ids, n, 100000, bad_pairs, bad_count};
    return extend(&search, 1);
}
