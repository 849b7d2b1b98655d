/*
 * The ways of chunks, one function for each algorithm; every collective is one of them or a part of one:
 *   ring      a chunk is combined from member to member once round the ring, then goes round once more; a reduce-scatter
 *             is the first half, an all-gather the second, reduce and broadcast the halves with one chunk for all
 *   tree      the first half of the payload goes up and down one binary tree, the second half another one
 *   direct    everybody sends its contribution to a chunk to the member that owns it, which sends the result to everybody
 *   exchange  everybody sends everything to everybody
 *   pairs     blocks that go from one member to another: gather, scatter, all-to-all, send
 */
#include "plan/chunk_plan.h"

#include "base/checked.h"
#include "bytes/dtype.h"
#include "plan/tree_plan.h"

#include <assert.h>
#include <string.h>

enum {
    LISTS_PER_MEMBER = 4,
    LISTS_MORE = 16
};

size_t pc_chunk_plan_bytes(uint32_t n) {
    return 2 * (size_t)n * sizeof(struct pc_chunk) + ((size_t)n * LISTS_PER_MEMBER + LISTS_MORE) * sizeof(uint32_t) + 8;
}

/* Building blocks ----------------------------------------------------------------------------------------------- */

struct builder {
    struct pc_chunk_plan *plan;
    const struct pc_plan_request *request;
    uint32_t position; /* in the ring */
};

static uint32_t ring_at(const struct builder *b, uint32_t position) {
    return b->request->ring[position % b->plan->n];
}

static uint32_t ring_position(const struct pc_plan_request *request, uint32_t rank) {
    uint32_t position = 0;
    while (request->ring[position] != rank) position++;
    return position;
}

static uint64_t block_elems(const struct pc_plan_request *request, uint32_t rank) {
    return request->counts == NULL ? request->count : request->counts[rank];
}

static uint64_t block_first(const uint64_t *counts, uint64_t count, uint32_t rank) {
    if (counts == NULL) return count * rank;
    uint64_t first = 0;
    for (uint32_t i = 0; i < rank; i++) first += counts[i];
    return first;
}

/* Elements that a codec takes as one: borders lie between them. */
static uint32_t grain(const struct builder *b) {
    return b->plan->codec.kind == pcclQuantNone ? 1 : b->plan->codec.block;
}

/* Part index of parts of the payload starts at floor(grains * index / parts), computed without overflow. */
static uint64_t part_first(const struct builder *b, uint32_t parts, uint32_t index) {
    const uint64_t count = b->request->shape->count, grains = (count + grain(b) - 1) / grain(b);
    return pc_min_u64((grains / parts * index + grains % parts * index / parts) * grain(b), count);
}

/* Likewise of the shares of a direct exchange, whose borders are whole cache lines too. */
static uint64_t share_first(const struct builder *b, uint32_t index) {
    const uint64_t count = b->request->shape->count, step = pc_max_u64(grain(b), 64); /* grains are powers of two */
    if (b->request->shares == NULL) return part_first(b, b->plan->n, index);
    return index == b->plan->n ? count : part_first(b, PC_SHARE_UNITS, b->request->shares[index]) / step * step;
}

/*
 * Segments: some pieces keep all members of a pipeline busy; longer ones only cost cache, shorter ones system calls. A
 * function of the chunk alone, for sender and receiver must agree.
 */
static void cut(const struct builder *b, struct pc_chunk *chunk, uint32_t pieces) {
    /* Far away, a segment on a connection that has lost a packet should be a small part of the whole. */
    if (b->request->rtt_us >= PC_FAR_US) pieces *= 4;
    const struct pc_codec *codec = &b->plan->codec;
    uint64_t least = PC_SEGMENT_MIN_BYTES / b->plan->acc_bytes, most = PC_SEGMENT_MAX_BYTES / b->plan->acc_bytes, step = 64;
    if (codec->kind != pcclQuantNone) {
        /* A segment that cannot be encoded travels as it is, with its headers, and must fit too. */
        const pcclDataType_t dtype = b->plan->acc_bytes == 8 ? pcclDouble : pcclFloat;
        step = codec->block;
        least = PC_SEGMENT_MIN_BYTES * step / pc_codec_bytes(codec, dtype, step);
        most = PC_SEGMENT_MAX_BYTES / pc_codec_bytes_max(codec, dtype, step) * step;
    }
    const uint64_t elems = pc_min_u64(pc_max_u64(chunk->elems / pieces, least), most) / step * step;
    chunk->segment_elems = (uint32_t)pc_max_u64(elems, step);
    chunk->segments = (uint32_t)((chunk->elems + chunk->segment_elems - 1) / chunk->segment_elems);
}

