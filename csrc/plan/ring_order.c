/*
 * Up to PC_RING_EXACT_MAX members, a table over sets of members tells the best way home from every place; of the best
 * rings it gives the first in the order of members. It is filled twice, for no single pass can serve both objectives: a
 * prefix with a larger bottleneck is no better when another edge is the slowest anyway.
 *
 * Beyond, bandwidths are sorted, and the search for a ring that uses no edge below one of them is repeated for ever
 * closer ones. Bandwidths that a cheap test refutes are not searched, and usually the largest that it lets pass has a ring.
 * What is left of the budget goes to the latencies of rings with the bottleneck found. Pure.
 */
#include "plan/ring_order.h"

#include "base/checked.h"
#include "plan/ring_improve.h"
#include "plan/ring_search.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NO_WAY UINT64_MAX

static uint64_t bandwidth_of(const struct pc_ring_request *request, uint32_t from, uint32_t to) {
    return request->bandwidth[(size_t)from * request->n + to];
}

static uint64_t latency_of(const struct pc_ring_request *request, uint32_t from, uint32_t to) {
    if (request->latency_ns == NULL) return 0;
    return pc_min_u64(request->latency_ns[(size_t)from * request->n + to], PC_RING_LATENCY_MAX_NS);
}

/* Few members --------------------------------------------------------------------------------------------------- */

/*
 * Sets leave member 0 out: bit i is member i + 1. The entry of (left, at) is about ways from member at + 1 through all
 * members of the set left, of which it is none, to member 0.
 */
static uint64_t *entry(const struct pc_ring_request *request, uint64_t *table, uint32_t left, uint32_t at) {
    return &table[(size_t)left * (request->n - 1) + at];
}

/* The largest bottleneck of such a way; 0: there is none. */
static uint64_t widest_way(const struct pc_ring_request *request, uint64_t *table, uint32_t left, uint32_t from) {
    if (left == 0) return bandwidth_of(request, from, 0);
    uint64_t best = 0;
    for (uint32_t rest = left; rest != 0; rest &= rest - 1) {
        const uint32_t at = (uint32_t)__builtin_ctz(rest);
        const uint64_t way = *entry(request, table, left & ~(1u << at), at);
        best = pc_max_u64(best, pc_min_u64(bandwidth_of(request, from, at + 1), way));
    }
    return best;
}

/* The smallest latency of a way whose edges have at least this bandwidth; *first gets the member that it begins with. */
static uint64_t shortest_way(const struct pc_ring_request *request, uint64_t *table, uint64_t least, uint32_t left,
                             uint32_t from, uint32_t *first) {
    if (left == 0) return bandwidth_of(request, from, 0) < least ? NO_WAY : latency_of(request, from, 0);
    uint64_t best = NO_WAY;
    for (uint32_t rest = left; rest != 0; rest &= rest - 1) {
        const uint32_t at = (uint32_t)__builtin_ctz(rest);
        const uint64_t way = *entry(request, table, left & ~(1u << at), at);
        if (way == NO_WAY || bandwidth_of(request, from, at + 1) < least) continue;
        const uint64_t sum = way + latency_of(request, from, at + 1);
        if (sum >= best) continue;
        best = sum;
        *first = at + 1;
    }
    return best;
}

static bool order_few(const struct pc_ring_request *request, uint32_t *order, uint64_t *table) {
    const uint32_t others = request->n - 1, all = (1u << others) - 1;
    for (uint32_t left = 0; left < all; left++) {
        for (uint32_t at = 0; at < others; at++) {
            if ((left >> at & 1) == 0) *entry(request, table, left, at) = widest_way(request, table, left, at + 1);
        }
    }
    const uint64_t least = widest_way(request, table, all, 0);
    if (least == 0) return false;
    uint32_t member = 0;
    for (uint32_t left = 0; left < all; left++) {
        for (uint32_t at = 0; at < others; at++) {
            if ((left >> at & 1) != 0) continue;
            *entry(request, table, left, at) = shortest_way(request, table, least, left, at + 1, &member);
        }
    }
    order[0] = 0;
    for (uint32_t i = 1, left = all; i < request->n; i++, left &= ~(1u << (member - 1))) {
        (void)shortest_way(request, table, least, left, order[i - 1], &member);
        order[i] = member;
    }
    return true;
}

/* Many members -------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The bandwidths of edges, each once. */
static uint32_t collect(const struct pc_ring_request *request, uint64_t *values) {
    const uint32_t n = request->n;
    size_t count = 0;
    uint32_t distinct = 0;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < n; j++) {
            if (i != j && bandwidth_of(request, i, j) > 0) values[count++] = bandwidth_of(request, i, j);
        }
    }
    qsort(values, count, sizeof *values, ascending);
    for (size_t i = 0; i < count; i++) {
        if (distinct == 0 || values[i] != values[distinct - 1]) values[distinct++] = values[i];
    }
    return distinct;
}

