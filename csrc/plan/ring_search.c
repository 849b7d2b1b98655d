/*
 * A ring in a directed graph, by choosing edges one after another and drawing every conclusion from each choice: an edge
 * chosen forbids the others that leave and enter the same members and the one that would close a ring too early; a member
 * left with one edge on a side has it chosen. Where a conclusion contradicts another, the last choice is undone and its
 * edge forbidden. Next to its bottleneck a graph has members with few edges left, so that conclusions do most of the
 * work, and a graph without a ring is usually refuted after few choices.
 *
 * Choices fall on the member with the fewest edges left. An attempt that takes long is given up for one that begins
 * elsewhere: an unlucky first choice can cost any time, a lucky one hardly any. Pure; the budget counts edges looked at.
 */
#include "plan/ring_search.h"

#include <assert.h>
#include <string.h>

enum { SIDE_OUT = 0, SIDE_IN = 1, FIRST_ATTEMPT = 20000 };

#define NONE UINT32_MAX

size_t pc_ring_search_bytes(uint32_t n) {
    const size_t words = (n + 63) / 64, rows = 2 * (size_t)n + 1;
    const size_t counters = 5 * (size_t)n + (size_t)n * n + 2 * (size_t)n;
    return rows * words * sizeof(uint64_t) + n * sizeof(struct pc_ring_join) + (counters + 1) / 2 * 2 * sizeof(uint32_t);
}

void pc_ring_search_init(struct pc_ring_search *s, uint32_t n, void *memory) {
    const uint32_t words = (n + 63) / 64;
    *s = (struct pc_ring_search){.n = n, .words = words, .out = memory};
    s->in = s->out + (size_t)n * words;
    s->seen = s->in + (size_t)n * words;
    s->joins = (struct pc_ring_join *)(void *)(s->seen + words);
    s->out_degree = (uint32_t *)(void *)(s->joins + n);
    s->in_degree = s->out_degree + n;
    s->next = s->in_degree + n;
    s->prev = s->next + n;
    s->far = s->prev + n;
    s->queue = s->far + n;
    s->removed = s->queue + 2 * (size_t)n;
}

/* Bits ---------------------------------------------------------------------------------------------------------- */

static bool has(const uint64_t *row, uint32_t i) {
    return row[i / 64] >> i % 64 & 1;
}

static void set(uint64_t *row, uint32_t i) {
    row[i / 64] |= (uint64_t)1 << i % 64;
}

static void clear(uint64_t *row, uint32_t i) {
    row[i / 64] &= ~((uint64_t)1 << i % 64);
}

/* The first bit at or after from; NONE: there is none. */
static uint32_t first_bit(const uint64_t *row, uint32_t words, uint32_t from) {
    uint32_t word = from / 64;
    if (word >= words) return NONE;
    uint64_t bits = row[word] & UINT64_MAX << from % 64;
    while (bits == 0) {
        if (++word == words) return NONE;
        bits = row[word];
    }
    return word * 64 + (uint32_t)__builtin_ctzll(bits);
}

/* The last bit at or before to. */
static uint32_t last_bit(const uint64_t *row, uint32_t to) {
    uint32_t word = to / 64;
    uint64_t bits = row[word] & UINT64_MAX >> (63 - to % 64);
    while (bits == 0) {
        if (word-- == 0) return NONE;
        bits = row[word];
    }
    return word * 64 + 63 - (uint32_t)__builtin_clzll(bits);
}

static uint64_t *out_row(const struct pc_ring_search *s, uint32_t member) {
    return s->out + (size_t)member * s->words;
}

static uint64_t *in_row(const struct pc_ring_search *s, uint32_t member) {
    return s->in + (size_t)member * s->words;
}

/* Conclusions --------------------------------------------------------------------------------------------------- */

static void spend(struct pc_ring_search *s, uint64_t steps) {
    const bool stopped = s->stop != NULL && atomic_load_explicit(s->stop, memory_order_relaxed);
    s->budget -= steps < s->budget && !stopped ? steps : s->budget;
}

static void ask(struct pc_ring_search *s, uint32_t member, uint32_t side) {
    s->queue[s->queue_count++] = 2 * member + side;
}

static void forbid(struct pc_ring_search *s, uint32_t from, uint32_t to) {
    if (!has(out_row(s, from), to)) return;
    clear(out_row(s, from), to);
    clear(in_row(s, to), from);
    s->removed[s->removed_count++] = from * s->n + to;
    s->out_degree[from]--;
    s->in_degree[to]--;
    s->failed |= s->out_degree[from] == 0 || s->in_degree[to] == 0;
    if (s->out_degree[from] == 1) ask(s, from, SIDE_OUT);
    if (s->in_degree[to] == 1) ask(s, to, SIDE_IN);
}

