/*
 * What the plans of a group are made from: its ring, and its links as its record tells of them, from what the members
 * have measured. Changes only when nothing of the group is in flight.
 */
#include "base/checked.h"
#include "bytes/log16.h"
#include "plan/chunk_plan.h"
#include "plan/ring_order.h"
#include "proto/master_state.h"

#include <string.h>

static uint32_t rank_in(const uint64_t *ids, uint32_t n, uint64_t id) {
    uint32_t rank = 0;
    while (rank < n && ids[rank] != id) rank++;
    return rank;
}

/* What the plans of ids are made from: which links there are, how long and how fast they are. */
struct measured {
    uint64_t *bandwidth, *latency_ns; /* n x n; bandwidths are classes, or all 1 if some are not known */
    struct pc_link_item *links; /* as in the group's record */
    size_t link_count;
    bool missing; /* links */
    bool far, slow; /* some link is so long, or slow, that the order matters */
};

/* Of three leading bits: an order for the sake of less would only follow the errors of the measurement. */
static uint64_t class_of(uint32_t bytes_per_ms) {
    uint32_t shift = 0;
    while (bytes_per_ms >> shift >= 8) shift++;
    return (uint64_t)(bytes_per_ms >> shift) << shift;
}

/* The place of a pair in the list of all, by lower rank, then by higher. */
static size_t pair_index(size_t n, size_t low, size_t high) {
    return low * (2 * n - low - 1) / 2 + high - low - 1;
}

/* a and b: the ranks of the lower id and the higher. */
static void add_pair(struct measured *measured, const struct pc_pair *pair, size_t n, size_t a, size_t b) {
    const size_t low = a < b ? a : b, high = a < b ? b : a, there = low * n + high, back = high * n + low;
    const uint32_t up = (uint32_t)pc_min_u64(pair->rate[a < b ? 0 : 1], PC_FAST_BYTES_PER_MS);
    const uint32_t down = (uint32_t)pc_min_u64(pair->rate[a < b ? 1 : 0], PC_FAST_BYTES_PER_MS);
    measured->latency_ns[there] = measured->latency_ns[back] = (uint64_t)pair->rtt_us * 500;
    measured->bandwidth[there] = class_of(up);
    measured->bandwidth[back] = class_of(down);
    measured->missing |= pair->bad;
    measured->far |= pair->rtt_us >= PC_FAR_US;
    measured->slow |= up < PC_FAST_BYTES_PER_MS || down < PC_FAST_BYTES_PER_MS;
    measured->links[pair_index(n, low, high)] =
        (struct pc_link_item){pc_log16_of(pair->rtt_us), pc_log16_of(up), pc_log16_of(down)};
    measured->link_count += up > 0 && down > 0;
}

static pc_status measure(struct pc_master *master, const uint64_t *ids, uint32_t n, struct measured *measured) {
    const size_t cells = (size_t)n * n, pairs = ((size_t)n * n - n) / 2;
    *measured = (struct measured){.bandwidth = pc_arena_alloc(&master->arena, cells, sizeof *measured->bandwidth),
                                  .latency_ns = pc_arena_alloc(&master->arena, cells, sizeof *measured->latency_ns),
                                  .links = pc_arena_alloc(&master->arena, pairs, sizeof *measured->links)};
    if (measured->bandwidth == NULL || measured->latency_ns == NULL || measured->links == NULL) return pcclNoMemory;
    for (size_t i = 0; i < master->pair_count; i++) {
        const struct pc_pair *pair = &master->pairs[i];
        const size_t low = rank_in(ids, n, pair->low), high = rank_in(ids, n, pair->high);
        if (low < n && high < n) add_pair(measured, pair, n, low, high);
    }
    /* Bandwidths count when all are known: one that is not may be the largest. */
    const bool known = measured->link_count == pairs && n <= PC_COST_MEMBERS_MAX;
    measured->slow &= known;
    for (size_t i = 0; i < cells && !known; i++) measured->bandwidth[i] = 1;
    for (size_t i = 0; i < master->pair_count && measured->missing; i++) {
        const struct pc_pair *pair = &master->pairs[i];
        const size_t low = rank_in(ids, n, pair->low), high = rank_in(ids, n, pair->high);
        if (pair->bad && low < n && high < n) measured->bandwidth[low * n + high] = measured->bandwidth[high * n + low] = 0;
    }
    if (!known || measured->missing || !(measured->far || measured->slow)) measured->link_count = 0;
    return pcclSuccess;
}

/*
 * Fills ring with ranks: in their order within a fast data centre; else, or where links are missing, in the order with
 * the widest bottleneck, and of those with the shortest way round. Returns false when there is none.
 */
static bool order_ring(struct pc_master *master, struct pc_group *group, const struct measured *measured, uint32_t n,
                       uint32_t *ring) {
    for (uint32_t i = 0; i < n; i++) ring[i] = i;
    const bool matters = n > 2 && (measured->missing || measured->far || measured->slow);
    const bool searched = matters && n > PC_RING_EXACT_MAX && n <= PC_COST_MEMBERS_MAX;
    if (!searched) pc_master_drop_search(group);
    if (!matters) return n > 2 || !measured->missing; /* of two there is one ring */
    const struct pc_ring_request request = {
        .n = n,
        .bandwidth = measured->bandwidth,
        .latency_ns = measured->far ? measured->latency_ns : NULL,
        .budget = PC_RING_BUDGET / 10, /* verdicts wait meanwhile; a longer search follows */
    };
    if (searched) return pc_master_search_ring(master, group, &request, ring);
    struct pc_ring_quality quality;
    void *memory = pc_arena_alloc(&master->arena, pc_ring_order_bytes(n), 1);
    return memory != NULL && pc_ring_order(&request, ring, &quality, memory);
}

/* What the members choose algorithms by. */
static bool keep_links(struct pc_group *group, const struct measured *measured, bool *changed) {
    const size_t count = measured->link_count;
    void *items = group->links;
    if (!pc_grow(&items, &group->links_capacity, count, sizeof *group->links)) return false;
    group->links = items;
    *changed |= count != group->link_count;
    if (count > 0) {
        *changed |= memcmp(group->links, measured->links, count * sizeof *group->links) != 0;
        memcpy(group->links, measured->links, count * sizeof *group->links);
    }
    group->link_count = count;
    return true;
}

bool pc_master_order_ring(struct pc_master *master, struct pc_group *group, const uint64_t *ids, uint32_t n,
                          uint32_t *ring, bool *changed) {
    struct measured measured;
    if (measure(master, ids, n, &measured) != pcclSuccess || !keep_links(group, &measured, changed)) return false;
    *changed |= measured.missing != group->ring_only;
    group->ring_only = measured.missing;
    return order_ring(master, group, &measured, n, ring);
}

uint32_t pc_master_longest_rtt(const struct pc_master *master, const uint64_t *ids, uint32_t n) {
    uint32_t longest_us = 0;
    for (size_t i = 0; i < master->pair_count; i++) {
        const struct pc_pair *pair = &master->pairs[i];
        if (pair->rtt_us <= longest_us || rank_in(ids, n, pair->low) == n || rank_in(ids, n, pair->high) == n) continue;
        longest_us = pair->rtt_us;
    }
    return longest_us;
}
