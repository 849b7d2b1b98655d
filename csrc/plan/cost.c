/*
 * An algorithm is, for a given collective and root, a line: how long the first bytes are on their way, how long a
 * payload takes at the place that is busiest, how often that place's host wakes up. Lines are drawn once for an epoch;
 * an estimate then costs a few operations. Pure.
 *
 * Loads are in PC_SHARE_UNITS of the payload, speeds in nanoseconds for a MiB.
 */
#include "plan/cost.h"

#include "base/checked.h"
#include "bytes/dtype.h"
#include "math/codec.h"
#include "plan/chunk_plan.h"
#include "plan/tree_plan.h"

#include <assert.h>
#include <string.h>

enum {
    HOP_NS = 15000, /* to wake up for what has arrived and pass it on */
    MESSAGE_NS = 3000, /* of the host's time, in or out */
    HOST_NS_PER_MIB = 210000, /* of the host's time, in or out: 5 GB/s */
    CROWD = 16, /* the part of a near downlink that several senders at once cost, by their bursts */
    STALL = 16, /* the part that a ring of far links costs, for it waits whenever one of them has lost a packet */
    FLIGHT_BYTES = 14 << 10, /* an idle connection begins with ten packets */
    BYTES_PER_MS_MIN = 16,
    RTT_US_MAX = 1 << 26,
    MIB_SHIFT = 20
};

enum { DOWN, UP, WAYS }; /* a rooted collective: from the root, or to it */

/* An uplink or downlink, with the longest link that is used there. */
struct place {
    uint64_t ns_per_mib; /* of the payload, there or at the host, or over the slowest of the links */
    uint64_t link_units; /* over the longest link, before anything else has to come */
    uint64_t far_ns, far_bytes; /* of that: its round trip, and what it holds in one when all of the place are in use */
};

struct line {
    uint64_t path_ns; /* of the first bytes: latencies and wake-ups one after another */
    uint64_t path_ns_per_mib; /* of a segment, which each hop has to receive before it passes it on */
    struct place busiest, slowest; /* the second is where connections need longest to find their speed */
    uint64_t work_ns; /* of the busiest host's messages */
    uint64_t far_ns; /* the longest round trip */
    uint32_t chunks; /* that the payload is cut into */
    uint32_t pieces; /* that a chunk is cut into */
    uint32_t laps; /* not 0: chunks go round and round, this many hops, all at once */
    bool chain; /* a link stays idle until something has come over the one before it */
};

struct pc_cost {
    uint32_t n;
    uint32_t *shares; /* n + 1 */
    bool uneven;
    struct line shared; /* a direct all-reduce with these; the other one is with shares all alike */
    struct line all_reduce[PC_ALGORITHM_COUNT], blocks[PC_ALGORITHM_COUNT];
    struct line *rooted[WAYS]; /* [root * PC_ALGORITHM_COUNT + algorithm] */
};

/* While it is drawn ---------------------------------------------------------------------------------------------- */

struct load {
    uint64_t units, messages;
    uint64_t link_ns; /* for a MiB of the payload, over the link that takes longest */
    uint64_t far_ns, far_units; /* of the longest link */
};

struct draft {
    struct pc_cost *cost;
    const struct pc_cost_request *request;
    uint32_t n;
    uint64_t *up_ns, *down_ns; /* for a MiB through a member's uplink, downlink */
    uint64_t *speed, *active; /* of members that shares are made for */
    struct load *out, *in; /* of a member by the line in hand */
    bool crowded; /* several send to one member at once, by the line in hand */
};

static size_t cell(const struct draft *d, uint32_t from, uint32_t to) {
    return (size_t)from * d->n + to;
}

static uint64_t rate_ns(uint64_t bytes_per_ms) {
    return ((uint64_t)1000000 << MIB_SHIFT) / pc_max_u64(bytes_per_ms, BYTES_PER_MS_MIN);
}