static struct pc_chunk *add_chunk(struct builder *b, uint32_t number, uint64_t elems, uint32_t pieces) {
    struct pc_chunk *chunk = &b->plan->chunks[b->plan->chunk_count++];
    *chunk = (struct pc_chunk){.number = number, .elems = elems, .up = PC_RANK_NONE, .from = PC_RANK_NONE};
    cut(b, chunk, pieces);
    return chunk;
}

static void push(struct builder *b, uint32_t rank) {
    b->plan->ranks[b->plan->rank_count++] = rank;
}

static void add_input(struct builder *b, struct pc_chunk *chunk, uint32_t rank) {
    if (chunk->input_count == 0) chunk->inputs_at = b->plan->rank_count;
    chunk->input_count++;
    push(b, rank);
}

static void add_down(struct builder *b, struct pc_chunk *chunk, uint32_t rank) {
    if (chunk->down_count == 0) chunk->down_at = b->plan->rank_count;
    chunk->down_count++;
    push(b, rank);
}

/* A member's place on a chunk's way: hop 0 is the first contributor, hop n-1 the root. */
static uint32_t hop_of(const struct builder *b, uint32_t start) {
    return (b->position + b->plan->n - start % b->plan->n) % b->plan->n;
}

/* Combined along the ring from position start on; the member before start, which comes last, is the root. */
static void ring_up(struct builder *b, struct pc_chunk *chunk, uint32_t start) {
    const uint32_t hop = hop_of(b, start), n = b->plan->n;
    if (hop > 0) add_input(b, chunk, ring_at(b, b->position + n - 1));
    add_input(b, chunk, b->plan->rank);
    if (hop < n - 1) chunk->up = ring_at(b, b->position + 1);
}

/* The final value goes along the ring from the root, at position root, to the member before it. */
static void ring_down(struct builder *b, struct pc_chunk *chunk, uint32_t root) {
    const uint32_t hop = hop_of(b, root), n = b->plan->n;
    if (hop > 0) chunk->from = ring_at(b, b->position + n - 1);
    if (hop < n - 1) add_down(b, chunk, ring_at(b, b->position + 1));
}

static void tree_up(struct builder *b, struct pc_chunk *chunk, const struct pc_tree_node *node) {
    for (uint32_t i = 0; i < node->child_count; i++) add_input(b, chunk, node->children[i]);
    add_input(b, chunk, b->plan->rank);
    chunk->up = node->parent;
}

static void tree_down(struct builder *b, struct pc_chunk *chunk, const struct pc_tree_node *node) {
    chunk->from = node->parent;
    for (uint32_t i = 0; i < node->child_count; i++) add_down(b, chunk, node->children[i]);
}

static void star_up(struct builder *b, struct pc_chunk *chunk, uint32_t root) {
    if (b->plan->rank != root) {
        add_input(b, chunk, b->plan->rank);
        chunk->up = root;
        return;
    }
    for (uint32_t rank = 0; rank < b->plan->n; rank++) {
        if (rank != root) add_input(b, chunk, rank);
    }
    add_input(b, chunk, root);
}

static void star_down(struct builder *b, struct pc_chunk *chunk, uint32_t root) {
    if (b->plan->rank != root) {
        chunk->from = root;
        return;
    }
    for (uint32_t rank = 0; rank < b->plan->n; rank++) {
        if (rank != root) add_down(b, chunk, rank);
    }
}

/* Collectives --------------------------------------------------------------------------------------------------- */

enum { PIECES_RING = 4, PIECES_DIRECT = 4, PIECES_ONE_WAY = 16 };