static void choose(struct pc_ring_search *s, uint32_t from, uint32_t to) {
    assert(s->next[from] == NONE && s->prev[to] == NONE);
    const struct pc_ring_join join = {from, to, s->far[from], s->far[to]};
    s->joins[s->join_count++] = join;
    s->next[from] = to;
    s->prev[to] = from;
    s->far[join.start] = join.end;
    s->far[join.end] = join.start;
    spend(s, s->out_degree[from] + s->in_degree[to]);
    for (uint32_t i = first_bit(out_row(s, from), s->words, 0); i != NONE; i = first_bit(out_row(s, from), s->words, i + 1)) {
        if (i != to) forbid(s, from, i);
    }
    for (uint32_t i = first_bit(in_row(s, to), s->words, 0); i != NONE; i = first_bit(in_row(s, to), s->words, i + 1)) {
        if (i != from) forbid(s, i, to);
    }
    if (s->join_count + 1 < s->n) forbid(s, join.end, join.start);
}

/* Returns false on a contradiction. */
static bool conclude(struct pc_ring_search *s) {
    while (s->queue_count > 0 && !s->failed) {
        const uint32_t entry = s->queue[--s->queue_count], member = entry / 2;
        if (entry % 2 == SIDE_OUT && s->next[member] == NONE) {
            choose(s, member, first_bit(out_row(s, member), s->words, 0));
        } else if (entry % 2 == SIDE_IN && s->prev[member] == NONE) {
            choose(s, first_bit(in_row(s, member), s->words, 0), member);
        }
    }
    const bool consistent = !s->failed;
    s->failed = false;
    s->queue_count = 0;
    return consistent;
}

static void undo(struct pc_ring_search *s, uint32_t removed_count, uint32_t join_count) {
    spend(s, s->removed_count - removed_count);
    while (s->removed_count > removed_count) {
        const uint32_t edge = s->removed[--s->removed_count], from = edge / s->n, to = edge % s->n;
        set(out_row(s, from), to);
        set(in_row(s, to), from);
        s->out_degree[from]++;
        s->in_degree[to]++;
    }
    while (s->join_count > join_count) {
        const struct pc_ring_join *join = &s->joins[--s->join_count];
        s->next[join->from] = s->prev[join->to] = NONE;
        s->far[join->start] = join->from;
        s->far[join->from] = join->start;
        s->far[join->to] = join->end;
        s->far[join->end] = join->to;
    }
}

/* Bounds -------------------------------------------------------------------------------------------------------- */

/* Whether member 0 reaches everybody along the rows. */
static bool reaches_all(struct pc_ring_search *s, const uint64_t *rows) {
    memset(s->seen, 0, s->words * sizeof *s->seen);
    set(s->seen, 0);
    uint32_t *stack = s->queue, depth = 0, count = 1; /* between conclusions nobody else uses it */
    stack[depth++] = 0;
    while (depth > 0) {
        const uint64_t *row = rows + (size_t)stack[--depth] * s->words;
        for (uint32_t word = 0; word < s->words; word++) {
            uint64_t fresh = row[word] & ~s->seen[word];
            s->seen[word] |= fresh;
            for (; fresh != 0; fresh &= fresh - 1) {
                stack[depth++] = word * 64 + (uint32_t)__builtin_ctzll(fresh);
                count++;
            }
        }
    }
    spend(s, (uint64_t)s->n * s->words);
    return count == s->n;
}

/* Gives from a follower of its own, which may cost another member its follower and give that one a new one. */
static bool match(struct pc_ring_search *s, uint32_t from, uint32_t *leader) {
    for (uint32_t word = 0; word < s->words; word++) {
        for (;;) {
            const uint64_t fresh = out_row(s, from)[word] & ~s->seen[word];
            if (fresh == 0) break;
            const uint32_t to = word * 64 + (uint32_t)__builtin_ctzll(fresh);
            set(s->seen, to);
            if (leader[to] != NONE && !match(s, leader[to], leader)) continue;
            leader[to] = from;
            return true;
        }
    }
    return false;
}

/* Whether every member can have a follower of its own: rings of any lengths that hold each member once. */
static bool covers(struct pc_ring_search *s) {
    uint32_t *leader = s->removed; /* not in use before the search */
    for (uint32_t i = 0; i < s->n; i++) leader[i] = NONE;
    for (uint32_t i = 0; i < s->n; i++) {
        memset(s->seen, 0, s->words * sizeof *s->seen);
        if (!match(s, i, leader)) return false;
    }
    return true;
}

static bool load(struct pc_ring_search *s, const uint64_t *bandwidth, uint64_t least) {
    const uint32_t n = s->n;
    memset(s->out, 0, 2 * (size_t)n * s->words * sizeof *s->out);
    s->removed_count = s->join_count = s->queue_count = 0;
    s->failed = false;
    memset(s->in_degree, 0, n * sizeof *s->in_degree);
    for (uint32_t i = 0; i < n; i++) {
        s->out_degree[i] = 0;
        s->next[i] = s->prev[i] = NONE;
        s->far[i] = i;
        for (uint32_t j = 0; j < n; j++) {
            if (i == j || bandwidth[(size_t)i * n + j] < least) continue;
            set(out_row(s, i), j);
            set(in_row(s, j), i);
            s->out_degree[i]++;
            s->in_degree[j]++;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        if (s->out_degree[i] == 0 || s->in_degree[i] == 0) return false;
    }
    return reaches_all(s, s->out) && reaches_all(s, s->in) && covers(s);
}

/* The first conclusions: those from members that have one edge on a side to begin with. */
static bool conclude_first(struct pc_ring_search *s) {
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->out_degree[i] == 1) ask(s, i, SIDE_OUT);
        if (s->in_degree[i] == 1) ask(s, i, SIDE_IN);
    }
    return conclude(s);
}