static uint64_t link_ns(const struct draft *d, uint32_t from, uint32_t to) {
    return rate_ns(d->request->bytes_per_ms[cell(d, from, to)]);
}

static uint64_t rtt_us(const struct draft *d, uint32_t from, uint32_t to) {
    return pc_min_u64(d->request->rtt_us[cell(d, from, to)], RTT_US_MAX);
}

static uint64_t hop_ns(const struct draft *d, uint32_t from, uint32_t to) {
    return rtt_us(d, from, to) * 500 + HOP_NS;
}

static bool is_far(const struct line *line) {
    return line->far_ns >= (uint64_t)PC_FAR_US * 1000;
}

static void begin(struct draft *d, struct line *line, uint32_t chunks, uint32_t pieces) {
    *line = (struct line){.chunks = chunks, .pieces = pieces};
    d->crowded = false;
    memset(d->out, 0, 2 * (size_t)d->n * sizeof *d->out);
}

static void add_load(struct load *load, uint64_t units, uint32_t messages, uint64_t link_ns, uint64_t far_ns) {
    load->units += units;
    load->messages += messages;
    load->link_ns = pc_max_u64(load->link_ns, units * link_ns / PC_SHARE_UNITS);
    if (far_ns < load->far_ns) return;
    load->far_units = far_ns > load->far_ns ? units : pc_max_u64(load->far_units, units);
    load->far_ns = far_ns;
}

/* units of the payload go over a link, in so many messages. */
static void carry(struct draft *d, struct line *line, uint32_t from, uint32_t to, uint64_t units, uint32_t messages) {
    if (units == 0) return;
    const uint64_t far_ns = rtt_us(d, from, to) * 1000;
    add_load(&d->out[from], units, messages, link_ns(d, from, to), far_ns);
    add_load(&d->in[to], units, messages, link_ns(d, from, to), far_ns);
    line->far_ns = pc_max_u64(line->far_ns, far_ns);
}

/* The round trips that an idle connection takes to fill the longest link. */
static uint64_t trips_to_fill(const struct place *place) {
    uint64_t trips = 0;
    for (uint64_t left = place->far_bytes / FLIGHT_BYTES; left > 0; left /= 2) trips++;
    return trips;
}

static void add_place(struct line *line, const struct load *load, uint64_t ns_per_mib, uint64_t first_units) {
    if (load->units == 0) return;
    struct place place = {pc_max_u64(ns_per_mib, load->link_ns), first_units, load->far_ns, 0};
    if (first_units == 0) place.link_units = load->far_units;
    /* What goes over the link in the time of the whole: units / PC_SHARE_UNITS MiB in ns_per_mib. */
    place.far_bytes = (load->far_ns << (MIB_SHIFT - 16)) * load->far_units / pc_max_u64(place.ns_per_mib, 1);
    if (place.ns_per_mib > line->busiest.ns_per_mib) line->busiest = place;
    const uint64_t fill_ns = line->slowest.far_ns * trips_to_fill(&line->slowest);
    if (place.far_ns * trips_to_fill(&place) > fill_ns) line->slowest = place;
}

/*
 * first_units go over a link before it has to wait for anything, and when more comes, they have long been acknowledged;
 * 0: nothing waits.
 */
static void finish(const struct draft *d, struct line *line, uint64_t first_units) {
    for (uint32_t i = 0; i < d->n; i++) {
        const struct load *out = &d->out[i], *in = &d->in[i];
        const uint64_t up_ns = out->units * d->up_ns[i] / PC_SHARE_UNITS;
        uint64_t down_ns = in->units * d->down_ns[i] / PC_SHARE_UNITS;
        if (d->crowded && !is_far(line)) down_ns += down_ns / CROWD;
        const uint64_t host_ns = (out->units + in->units) * HOST_NS_PER_MIB / PC_SHARE_UNITS;
        add_place(line, out, pc_max_u64(up_ns, host_ns), first_units);
        add_place(line, in, pc_max_u64(down_ns, host_ns), first_units);
        line->work_ns = pc_max_u64(line->work_ns, (out->messages + in->messages) * MESSAGE_NS);
    }
    if (line->slowest.ns_per_mib == 0) line->slowest = line->busiest;
}