static void all_reduce_exchange(struct builder *b) {
    struct pc_chunk *chunk = add_chunk(b, 0, b->request->shape->count, 1);
    chunk->kept = true;
    for (uint32_t rank = 0; rank < b->plan->n; rank++) add_input(b, chunk, rank);
    chunk->copies_at = b->plan->rank_count;
    for (uint32_t rank = 0; rank < b->plan->n; rank++) {
        if (rank == b->plan->rank) continue;
        push(b, rank);
        chunk->copy_count++;
    }
}

/*
 * So many contributions, and no more, keep both directions busy: a few segments, and what is on the way meanwhile. A final
 * value then finds its place still in a cache, where the contribution was read, and no queue between grows out of it.
 */
static uint32_t ahead_of_finals(const struct builder *b) {
    enum { SEGMENTS = 4, BYTES_PER_US = 4000 };
    const struct pc_chunk_plan *plan = b->plan;
    if (b->request->rtt_us >= PC_FAR_US || plan->codec.kind == pcclQuantNone) return 0;
    const pcclDataType_t dtype = plan->acc_bytes == 8 ? pcclDouble : pcclFloat;
    const size_t bytes = pc_codec_bytes(&plan->codec, dtype, plan->chunks[0].segment_elems);
    return (plan->n - 1) * (SEGMENTS + (uint32_t)(b->request->rtt_us * (uint64_t)BYTES_PER_US / bytes));
}

static void all_reduce(struct builder *b) {
    const struct pc_op_shape *shape = b->request->shape;
    const uint32_t n = b->plan->n;
    if (shape->algorithm == PC_ALGORITHM_EXCHANGE) {
        all_reduce_exchange(b);
        return;
    }
    const bool tree = shape->algorithm == PC_ALGORITHM_TREE, direct = shape->algorithm == PC_ALGORITHM_DIRECT;
    const uint32_t parts = tree ? 2 : n;
    for (uint32_t part = 0; part < parts; part++) {
        const uint64_t first = direct ? share_first(b, part) : part_first(b, parts, part);
        const uint64_t end = direct ? share_first(b, part + 1) : part_first(b, parts, part + 1);
        struct pc_chunk *chunk = add_chunk(b, part, end - first, PIECES_RING);
        chunk->own_elem = chunk->out_elem = first;
        chunk->kept = true;
        if (tree) {
            struct pc_tree_node node;
            pc_double_tree_node(n, part, b->plan->rank, &node);
            tree_up(b, chunk, &node);
            tree_down(b, chunk, &node);
        } else if (direct) {
            star_up(b, chunk, part);
            star_down(b, chunk, part);
        } else {
            ring_up(b, chunk, part);
            ring_down(b, chunk, part + n - 1);
        }
    }
    if (direct) b->plan->ahead = ahead_of_finals(b);
}

/* One chunk for all: it only goes up, to the root, or only down from there. */
static void rooted(struct builder *b, bool up) {
    const struct pc_op_shape *shape = b->request->shape;
    const uint32_t n = b->plan->n, rank = b->plan->rank;
    struct pc_chunk *chunk = add_chunk(b, 0, shape->count, PIECES_ONE_WAY);
    const uint32_t root_position = ring_position(b->request, shape->root);
    struct pc_tree_node node;
    pc_rooted_tree_node(n, shape->root, rank, &node);
    const bool tree = shape->algorithm == PC_ALGORITHM_TREE, direct = shape->algorithm == PC_ALGORITHM_DIRECT;
    if (up) {
        chunk->kept = rank == shape->root;
        if (tree) tree_up(b, chunk, &node);
        else if (direct) star_up(b, chunk, shape->root);
        else ring_up(b, chunk, root_position + 1);
        return;
    }
    chunk->kept = true;
    if (rank == shape->root) add_input(b, chunk, rank);
    if (tree) tree_down(b, chunk, &node);
    else if (direct) star_down(b, chunk, shape->root);
    else ring_down(b, chunk, root_position);
}

/* A block for each member: it is combined for that member, or goes from it to all. */
static void blocks(struct builder *b, bool up) {
    const struct pc_plan_request *request = b->request;
    const uint32_t n = b->plan->n, rank = b->plan->rank;
    const bool direct = request->shape->algorithm == PC_ALGORITHM_DIRECT;
    for (uint32_t owner = 0; owner < n; owner++) {
        struct pc_chunk *chunk = add_chunk(b, owner, block_elems(request, owner), PIECES_RING);
        const uint64_t first = block_first(request->counts, request->count, owner);
        const uint32_t position = ring_position(request, owner);
        if (up) {
            chunk->own_elem = first;
            chunk->kept = owner == rank;
            if (direct) star_up(b, chunk, owner);
            else ring_up(b, chunk, position + 1);
        } else {
            chunk->out_elem = first;
            chunk->kept = true;
            if (owner == rank) add_input(b, chunk, rank);
            if (direct) star_down(b, chunk, owner);
            else ring_down(b, chunk, position);
        }
    }
}

