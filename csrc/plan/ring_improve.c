/*
 * Local search over rings whose edges have a direction. Two moves: a piece of the ring changes places with the piece after
 * it, directions kept (one of the two short, else there are too many); and a piece is turned round, which changes the cost
 * of every edge in it: sums along the ring in both directions give the difference at once. When no move helps, three cuts
 * near each other at random places exchange two pieces whatever that costs, and the search goes on from there; a ring that
 * is not better in the end is given up for the best so far. Pure; the budget counts moves looked at.
 */
#include "plan/ring_improve.h"

#include "base/checked.h"
#include "plan/ring_order.h"

#include <stdbool.h>
#include <string.h>

enum { PIECE_MAX = 3, KICK_SPAN = 24 };

/* More than any ring of permitted edges costs; n of them still fit. */
#define FORBIDDEN_NS ((int64_t)1 << 49)

struct tour {
    const struct pc_ring_improve *request;
    uint32_t n;
    uint32_t *order; /* n + 1: the first comes again at the end */
    int64_t *along, *against; /* cost of the edges up to a place, as they are and turned round */
    uint32_t *spare;
    uint64_t budget;
};

size_t pc_ring_improve_bytes(uint32_t n) {
    return 2 * ((size_t)n + 1) * (sizeof(int64_t) + sizeof(uint32_t));
}

static int64_t cost(const struct tour *t, uint32_t from, uint32_t to) {
    const size_t at = (size_t)from * t->n + to;
    if (t->request->bandwidth[at] < t->request->least) return FORBIDDEN_NS;
    return (int64_t)pc_min_u64(t->request->latency_ns[at], PC_RING_LATENCY_MAX_NS);
}

static int64_t edge(const struct tour *t, uint32_t from_place, uint32_t to_place) {
    return cost(t, t->order[from_place], t->order[to_place]);
}

static void sum_up(struct tour *t) {
    for (uint32_t i = 0; i < t->n; i++) {
        t->along[i + 1] = t->along[i] + edge(t, i, i + 1);
        t->against[i + 1] = t->against[i] + edge(t, i + 1, i);
    }
}

/* The pieces (i, j] and (j, k] change places. */
static void exchange(struct tour *t, uint32_t i, uint32_t j, uint32_t k) {
    memcpy(t->spare, t->order + i + 1, (j - i) * sizeof *t->spare);
    memmove(t->order + i + 1, t->order + j + 1, (k - j) * sizeof *t->order);
    memcpy(t->order + i + 1 + (k - j), t->spare, (j - i) * sizeof *t->order);
    sum_up(t);
}

static int64_t exchange_gain(const struct tour *t, uint32_t i, uint32_t j, uint32_t k) {
    return edge(t, i, i + 1) + edge(t, j, j + 1) + edge(t, k, k + 1) - edge(t, i, j + 1) - edge(t, k, i + 1) -
           edge(t, j, k + 1);
}

static bool exchange_some(struct tour *t) {
    for (uint32_t i = 0; i + 2 < t->n; i++) {
        for (uint32_t j = i + 1; j + 1 < t->n; j++) {
            const bool piece_short = j - i <= PIECE_MAX;
            const uint32_t end = piece_short ? t->n : (uint32_t)pc_min_u64(t->n, j + PIECE_MAX + 1);
            t->budget -= pc_min_u64(t->budget, end - j);
            for (uint32_t k = j + 1; k < end; k++) {
                if (exchange_gain(t, i, j, k) <= 0) continue;
                exchange(t, i, j, k);
                return true;
            }
        }
        if (t->budget == 0) return false;
    }
    return false;
}

/* The piece (i, j] is turned round. */
static bool turn_some(struct tour *t) {
    for (uint32_t i = 0; i + 2 < t->n; i++) {
        t->budget -= pc_min_u64(t->budget, t->n - i);
        for (uint32_t j = i + 2; j < t->n; j++) {
            const int64_t before = edge(t, i, i + 1) + t->along[j] - t->along[i + 1] + edge(t, j, j + 1);
            const int64_t after = edge(t, i, j) + t->against[j] - t->against[i + 1] + edge(t, i + 1, j + 1);
            if (after >= before) continue;
            for (uint32_t low = i + 1, high = j; low < high; low++, high--) {
                const uint32_t member = t->order[low];
                t->order[low] = t->order[high];
                t->order[high] = member;
            }
            sum_up(t);
            return true;
        }
    }
    return false;
}

static bool stopped(const struct tour *t) {
    return t->request->stop != NULL && atomic_load_explicit(t->request->stop, memory_order_relaxed);
}

static void descend(struct tour *t) {
    while (t->budget > 0 && (turn_some(t) || exchange_some(t))) {
        t->budget -= stopped(t) ? t->budget : pc_min_u64(t->budget, t->n);
    }
}

/* Numbers that are as good as random here, and the same everywhere (xorshift64). */
static uint32_t below(uint64_t *state, uint32_t bound) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)((*state >> 32) * bound >> 32);
}

static void kick(struct tour *t, uint64_t *state) {
    const uint32_t span = (uint32_t)pc_min_u64(t->n - 1, KICK_SPAN);
    const uint32_t first = below(state, t->n - span);
    const uint32_t length = 1 + below(state, span - 1), more = 1 + below(state, span - length);
    exchange(t, first, first + length, first + length + more);
    t->budget -= pc_min_u64(t->budget, t->n);
}

void pc_ring_improve(const struct pc_ring_improve *request, uint32_t *order, void *memory) {
    const uint32_t n = request->n;
    struct tour tour = {.request = request, .n = n, .along = memory, .budget = request->budget}, *t = &tour;
    t->against = t->along + n + 1;
    t->order = (uint32_t *)(void *)(t->against + n + 1);
    t->spare = t->order + n + 1;
    t->along[0] = t->against[0] = 0;
    if (n < 4) return;
    memcpy(t->order, order, n * sizeof *order);
    t->order[n] = t->order[0];
    sum_up(t);
    descend(t);
    memcpy(order, t->order, n * sizeof *order);
    int64_t best = t->along[n];
    for (uint64_t state = 1; t->budget > 0 && !stopped(t);) {
        kick(t, &state);
        descend(t);
        if (t->along[n] <= best) {
            best = t->along[n];
            memcpy(order, t->order, n * sizeof *order);
        } else {
            memcpy(t->order, order, n * sizeof *order);
            sum_up(t);
        }
    }
}