/* Ring ----------------------------------------------------------------------------------------------------------- */

static uint32_t ring_at(const struct draft *d, uint32_t position) {
    return d->request->ring[position % d->n];
}

/*
 * A chunk begins at every member, a part of the payload or a block, and goes on laps hops: n - 1 once round, 2 (n - 1)
 * twice. The slowest goes over all
 * edges but that, or those two next to each other, which are the shortest.
 */
static void draw_ring(struct draft *d, struct line *line, uint32_t laps, uint32_t chunks) {
    const uint32_t n = d->n, rounds = laps < n ? 1 : 2;
    uint64_t sum_ns = 0, slow_ns = 0, spared_ns = UINT64_MAX;
    begin(d, line, chunks, 4);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t from = ring_at(d, i), to = ring_at(d, i + 1), then = ring_at(d, i + 2);
        carry(d, line, from, to, (uint64_t)laps * PC_SHARE_UNITS / chunks, laps);
        sum_ns += hop_ns(d, from, to);
        slow_ns += link_ns(d, from, to);
        spared_ns = pc_min_u64(spared_ns, hop_ns(d, from, to) + (rounds == 2 ? hop_ns(d, to, then) : 0));
    }
    line->laps = laps;
    line->path_ns = rounds * sum_ns - spared_ns;
    line->path_ns_per_mib = slow_ns * laps / n;
    finish(d, line, PC_SHARE_UNITS / chunks);
}

/* One chunk from the root to the member before it, or from the member after the root to it. */
static void draw_ring_rooted(struct draft *d, struct line *line, uint32_t position, int way) {
    begin(d, line, 1, 16);
    line->chain = true;
    for (uint32_t i = 0; i + 1 < d->n; i++) {
        const uint32_t at = position + i + (way == UP ? 1 : 0);
        const uint32_t from = ring_at(d, at), to = ring_at(d, at + 1);
        carry(d, line, from, to, PC_SHARE_UNITS, 1);
        line->path_ns += hop_ns(d, from, to);
        line->path_ns_per_mib += link_ns(d, from, to);
    }
    finish(d, line, 0);
}

/* Tree ----------------------------------------------------------------------------------------------------------- */

struct tree {
    bool rooted;
    uint32_t which; /* the root, or 0 or 1 of a double tree */
};

static uint32_t parent_of(const struct draft *d, struct tree tree, uint32_t rank) {
    struct pc_tree_node node;
    if (tree.rooted) pc_rooted_tree_node(d->n, tree.which, rank, &node);
    else pc_double_tree_node(d->n, tree.which, rank, &node);
    return node.parent;
}

/* The longest way between the root and a member, in the directions that are used. */
static void add_tree_path(const struct draft *d, struct line *line, struct tree tree, bool up, bool down) {
    uint64_t longest_ns = 0, slow_ns = 0;
    for (uint32_t rank = 0; rank < d->n; rank++) {
        uint64_t path_ns = 0, per_mib_ns = 0;
        for (uint32_t at = rank, parent; (parent = parent_of(d, tree, at)) != PC_RANK_NONE; at = parent) {
            if (up) path_ns += hop_ns(d, at, parent);
            if (up) per_mib_ns += link_ns(d, at, parent);
            if (down) path_ns += hop_ns(d, parent, at);
            if (down) per_mib_ns += link_ns(d, parent, at);
        }
        longest_ns = pc_max_u64(longest_ns, path_ns);
        slow_ns = pc_max_u64(slow_ns, per_mib_ns);
    }
    line->path_ns = pc_max_u64(line->path_ns, longest_ns);
    line->path_ns_per_mib = pc_max_u64(line->path_ns_per_mib, slow_ns);
}