/*
 * A block from source to target, announced even when it is empty: only the two of them know its size, and a receiver
 * that expects another one must find out.
 */
static void pair(struct builder *b, uint32_t source, uint32_t target, uint64_t elems, uint64_t own, uint64_t out) {
    const uint32_t rank = b->plan->rank;
    struct pc_chunk *chunk = add_chunk(b, source, elems, PIECES_RING);
    if (chunk->segments == 0) chunk->segments = 1;
    chunk->own_elem = own;
    chunk->out_elem = out;
    chunk->kept = target == rank;
    if (source == rank) add_input(b, chunk, rank);
    if (source == rank && target != rank) add_down(b, chunk, target);
    if (target == rank && source != rank) chunk->from = source;
}

static void gather(struct builder *b) {
    const struct pc_plan_request *request = b->request;
    const uint32_t root = request->shape->root, rank = b->plan->rank;
    for (uint32_t source = 0; source < b->plan->n; source++) {
        if (source != rank && root != rank) continue;
        pair(b, source, root, block_elems(request, source), 0,
             block_first(request->counts, request->count, source));
    }
}

static void scatter(struct builder *b) {
    const struct pc_plan_request *request = b->request;
    const uint32_t root = request->shape->root, rank = b->plan->rank;
    for (uint32_t target = 0; target < b->plan->n; target++) {
        if (target != rank && root != rank) continue;
        pair(b, root, target, block_elems(request, target),
             block_first(request->counts, request->count, target), 0);
    }
}

static void all_to_all(struct builder *b) {
    const struct pc_plan_request *request = b->request;
    const uint32_t n = b->plan->n, rank = b->plan->rank;
    const uint64_t count = request->count;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t in_elems = request->recv_counts == NULL ? count : request->recv_counts[i];
        pair(b, i, rank, in_elems, block_first(request->counts, count, i),
             block_first(request->recv_counts, count, i));
    }
    for (uint32_t step = 1; step < n; step++) { /* each to its own first target: nobody is everyone's first */
        const uint32_t target = (rank + step) % n;
        pair(b, rank, target, block_elems(request, target), block_first(request->counts, count, target), 0);
    }
}

/* Entry points -------------------------------------------------------------------------------------------------- */

static struct pc_codec codec_of(const struct pc_op_shape *shape) {
    return (struct pc_codec){.kind = shape->codec, .bits = shape->codec_bits, .block = shape->codec_block};
}

static bool sensible_codec(const struct pc_op_shape *shape) {
    const struct pc_codec codec = codec_of(shape);
    if (codec.kind == pcclQuantNone) return codec.bits == 0 && codec.block == 0;
    return pc_codec_valid(&codec) && !pc_dtype_is_integer((pcclDataType_t)shape->dtype);
}

static bool sensible(const struct pc_plan_request *request) {
    const struct pc_op_shape *shape = request->shape;
    const bool one_way = shape->collective == PC_SEND_RECV;
    if (one_way && (request->source >= request->n || request->target >= request->n)) return false;
    if (one_way && request->source == request->target) return false;
    if (request->n < 1 || request->n > PC_RANKS_MAX || request->rank >= request->n || shape->root >= request->n) return false;
    if (shape->collective >= PC_COLLECTIVE_COUNT || shape->algorithm >= PC_ALGORITHM_COUNT) return false;
    if (!pc_dtype_valid(shape->dtype) || !pc_redop_valid(shape->redop)) return false;
    if (!pc_redop_fits((pcclRedOp_t)shape->redop, (pcclDataType_t)shape->dtype)) return false;
    if (!sensible_codec(shape)) return false;
    /* Whatever sizes and places are computed from it fits into 64 bits. */
    if (pc_max_u64(shape->count, request->count) > UINT64_MAX / 16 / request->n) return false;
    uint64_t total = 0;
    for (uint32_t i = 0; i < request->n; i++) {
        if (request->counts != NULL) total += pc_min_u64(request->counts[i], UINT64_MAX / 16 / PC_RANKS_MAX);
        if (request->counts != NULL && request->counts[i] > UINT64_MAX / 16 / PC_RANKS_MAX) return false;
        if (request->recv_counts != NULL && request->recv_counts[i] > UINT64_MAX / 16 / PC_RANKS_MAX) return false;
    }
    return total <= UINT64_MAX / 16;
}