bool pc_ring_search_plausible(struct pc_ring_search *s, const uint64_t *bandwidth, uint64_t least) {
    s->budget = UINT64_MAX;
    if (!load(s, bandwidth, least) || !conclude_first(s)) return false;
    return reaches_all(s, s->out) && reaches_all(s, s->in);
}

/* Choices ------------------------------------------------------------------------------------------------------- */

static uint32_t mix(uint64_t seed, uint32_t member) {
    uint64_t x = seed + member * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(x >> 32);
}

/* The side of a member, as 2 * member + side, with the fewest edges left to choose from: so many. */
static uint32_t tightest(struct pc_ring_search *s, uint32_t *edges) {
    uint32_t best = NONE, best_degree = NONE, best_tie = NONE;
    for (uint32_t i = 0; i < s->n; i++) {
        const uint32_t out = s->next[i] == NONE ? s->out_degree[i] : NONE, in = s->prev[i] == NONE ? s->in_degree[i] : NONE;
        const uint32_t degree = out <= in ? out : in;
        if (degree > best_degree || degree == NONE) continue;
        const uint32_t tie = s->seed == 0 ? i : mix(s->seed, i);
        if (degree == best_degree && tie >= best_tie) continue;
        best = 2 * i + (out <= in ? SIDE_OUT : SIDE_IN);
        best_degree = degree;
        best_tie = tie;
    }
    spend(s, s->n);
    *edges = best_degree;
    return best;
}

/*
 * Whether everybody still leads to everybody. No question where all sides have edges to half of the paths there are: two
 * members that are not neighbours have one in common.
 */
static bool connected(struct pc_ring_search *s, uint32_t edges) {
    return 2 * edges >= s->n - s->join_count || (reaches_all(s, s->out) && reaches_all(s, s->in));
}

/* The edge to try: to the nearest member after this one (or from that before it), or beginning anywhere if seeded. */
static void pick(const struct pc_ring_search *s, uint32_t entry, uint32_t *from, uint32_t *to) {
    const uint32_t member = entry / 2;
    const uint32_t begin = s->seed == 0 ? member : mix(s->seed + 1, member) % s->n;
    if (entry % 2 == SIDE_OUT) {
        *from = member;
        *to = first_bit(out_row(s, member), s->words, begin);
        if (*to == NONE) *to = first_bit(out_row(s, member), s->words, 0);
    } else {
        *to = member;
        *from = last_bit(in_row(s, member), begin);
        if (*from == NONE) *from = last_bit(in_row(s, member), s->n - 1);
    }
}

/* On PC_RING_IMPOSSIBLE, what was chosen and forbidden here is still to be undone. */
static enum pc_ring_found descend(struct pc_ring_search *s) {
    for (;;) {
        if (s->join_count == s->n) return PC_RING_FOUND;
        if (s->budget == 0) return PC_RING_UNDECIDED;
        uint32_t edges = 0, from = NONE, to = NONE;
        const uint32_t entry = tightest(s, &edges);
        if (!connected(s, edges)) return PC_RING_IMPOSSIBLE;
        pick(s, entry, &from, &to);
        const uint32_t removed_count = s->removed_count, join_count = s->join_count;
        choose(s, from, to);
        const enum pc_ring_found found = conclude(s) ? descend(s) : PC_RING_IMPOSSIBLE;
        if (found != PC_RING_IMPOSSIBLE) return found;
        undo(s, removed_count, join_count);
        forbid(s, from, to);
        if (!conclude(s)) return PC_RING_IMPOSSIBLE;
    }
}

enum pc_ring_found pc_ring_search_run(struct pc_ring_search *s, const uint64_t *bandwidth, uint64_t least,
                                      uint64_t *budget, uint32_t *order) {
    const uint64_t square = (uint64_t)s->n * s->n;
    uint64_t limit = FIRST_ATTEMPT + 16 * square;
    enum pc_ring_found found = PC_RING_UNDECIDED;
    for (uint64_t seed = 0; found == PC_RING_UNDECIDED && *budget > 0; seed++, limit += limit / 2) {
        s->budget = UINT64_MAX;
        if (!load(s, bandwidth, least) || !conclude_first(s)) found = PC_RING_IMPOSSIBLE;
        s->seed = seed;
        const uint64_t share = limit < *budget ? limit : *budget;
        s->budget = share;
        if (found == PC_RING_UNDECIDED) found = descend(s);
        const uint64_t used = square + share - s->budget;
        *budget -= used < *budget ? used : *budget;
    }
    if (found != PC_RING_FOUND) return found;
    for (uint32_t i = 0, member = 0; i < s->n; i++, member = s->next[member]) order[i] = member;
    return found;
}