/* Half of the payload on each tree; a link that is in both trees carries both halves. */
static void draw_double_tree(struct draft *d, struct line *line) {
    const struct tree trees[2] = {{false, 0}, {false, 1}};
    begin(d, line, 2, 4);
    line->chain = true;
    for (uint32_t t = 0; t < 2; t++) {
        add_tree_path(d, line, trees[t], true, true);
        for (uint32_t rank = 0; rank < d->n; rank++) {
            const uint32_t parent = parent_of(d, trees[t], rank);
            if (parent == PC_RANK_NONE) continue;
            const bool both = parent_of(d, trees[1 - t], rank) == parent || parent_of(d, trees[1 - t], parent) == rank;
            if (both && t == 1) continue;
            const uint32_t messages = both ? 2 : 1;
            carry(d, line, rank, parent, messages * PC_SHARE_UNITS / 2, messages);
            carry(d, line, parent, rank, messages * PC_SHARE_UNITS / 2, messages);
        }
    }
    finish(d, line, 0);
}

static void draw_tree_rooted(struct draft *d, struct line *line, uint32_t root, int way) {
    const struct tree tree = {true, root};
    begin(d, line, 1, 16);
    line->chain = true;
    add_tree_path(d, line, tree, way == UP, way == DOWN);
    for (uint32_t rank = 0; rank < d->n; rank++) {
        const uint32_t parent = parent_of(d, tree, rank);
        if (parent == PC_RANK_NONE) continue;
        carry(d, line, way == UP ? rank : parent, way == UP ? parent : rank, PC_SHARE_UNITS, 1);
    }
    finish(d, line, 0);
}

/* Direct and exchange -------------------------------------------------------------------------------------------- */

static uint64_t longest_hop_ns(const struct draft *d, uint32_t rank, bool out) {
    uint64_t longest_ns = 0;
    for (uint32_t other = 0; other < d->n; other++) {
        if (other == rank) continue;
        longest_ns = pc_max_u64(longest_ns, out ? hop_ns(d, rank, other) : hop_ns(d, other, rank));
    }
    return longest_ns;
}

/* Everybody sends to everybody: units of what the receiver owns, and of what the sender owns. */
static void draw_direct(struct draft *d, struct line *line) {
    const uint32_t *first = d->cost->shares;
    begin(d, line, d->n, 4);
    d->crowded = d->n > 2;
    uint64_t largest = 0;
    for (uint32_t i = 0; i < d->n; i++) {
        const uint64_t own = first[i + 1] - first[i];
        largest = pc_max_u64(largest, own);
        const uint64_t path_ns = longest_hop_ns(d, i, false) + longest_hop_ns(d, i, true);
        if (own > 0) line->path_ns = pc_max_u64(line->path_ns, path_ns);
        for (uint32_t j = 0; j < d->n; j++) {
            if (j != i) carry(d, line, i, j, own + first[j + 1] - first[j], 2);
        }
    }
    finish(d, line, largest);
}

/* Everybody sends the whole of something to everybody: its own block, or that of the receiver; or all it has. */
static void draw_exchange(struct draft *d, struct line *line) {
    begin(d, line, 1, 4);
    d->crowded = d->n > 2;
    for (uint32_t i = 0; i < d->n; i++) {
        line->path_ns = pc_max_u64(line->path_ns, longest_hop_ns(d, i, true));
        for (uint32_t j = 0; j < d->n; j++) {
            if (j != i) carry(d, line, i, j, PC_SHARE_UNITS, 1);
        }
    }
    finish(d, line, 0);
}

static void draw_star(struct draft *d, struct line *line, uint32_t root, int way) {
    begin(d, line, 1, 16);
    d->crowded = d->n > 2 && way == UP;
    line->path_ns = longest_hop_ns(d, root, way == DOWN);
    for (uint32_t i = 0; i < d->n; i++) {
        if (i != root) carry(d, line, way == UP ? i : root, way == UP ? root : i, PC_SHARE_UNITS, 1);
    }
    finish(d, line, 0);
}