/* No value comes from or goes to nowhere, and lists lie within the memory. */
static void prove(const struct pc_chunk_plan *plan) {
    assert(plan->chunk_count <= 2 * plan->n);
    assert(plan->rank_count <= plan->n * LISTS_PER_MEMBER + LISTS_MORE);
    for (uint32_t i = 0; i < plan->chunk_count; i++) {
        const struct pc_chunk *chunk = &plan->chunks[i];
        assert(chunk->input_count > 0 || chunk->from != PC_RANK_NONE);
        assert(chunk->up == PC_RANK_NONE || chunk->input_count > 0);
        assert(chunk->down_count == 0 || chunk->from != PC_RANK_NONE || chunk->up == PC_RANK_NONE);
        assert((uint64_t)chunk->segments * chunk->segment_elems >= chunk->elems);
        (void)chunk;
    }
}

pc_status pc_chunk_plan_init(struct pc_chunk_plan *plan, const struct pc_plan_request *request, void *memory) {
    memset(plan, 0, sizeof *plan);
    if (!sensible(request)) return pcclInvalidArgument;
    const pcclDataType_t dtype = (pcclDataType_t)request->shape->dtype;
    plan->n = request->n;
    plan->rank = request->rank;
    plan->chunks = memory;
    plan->ranks = (uint32_t *)(void *)(plan->chunks + 2 * (size_t)request->n);
    plan->elem_bytes = (uint32_t)pc_dtype_bytes(dtype);
    plan->acc_bytes = (uint32_t)pc_dtype_bytes(pc_dtype_accumulator(dtype));
    plan->codec = codec_of(request->shape);
    struct builder builder = {plan, request, 0}, *b = &builder;
    b->position = ring_position(request, request->rank);
    switch ((enum pc_collective_kind)request->shape->collective) {
    case PC_ALL_REDUCE:
    case PC_BARRIER: all_reduce(b); break;
    case PC_BROADCAST: rooted(b, false); break;
    case PC_REDUCE: rooted(b, true); break;
    case PC_ALL_GATHER: blocks(b, false); break;
    case PC_REDUCE_SCATTER: blocks(b, true); break;
    case PC_GATHER: gather(b); break;
    case PC_SCATTER: scatter(b); break;
    case PC_ALL_TO_ALL: all_to_all(b); break;
    case PC_SEND_RECV: pair(b, request->source, request->target, request->count, 0, 0); break;
    case PC_COLLECTIVE_COUNT:
    default: return pcclInvalidArgument; /* 9 is none */
    }
    prove(plan);
    return pcclSuccess;
}

struct pc_range pc_chunk_segment(const struct pc_chunk *chunk, uint32_t segment) {
    const uint64_t first = (uint64_t)segment * chunk->segment_elems;
    assert(segment < chunk->segments);
    return (struct pc_range){first, (uint32_t)pc_min_u64(chunk->elems - first, chunk->segment_elems)};
}

uint32_t pc_chunk_remote_inputs(const struct pc_chunk_plan *plan, const struct pc_chunk *chunk) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < chunk->input_count; i++) count += plan->ranks[chunk->inputs_at + i] != plan->rank;
    return count;
}

const struct pc_chunk *pc_chunk_find(const struct pc_chunk_plan *plan, uint32_t number) {
    /* Numbers are indices, but for blocks between two members, whose incoming ones come first. */
    if (number < plan->chunk_count && plan->chunks[number].number == number) return &plan->chunks[number];
    for (uint32_t i = 0; i < plan->chunk_count; i++) {
        if (plan->chunks[i].number == number) return &plan->chunks[i];
    }
    return NULL;
}