struct thresholds {
    const struct pc_ring_request *request;
    struct pc_ring_search search;
    const uint64_t *values;
    uint32_t found; /* values below this index have the ring in order */
    uint32_t tried; /* from this index on no ring was found; found <= tried */
    uint32_t refuted; /* from this index on there is none */
    uint32_t *order;
    uint64_t budget;
};

static uint64_t bottleneck_of(const struct pc_ring_request *request, const uint32_t *order) {
    uint64_t least = UINT64_MAX;
    for (uint32_t i = 0; i < request->n; i++) {
        least = pc_min_u64(least, bandwidth_of(request, order[i], order[(i + 1) % request->n]));
    }
    return least;
}

/* Searches for a ring of values[index] and more with a part of the budget. */
static void try_value(struct thresholds *t, uint32_t index, uint64_t share) {
    uint64_t left = share;
    const enum pc_ring_found found =
        pc_ring_search_run(&t->search, t->request->bandwidth, t->values[index], &left, t->order);
    t->budget -= share - left;
    if (found != PC_RING_FOUND) t->tried = index;
    if (found == PC_RING_IMPOSSIBLE) t->refuted = index;
    if (found != PC_RING_FOUND) return;
    const uint64_t least = bottleneck_of(t->request, t->order);
    for (t->found = index + 1; t->found < t->tried && t->values[t->found] <= least;) t->found++;
}

static void bisect(struct thresholds *t, uint32_t count) {
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (pc_ring_search_plausible(&t->search, t->request->bandwidth, t->values[middle])) low = middle + 1;
        else high = middle;
    }
    t->found = 0;
    t->tried = t->refuted = high;
    if (high > 0) try_value(t, high - 1, t->budget / 4);
    while (t->found < t->tried && t->budget > 0) {
        /* The lowest value gets all there is, for without it there is no ring at all. */
        const uint32_t index = t->found + (t->tried - t->found) / 2;
        try_value(t, index, index == 0 ? t->budget : t->budget / 8 + 1);
    }
    /* What was left undecided next to the best so far gets the rest, as long as that helps. */
    while (t->found > 0 && t->found < t->refuted && t->budget > 0) {
        t->tried = t->refuted;
        try_value(t, t->found, t->budget);
    }
}

static bool order_many(const struct pc_ring_request *request, uint32_t *order, bool *widest, void *memory) {
    const uint32_t n = request->n;
    uint64_t *values = memory;
    void *rest = values + (size_t)n * n;
    const uint32_t count = collect(request, values);
    const uint64_t for_latency = request->latency_ns == NULL ? 0 : request->budget / 3; /* at least */
    struct thresholds t = {
        .request = request, .values = values, .order = order, .budget = request->budget - for_latency};
    pc_ring_search_init(&t.search, n, rest);
    t.search.stop = request->stop;
    bisect(&t, count);
    if (t.found == 0) return false;
    *widest = t.found == t.refuted;
    if (request->latency_ns == NULL) return true;
    const struct pc_ring_improve improve = {n, request->bandwidth, request->latency_ns, values[t.found - 1],
                                          for_latency + t.budget, request->stop};
    pc_ring_improve(&improve, order, rest);
    return true;
}

/* Entry points -------------------------------------------------------------------------------------------------- */

size_t pc_ring_order_bytes(uint32_t n) {
    if (n <= PC_RING_EXACT_MAX) return n < 2 ? 8 : ((size_t)1 << (n - 1)) * (n - 1) * sizeof(uint64_t);
    const size_t search = pc_ring_search_bytes(n), improve = pc_ring_improve_bytes(n);
    return (size_t)n * n * sizeof(uint64_t) + (search > improve ? search : improve);
}

static bool is_ring(const uint32_t *order, uint32_t n) {
    uint64_t seen[PC_RING_MEMBERS_MAX / 64] = {0};
    for (uint32_t i = 0; i < n; i++) {
        if (order[i] >= n || (seen[order[i] / 64] >> order[i] % 64 & 1) != 0) return false;
        seen[order[i] / 64] |= (uint64_t)1 << order[i] % 64;
    }
    return order[0] == 0;
}

bool pc_ring_order(const struct pc_ring_request *request, uint32_t *order, struct pc_ring_quality *quality, void *memory) {
    const uint32_t n = request->n;
    *quality = (struct pc_ring_quality){.widest = true};
    if (n < 1 || n > PC_RING_MEMBERS_MAX) return false;
    if (n == 1) {
        order[0] = 0;
        return true;
    }
    const bool found = n <= PC_RING_EXACT_MAX ? order_few(request, order, memory)
                                              : order_many(request, order, &quality->widest, memory);
    if (!found) return false;
    const bool proved = is_ring(order, n);
    assert(proved);
    (void)proved;
    pc_ring_judge(request, order, quality);
    assert(quality->bottleneck > 0);
    return true;
}

void pc_ring_judge(const struct pc_ring_request *request, const uint32_t *order, struct pc_ring_quality *quality) {
    const uint32_t n = request->n;
    quality->bottleneck = bottleneck_of(request, order);
    quality->latency_ns = 0;
    for (uint32_t i = 0; i < n; i++) quality->latency_ns += latency_of(request, order[i], order[(i + 1) % n]);
}