/* Shares --------------------------------------------------------------------------------------------------------- */

/*
 * A member that owns the share s sends its contribution to the others' shares and its own result to n - 1 members, in
 * all 1 + (n - 2) s of the payload, and receives as much. All are ready at once if s = (t r - 1) / (n - 2), r its
 * speed and t the common time; the shares of k members make 1 if t = (n - 2 + k) / (sum of their speeds). Who would own
 * less than nothing owns nothing.
 */
static void share_out(struct draft *d, const uint64_t *speed) {
    const uint32_t n = d->n;
    uint32_t *shares = d->cost->shares;
    uint64_t *active = d->active;
    for (uint32_t i = 0; i < n; i++) active[i] = 1;
    uint64_t sum = 0, count = 0;
    for (bool again = true; again;) {
        again = false;
        sum = count = 0;
        for (uint32_t i = 0; i < n; i++) sum += active[i] * speed[i];
        for (uint32_t i = 0; i < n; i++) count += active[i];
        for (uint32_t i = 0; i < n; i++) {
            if (active[i] == 0 || (n - 2 + count) * speed[i] >= sum) continue;
            active[i] = 0;
            again = true;
        }
    }
    /* Borders are sums of what is before them, rounded down: the errors do not add up. */
    uint64_t before = 0;
    for (uint32_t i = 0; i < n; i++) {
        shares[i] = (uint32_t)(before * PC_SHARE_UNITS / (sum * (n - 2)));
        if (active[i] != 0) before += (n - 2 + count) * speed[i] - sum;
    }
    shares[n] = PC_SHARE_UNITS;
}

static void draw_all_direct(struct draft *d) {
    const uint32_t n = d->n;
    for (uint32_t i = 0; i <= n; i++) d->cost->shares[i] = i * PC_SHARE_UNITS / n;
    draw_direct(d, &d->cost->all_reduce[PC_ALGORITHM_DIRECT]);
    uint64_t *speed = d->speed;
    uint64_t slowest = UINT64_MAX, fastest = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t ns = pc_max_u64(pc_max_u64(d->up_ns[i], d->down_ns[i]), 2 * HOST_NS_PER_MIB);
        speed[i] = rate_ns(ns); /* of bytes per ms: its own inverse */
        slowest = pc_min_u64(slowest, speed[i]);
        fastest = pc_max_u64(fastest, speed[i]);
    }
    d->cost->uneven = n > 2 && fastest * 4 > slowest * 5;
    if (d->cost->uneven) {
        share_out(d, speed);
        draw_direct(d, &d->cost->shared);
    }
}

/* Entry points --------------------------------------------------------------------------------------------------- */

static size_t lines_bytes(uint32_t n) {
    return (size_t)n * PC_ALGORITHM_COUNT * sizeof(struct line);
}

size_t pc_cost_bytes(uint32_t n) {
    const size_t member = 4 * sizeof(uint64_t) + 2 * sizeof(struct load);
    return sizeof(struct pc_cost) + WAYS * lines_bytes(n) + n * member + ((size_t)n + 2) / 2 * 2 * sizeof(uint32_t);
}

/* Whether all is known, and some link is slow or long enough for the choice to depend on it. */
static bool tells(const struct pc_cost_request *request) {
    const uint32_t n = request->n;
    bool matters = false;
    if (n < 2 || n > PC_COST_MEMBERS_MAX) return false;
    for (uint32_t i = 0; i < n * n; i++) {
        if (i % (n + 1) == 0) continue;
        if (request->bytes_per_ms[i] == 0) return false;
        matters |= request->bytes_per_ms[i] < PC_FAST_BYTES_PER_MS || request->rtt_us[i] >= PC_FAR_US;
    }
    return matters;
}

