/*
 * A packet from i to j passes i's egress link, the path's own link, the path's delay, and j's ingress link; each link is
 * first in, first out at a fixed rate. So the time at which a packet leaves a link is known when it arrives there: a link
 * needs no queue of its own, only the time at which it will be idle. Egress and path see packets in the order of sending
 * and are computed at once; at the ingress packets of several paths meet, so that one waits for its arrival.
 *
 * Computed times don't depend on when the caller came round: a packet that is handled late doesn't delay later ones.
 */
#include "network.h"

#include "segments.h"

#include <assert.h>
#include <string.h>

#define NS_PER_S 1000000000ull
#define DROPPED UINT64_MAX

enum { IPV4_DESTINATION = 16 };

void wan_shaper_set(struct wan_shaper *shaper, uint64_t rate_bps, uint64_t queue_bytes) {
    shaper->rate_bps = rate_bps;
    shaper->queue_ns = rate_bps == 0 ? 0 : (uint64_t)((double)queue_bytes * 8e9 / (double)rate_bps);
}

/* False: dropped. A packet that finds the link idle is always accepted, however short the queue. */
static bool shaper_pass(struct wan_shaper *shaper, uint32_t len_bytes, uint64_t *at_ns) {
    if (shaper->rate_bps == 0) return true;
    const uint64_t cost_ns = len_bytes * 8 * NS_PER_S / shaper->rate_bps;
    if (shaper->idle_ns <= *at_ns) {
        shaper->idle_ns = *at_ns + cost_ns;
    } else if (shaper->idle_ns - *at_ns + cost_ns <= shaper->queue_ns) {
        shaper->idle_ns += cost_ns;
    } else {
        shaper->dropped++;
        return false;
    }
    *at_ns = shaper->idle_ns;
    return true;
}