bool pc_algorithm_fits(const struct pc_op_shape *shape, uint8_t algorithm) {
    const uint64_t bytes = shape->count * pc_dtype_bytes((pcclDataType_t)shape->dtype);
    switch ((enum pc_collective_kind)shape->collective) {
    case PC_ALL_REDUCE:
    case PC_BARRIER:
        /* An exchange stages everything at once. Sparse payloads are added up by everybody: sums are less sparse. */
        if (shape->codec == pcclQuantTopK) return algorithm == PC_ALGORITHM_EXCHANGE;
        return algorithm != PC_ALGORITHM_AUTO && (algorithm != PC_ALGORITHM_EXCHANGE || bytes <= 1 << 20);
    case PC_BROADCAST:
    case PC_REDUCE: return algorithm != PC_ALGORITHM_AUTO && algorithm != PC_ALGORITHM_EXCHANGE;
    case PC_ALL_GATHER:
    case PC_REDUCE_SCATTER: return algorithm == PC_ALGORITHM_RING || algorithm == PC_ALGORITHM_DIRECT;
    default: return algorithm == PC_ALGORITHM_DIRECT;
    }
}

/* Near: what counts is how often bytes are copied and processes woken. */
static uint8_t choose_near(const struct pc_op_shape *shape, uint32_t n, uint64_t bytes) {
    switch ((enum pc_collective_kind)shape->collective) {
    case PC_ALL_REDUCE:
    case PC_BARRIER:
        if (bytes <= 4096 && n <= 8) return PC_ALGORITHM_EXCHANGE;
        if (bytes <= 64 << 10 && n > 2) return PC_ALGORITHM_TREE;
        return PC_ALGORITHM_RING;
    case PC_BROADCAST:
    case PC_REDUCE: return bytes <= 256 << 10 && n > 2 ? PC_ALGORITHM_TREE : PC_ALGORITHM_RING;
    case PC_ALL_GATHER:
    case PC_REDUCE_SCATTER: return bytes <= 64 << 10 ? PC_ALGORITHM_DIRECT : PC_ALGORITHM_RING;
    default: return PC_ALGORITHM_DIRECT;
    }
}

/*
 * Far: what counts is how many trips follow one another, until the payload is so large that the root's own link would be
 * the bottleneck of a star. What fits into a connection's first flight (ten packets) may as well go to everybody.
 */
static uint8_t choose_far(const struct pc_op_shape *shape, uint32_t n, uint64_t bytes) {
    switch ((enum pc_collective_kind)shape->collective) {
    case PC_ALL_REDUCE:
    case PC_BARRIER: return bytes <= 14 << 10 && n <= 16 ? PC_ALGORITHM_EXCHANGE : PC_ALGORITHM_DIRECT;
    case PC_BROADCAST:
    case PC_REDUCE:
        if (bytes <= 256 << 10 || n == 2) return PC_ALGORITHM_DIRECT;
        return bytes <= 4 << 20 ? PC_ALGORITHM_TREE : PC_ALGORITHM_RING;
    default: return PC_ALGORITHM_DIRECT;
    }
}

static uint8_t cheapest(const struct pc_op_shape *shape, const struct pc_cost *cost) {
    uint8_t best = PC_ALGORITHM_DIRECT;
    for (uint8_t algorithm = PC_ALGORITHM_RING; algorithm < PC_ALGORITHM_COUNT; algorithm++) {
        if (pc_cost_ns(cost, shape, algorithm) < pc_cost_ns(cost, shape, best)) best = algorithm;
    }
    return best;
}

uint8_t pc_algorithm_choose(const struct pc_op_shape *shape, uint32_t n, uint32_t rtt_us, const struct pc_cost *cost) {
    const uint64_t bytes = shape->count * pc_dtype_bytes((pcclDataType_t)shape->dtype);
    if (pc_collective_reduces(shape->collective)) {
        if (shape->codec == pcclQuantTopK) return PC_ALGORITHM_EXCHANGE;
        /* Each hop of a ring or tree would encode anew, and add to the error. */
        if (shape->codec != pcclQuantNone) return PC_ALGORITHM_DIRECT;
    }
    if (cost != NULL) return cheapest(shape, cost);
    return rtt_us < PC_FAR_US ? choose_near(shape, n, bytes) : choose_far(shape, n, bytes);
}