static void limit_members(struct draft *d) {
    for (uint32_t i = 0; i < d->n; i++) {
        d->up_ns[i] = d->down_ns[i] = UINT64_MAX;
        for (uint32_t j = 0; j < d->n; j++) {
            if (j == i) continue;
            d->up_ns[i] = pc_min_u64(d->up_ns[i], link_ns(d, i, j));
            d->down_ns[i] = pc_min_u64(d->down_ns[i], link_ns(d, j, i));
        }
    }
}

const struct pc_cost *pc_cost_init(const struct pc_cost_request *request, void *memory) {
    if (!tells(request)) return NULL;
    const uint32_t n = request->n;
    struct pc_cost *cost = memory;
    memset(cost, 0, pc_cost_bytes(n));
    cost->n = n;
    cost->rooted[DOWN] = (struct line *)(void *)(cost + 1);
    cost->rooted[UP] = cost->rooted[DOWN] + (size_t)n * PC_ALGORITHM_COUNT;
    struct draft draft = {.cost = cost, .request = request, .n = n}, *d = &draft;
    d->up_ns = (uint64_t *)(void *)(cost->rooted[UP] + (size_t)n * PC_ALGORITHM_COUNT);
    d->down_ns = d->up_ns + n;
    d->speed = d->down_ns + n;
    d->active = d->speed + n;
    d->out = (struct load *)(void *)(d->active + n);
    d->in = d->out + n;
    cost->shares = (uint32_t *)(void *)(d->in + n);
    limit_members(d);
    draw_ring(d, &cost->all_reduce[PC_ALGORITHM_RING], 2 * (n - 1), n);
    draw_double_tree(d, &cost->all_reduce[PC_ALGORITHM_TREE]);
    draw_all_direct(d);
    draw_exchange(d, &cost->all_reduce[PC_ALGORITHM_EXCHANGE]);
    draw_ring(d, &cost->blocks[PC_ALGORITHM_RING], n - 1, 1);
    draw_exchange(d, &cost->blocks[PC_ALGORITHM_DIRECT]);
    for (uint32_t position = 0; position < n; position++) {
        const uint32_t root = ring_at(d, position);
        for (int way = 0; way < WAYS; way++) {
            struct line *lines = &cost->rooted[way][(size_t)root * PC_ALGORITHM_COUNT];
            draw_ring_rooted(d, &lines[PC_ALGORITHM_RING], position, way);
            draw_tree_rooted(d, &lines[PC_ALGORITHM_TREE], root, way);
            draw_star(d, &lines[PC_ALGORITHM_DIRECT], root, way);
        }
    }
    return cost;
}

/* bytes at so much for a MiB; what does not fit is as good as for ever. */
static uint64_t scaled(uint64_t bytes, uint64_t ns_per_mib) {
    const uint64_t whole = pc_min_u64(bytes >> MIB_SHIFT, (uint64_t)1 << 26);
    const uint64_t per_mib = pc_min_u64(ns_per_mib, ((uint64_t)1 << 36) - 1);
    const uint64_t rest = bytes & (((uint64_t)1 << MIB_SHIFT) - 1);
    return whole * per_mib + (rest * per_mib >> MIB_SHIFT);
}

/* A connection that was idle finds its speed by doubling what it sends in a round trip: trips beyond the first. */
static uint64_t doublings(const struct place *place, uint64_t bytes) {
    const uint64_t flights = (pc_min_u64(bytes, place->far_bytes) + FLIGHT_BYTES - 1) / FLIGHT_BYTES;
    uint64_t trips = 0;
    for (uint64_t left = flights / 2; left > 0; left /= 2) trips++;
    return trips;
}

/* All links find their speed at the same time, but for a chain, where each has to send the first segment for that. */
static uint64_t ramp_ns(const struct line *line, const struct place *place, uint64_t bytes, uint64_t segment) {
    if (!is_far(line)) return 0;
    const uint64_t bounded = pc_min_u64(bytes, (uint64_t)1 << 40); /* no link holds so much */
    const uint64_t once_ns = doublings(place, bounded * place->link_units / PC_SHARE_UNITS) * place->far_ns;
    const uint64_t trips_ns = 2 * line->path_ns; /* there and back over all links of the path */
    if (!line->chain || trips_ns <= place->far_ns) return once_ns;
    return once_ns + doublings(place, segment) * (trips_ns - place->far_ns);
}