/* SplitMix64 (Steele, Lea, Flood 2014), as a number from 0 to 1, 1 excluded. */
static double next_chance(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

void wan_network_init(struct wan_network *network, struct wan_pool *pool, uint32_t node_count, uint64_t seed) {
    memset(network, 0, sizeof *network);
    network->pool = pool;
    network->node_count = node_count;
    for (uint32_t i = 0; i < WAN_NODES_MAX; i++) {
        wan_queue_init(&network->nodes[i].inbox);
        for (uint32_t j = 0; j < WAN_NODES_MAX; j++) {
            struct wan_path *path = &network->paths[i][j];
            wan_queue_init(&path->queue);
            path->chance = seed ^ ((uint64_t)(i * WAN_NODES_MAX + j) << 32);
            (void)next_chance(&path->chance);
            network->arrivals_ns[i][j] = UINT64_MAX;
        }
    }
}

/* The node that an IPv4 packet is for, or node_count. */
static uint32_t destination(const struct wan_network *network, const uint8_t *frame) {
    uint32_t to = network->node_count;
    for (uint32_t i = 0; i < network->node_count; i++) {
        const uint8_t *address = frame + WAN_FRAME_HEADER_BYTES + IPV4_DESTINATION;
        if (memcmp(network->nodes[i].address, address, 4) == 0) to = i;
    }
    return to;
}

/* Part of a frame, as a frame of its own; WAN_NO_PACKET when there is no slot for it. */
static uint32_t part_of(struct wan_network *network, const struct wan_segments *segments, uint32_t frame, uint32_t first,
                        uint32_t count) {
    struct wan_pool *pool = network->pool;
    const uint32_t part = wan_pool_take(pool);
    if (part == WAN_NO_PACKET) {
        network->overflow += count;
        return part;
    }
    pool->packets[part].len_bytes =
        wan_segments_cut(segments, wan_pool_bytes(pool, frame), first, count, wan_pool_bytes(pool, part));
    return part;
}

/* Queues the segments that are due some time, each run of them as one frame, and drops the others (DROPPED). */
static void queue_up(struct wan_network *network, const struct wan_segments *segments, uint32_t frame,
                     const uint64_t *due_ns, struct wan_queue *queue) {
    struct wan_pool *pool = network->pool;
    bool whole = false;
    for (uint32_t first = 0, end; first < segments->count; first = end) {
        end = first + 1;
        if (due_ns[first] == DROPPED) continue;
        while (end < segments->count && due_ns[end] != DROPPED) end++;
        whole = end - first == segments->count;
        const uint32_t part = whole ? frame : part_of(network, segments, frame, first, end - first);
        if (part == WAN_NO_PACKET) continue;
        pool->packets[part].due_ns = due_ns[end - 1];
        pool->packets[part].span_ns = due_ns[end - 1] - due_ns[first];
        wan_queue_append(queue, pool, part);
    }
    if (!whole) wan_pool_give(pool, frame);
}

/* When a packet that is sent now arrives at the other end's ingress link, or DROPPED. */
static uint64_t cross(struct wan_shaper *egress, struct wan_path *path, uint32_t len_bytes, uint64_t now_ns) {
    path->offered++;
    path->offered_bytes += len_bytes;
    uint64_t at_ns = now_ns;
    if (!shaper_pass(egress, len_bytes, &at_ns) || !shaper_pass(&path->shaper, len_bytes, &at_ns)) return DROPPED;
    /* Lost on the way: it has taken its time on the links before. */
    if (path->loss > 0 && next_chance(&path->chance) < path->loss) {
        path->lost++;
        return DROPPED;
    }
    at_ns += path->delay_ns;
    /* A delay that was lowered meanwhile doesn't reorder what is under way. */
    if (at_ns < path->last_due_ns) at_ns = path->last_due_ns;
    path->last_due_ns = at_ns;
    return at_ns;
}

void wan_network_send(struct wan_network *network, uint32_t from, uint32_t frame, uint64_t now_ns) {
    struct wan_pool *pool = network->pool;
    const uint8_t *bytes = wan_pool_bytes(pool, frame);
    struct wan_segments segments;
    const bool known = wan_segments_parse(bytes, pool->packets[frame].len_bytes, &segments);
    const uint32_t to = known ? destination(network, bytes) : network->node_count;
    if (to == network->node_count || to == from) {
        network->unroutable++;
        wan_pool_give(pool, frame);
        return;
    }
    struct wan_path *path = &network->paths[from][to];
    uint64_t due_ns[WAN_SEGMENTS_MAX];
    for (uint32_t i = 0; i < segments.count; i++) {
        due_ns[i] = cross(&network->nodes[from].egress, path, wan_segments_wire_bytes(&segments, i), now_ns);
    }
    queue_up(network, &segments, frame, due_ns, &path->queue);
    network->arrivals_ns[to][from] = wan_queue_due_ns(&path->queue, pool);
}

/* The segments of a frame have come one after another over its span, so that the ingress link could begin with the first
   before the last was there. */
static void enter(struct wan_network *network, struct wan_node *node, uint32_t frame) {
    struct wan_pool *pool = network->pool;
    const struct wan_packet *held = &pool->packets[frame];
    struct wan_segments segments;
    const bool known = wan_segments_parse(wan_pool_bytes(pool, frame), held->len_bytes, &segments);
    assert(known);
    (void)known;
    uint64_t due_ns[WAN_SEGMENTS_MAX];
    for (uint32_t i = 0; i < segments.count; i++) {
        due_ns[i] = held->due_ns - held->span_ns;
        if (segments.count > 1) due_ns[i] += held->span_ns / (segments.count - 1) * i;
        if (!shaper_pass(&node->ingress, wan_segments_wire_bytes(&segments, i), &due_ns[i])) due_ns[i] = DROPPED;
    }
    queue_up(network, &segments, frame, due_ns, &node->inbox);
}

/* The node whose frame for `to` arrives first. */
static uint32_t first_arrival(const struct wan_network *network, uint32_t to) {
    uint32_t from = 0;
    for (uint32_t i = 1; i < network->node_count; i++) {
        if (network->arrivals_ns[to][i] < network->arrivals_ns[to][from]) from = i;
    }
    return from;
}

void wan_network_advance(struct wan_network *network, uint64_t now_ns) {
    struct wan_pool *pool = network->pool;
    for (uint32_t to = 0; to < network->node_count; to++) {
        struct wan_node *node = &network->nodes[to];
        for (uint32_t from; from = first_arrival(network, to), network->arrivals_ns[to][from] <= now_ns;) {
            struct wan_path *path = &network->paths[from][to];
            const uint32_t frame = wan_queue_pop(&path->queue, pool);
            network->arrivals_ns[to][from] = wan_queue_due_ns(&path->queue, pool);
            enter(network, node, frame);
        }
    }
}

uint32_t wan_network_receive(struct wan_network *network, uint32_t node, uint64_t now_ns) {
    struct wan_node *receiver = &network->nodes[node];
    if (wan_queue_due_ns(&receiver->inbox, network->pool) > now_ns) return WAN_NO_PACKET;
    const uint32_t frame = wan_queue_pop(&receiver->inbox, network->pool);
    struct wan_segments segments;
    if (wan_segments_parse(wan_pool_bytes(network->pool, frame), network->pool->packets[frame].len_bytes, &segments)) {
        receiver->delivered += segments.count;
        receiver->delivered_bytes += (uint64_t)(segments.count - 1) * segments.header_bytes +
                                     network->pool->packets[frame].len_bytes - WAN_FRAME_HEADER_BYTES;
    }
    return frame;
}

uint64_t wan_network_next_ns(const struct wan_network *network) {
    uint64_t next_ns = UINT64_MAX;
    for (uint32_t to = 0; to < network->node_count; to++) {
        const uint64_t inbox_ns = wan_queue_due_ns(&network->nodes[to].inbox, network->pool);
        if (inbox_ns < next_ns) next_ns = inbox_ns;
        for (uint32_t from = 0; from < network->node_count; from++) {
            if (network->arrivals_ns[to][from] < next_ns) next_ns = network->arrivals_ns[to][from];
        }
    }
    return next_ns;
}