static uint64_t estimate_at(const struct line *line, const struct place *place, uint64_t bytes, uint64_t segment) {
    const uint64_t first_ns = line->path_ns + scaled(segment, line->path_ns_per_mib);
    const uint64_t all_ns = scaled(bytes, place->ns_per_mib);
    const uint64_t more_ns = line->work_ns + ramp_ns(line, place, bytes, segment);
    if (line->laps == 0) return first_ns + all_ns + more_ns;
    /* Chunks go round all at once: one is on its way while others pass the busiest place. */
    const uint64_t stall_ns = is_far(line) ? all_ns / STALL : 0;
    return pc_max_u64(first_ns + all_ns / line->laps, all_ns) + stall_ns + more_ns;
}

static uint64_t estimate(const struct line *line, uint64_t bytes) {
    const uint64_t chunk = bytes / line->chunks, pieces = is_far(line) ? 4 : 1;
    uint64_t segment = pc_max_u64(chunk / (line->pieces * pieces), PC_SEGMENT_MIN_BYTES);
    segment = pc_min_u64(pc_min_u64(segment, PC_SEGMENT_MAX_BYTES), chunk);
    return pc_max_u64(estimate_at(line, &line->busiest, bytes, segment),
                      estimate_at(line, &line->slowest, bytes, segment));
}

/* As they travel. */
static uint64_t bytes_of(const struct pc_op_shape *shape) {
    const struct pc_codec codec = {.kind = shape->codec, .bits = shape->codec_bits, .block = shape->codec_block};
    const pcclDataType_t dtype = (pcclDataType_t)shape->dtype;
    if (codec.kind == pcclQuantNone) return shape->count * pc_dtype_bytes(dtype);
    return pc_codec_bytes(&codec, pc_dtype_accumulator(dtype), shape->count);
}

const uint32_t *pc_cost_shares(const struct pc_cost *cost, const struct pc_op_shape *shape) {
    const uint64_t bytes = bytes_of(shape);
    if (!cost->uneven) return NULL;
    const uint64_t alike_ns = estimate(&cost->all_reduce[PC_ALGORITHM_DIRECT], bytes);
    return estimate(&cost->shared, bytes) < alike_ns ? cost->shares : NULL;
}

static uint64_t all_reduce_ns(const struct pc_cost *cost, const struct pc_op_shape *shape, uint8_t algorithm) {
    const bool shared = algorithm == PC_ALGORITHM_DIRECT && pc_cost_shares(cost, shape) != NULL;
    return estimate(shared ? &cost->shared : &cost->all_reduce[algorithm], bytes_of(shape));
}

uint64_t pc_cost_ns(const struct pc_cost *cost, const struct pc_op_shape *shape, uint8_t algorithm) {
    if (!pc_algorithm_fits(shape, algorithm)) return UINT64_MAX;
    const uint64_t bytes = bytes_of(shape);
    const int way = shape->collective == PC_REDUCE ? UP : DOWN;
    switch ((enum pc_collective_kind)shape->collective) {
    case PC_ALL_REDUCE:
    case PC_BARRIER: return all_reduce_ns(cost, shape, algorithm);
    case PC_BROADCAST:
    case PC_REDUCE:
        if (shape->root >= cost->n) return UINT64_MAX;
        return estimate(&cost->rooted[way][(size_t)shape->root * PC_ALGORITHM_COUNT + algorithm], bytes);
    case PC_ALL_GATHER:
    case PC_REDUCE_SCATTER: return estimate(&cost->blocks[algorithm], bytes);
    default: return estimate(&cost->blocks[PC_ALGORITHM_DIRECT], bytes); /* the only one */
    }
}
