/*
 * Memory of an operation at one peer, and what must be in it: formulas. Each element of a send buffer is a function of the
 * peer, the step, the tag and the place; a result is a list of runs, each from one place of one member's send buffer, or
 * of all members' combined.
 *
 * Where peers' values are combined, element 0 of a buffer is one bit for each peer: a sum of these is the set of its parts
 * (but where it travels in 16 bits).
 * Who has weight 0 has numbers in its buffer that nobody must read.
 */
#include "sim/workload_state.h"

#include "base/checked.h"
#include "math/digest.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t MARK = 0x5afe5afe5afe5afe; /* where nothing has been received */
static const uint64_t UNREAD = 0x7ff8dead00000000; /* a NaN, or a huge number */

/* Sizes --------------------------------------------------------------------------------------------------------- */

static bool has_blocks(const struct operation *op) {
    return op->draw.kind >= PCCL_COLLECTIVE_ALL_GATHER && op->draw.kind <= PCCL_COLLECTIVE_ALL_TO_ALL;
}

static bool reduces(const struct operation *op) {
    return op->draw.kind < PCCL_COLLECTIVE_SEND && pc_collective_reduces((uint32_t)op->draw.kind);
}

static bool as_double(const struct operation *op) {
    return op->draw.codec != pcclQuantNone || op->draw.average;
}

/* What goes from one slot to another; where all get the same of it, or it is combined, of the slot that it belongs to. */
static uint64_t pair_elems(const struct operation *op, uint32_t from, uint32_t to) {
    return op->base + (op->draw.uneven ? op->draw.bits >> (from * 5 + to * 3) % 60 & 7 : 0);
}

static uint64_t block_elems(const struct operation *op, uint32_t rank) {
    const uint32_t slot = op->members.slots[rank];
    return pair_elems(op, slot, slot);
}

static uint64_t block_first(const struct operation *op, uint32_t rank) {
    uint64_t first = 0;
    for (uint32_t i = 0; i < rank; i++) first += block_elems(op, i);
    return first;
}

/* Where what is for rank lies in the send buffer of an all-to-all. */
static uint64_t pair_first(const struct operation *op, uint32_t from, uint32_t rank) {
    uint64_t first = 0;
    for (uint32_t i = 0; i < rank; i++) first += pair_elems(op, from, op->members.slots[i]);
    return first;
}

static void fill_counts(struct operation *op) {
    const bool pairs = op->draw.kind == PCCL_COLLECTIVE_ALL_TO_ALL;
    for (uint32_t rank = 0; rank < op->members.n; rank++) {
        const uint32_t other = op->members.slots[rank];
        op->counts[rank] = pairs ? pair_elems(op, op->slot, other) : block_elems(op, rank);
        op->recv_counts[rank] = pair_elems(op, other, op->slot);
    }
}

/* The runs of a result ------------------------------------------------------------------------------------------- */

enum { ALL = UINT32_MAX };

struct run {
    uint64_t elems, first; /* from there on in the send buffer */
    uint32_t rank; /* of that member; ALL: of all, combined */
};

/* What this peer has received when the operation has succeeded, in order. At most one run for each member. */
static uint32_t runs_of(const struct operation *op, struct run *runs) {
    const uint32_t n = op->members.n, rank = op->members.rank;
    const bool root = rank == op->root;
    switch (op->draw.kind) {
    case PCCL_COLLECTIVE_ALL_REDUCE: runs[0] = (struct run){op->base, 0, ALL}; return 1;
    case PCCL_COLLECTIVE_BROADCAST: runs[0] = (struct run){op->base, 0, op->root}; return 1;
    case PCCL_COLLECTIVE_REDUCE: runs[0] = (struct run){root ? op->base : 0, 0, ALL}; return 1;
    case PCCL_COLLECTIVE_REDUCE_SCATTER: runs[0] = (struct run){block_elems(op, rank), block_first(op, rank), ALL}; return 1;
    case PCCL_COLLECTIVE_SCATTER: runs[0] = (struct run){block_elems(op, rank), block_first(op, rank), op->root}; return 1;
    case PCCL_COLLECTIVE_SEND:
    case PCCL_COLLECTIVE_RECV: runs[0] = (struct run){op->target == rank ? op->base : 0, 0, op->source}; return 1;
    case PCCL_COLLECTIVE_BARRIER: return 0;
    case PCCL_COLLECTIVE_ALL_GATHER:
    case PCCL_COLLECTIVE_GATHER:
        for (uint32_t i = 0; i < n; i++) {
            runs[i] = (struct run){root || op->draw.kind == PCCL_COLLECTIVE_ALL_GATHER ? block_elems(op, i) : 0, 0, i};
        }
        return n;
    case PCCL_COLLECTIVE_ALL_TO_ALL:
        for (uint32_t i = 0; i < n; i++) {
            runs[i] = (struct run){op->recv_counts[i], pair_first(op, op->members.slots[i], rank), i};
        }
        return n;
    }
    return 0;
}

static uint64_t received_elems(const struct operation *op) {
    struct run runs[PC_WORLD_PROCESSES_MAX];
    const uint32_t count = runs_of(op, runs);
    uint64_t elems = 0;
    for (uint32_t i = 0; i < count; i++) elems += runs[i].elems;
    return elems;
}

static uint64_t sent_elems(const struct operation *op) {
    const uint32_t n = op->members.n, rank = op->members.rank;
    switch (op->draw.kind) {
    case PCCL_COLLECTIVE_ALL_REDUCE:
    case PCCL_COLLECTIVE_REDUCE: return op->base;
    case PCCL_COLLECTIVE_BROADCAST: return rank == op->root ? op->base : 0;
    case PCCL_COLLECTIVE_ALL_GATHER:
    case PCCL_COLLECTIVE_GATHER: return block_elems(op, rank);
    case PCCL_COLLECTIVE_REDUCE_SCATTER: return block_first(op, n);
    case PCCL_COLLECTIVE_SCATTER: return rank == op->root ? block_first(op, n) : 0;
    case PCCL_COLLECTIVE_ALL_TO_ALL: return pair_first(op, op->slot, n);
    case PCCL_COLLECTIVE_SEND:
    case PCCL_COLLECTIVE_RECV: return op->source == rank ? op->base : 0;
    case PCCL_COLLECTIVE_BARRIER: return 0;
    }
    return 0;
}

/* Partners ------------------------------------------------------------------------------------------------------ */

static uint32_t rank_of(const struct operation *op, uint32_t slot) {
    for (uint32_t rank = 0; rank < op->members.n; rank++) {
        if (op->members.slots[rank] == slot) return rank;
    }
    return PC_RANK_NONE;
}

/* A place is the same for all programs and in all epochs: in the whole group a slot, in another a rank. */
static uint32_t rank_at(const struct operation *op, uint32_t place) {
    if (op->group == 0) return rank_of(op, place + 1);
    return place < op->members.n ? place : PC_RANK_NONE;
}

static uint32_t own_place(const struct operation *op) {
    return op->group == 0 ? op->slot - 1 : op->members.rank;
}

/* Each place has one partner, and of the two one sends. */
static void pair_up(struct operation *op) {
    uint32_t distances = 1;
    while (1u << distances < op->draw.places) distances++;
    const uint32_t distance = 1u << op->draw.bits % distances;
    const uint32_t partner = rank_at(op, own_place(op) ^ distance);
    const bool sends = ((own_place(op) & distance) == 0) == ((op->draw.bits >> 8 & 1) == 0);
    op->idle = partner == PC_RANK_NONE;
    if (op->idle) return;
    op->source = sends ? op->members.rank : partner;
    op->target = sends ? partner : op->members.rank;
    op->concerned = 1ull << (op->slot - 1) | 1ull << (op->members.slots[partner] - 1);
}

static uint64_t slots_of(const struct member_list *members) {
    uint64_t slots = 0;
    for (uint32_t rank = 0; rank < members->n; rank++) slots |= 1ull << (members->slots[rank] - 1);
    return slots;
}

static void find_sender(struct operation *op) {
    op->target = rank_at(op, (uint32_t)(op->draw.bits % op->draw.places));
    op->concerned = 0; /* who waits for anybody may fail for one who has sent nothing yet */
    if (op->target != op->members.rank) {
        op->idle = op->target == PC_RANK_NONE;
        op->source = op->members.rank;
        return;
    }
    op->idle = (slots_of(&op->members) & ~op->got & ~(1ull << (op->slot - 1))) == 0;
}

/* Data ---------------------------------------------------------------------------------------------------------- */

static uint64_t weight_of(const struct operation *op, uint32_t slot) {
    if (!op->draw.weighted) return 1;
    const uint64_t weight = pc_workload_mix(op->draw.bits, slot, op->attempt) % 4;
    return op->draw.average ? weight : weight > 0;
}

uint64_t pc_oracle_own_weight(const struct operation *op) {
    return weight_of(op, op->slot);
}

uint64_t pc_oracle_weight(const struct operation *op, const struct member_list *members) {
    uint64_t weight = 0;
    for (uint32_t rank = 0; rank < members->n; rank++) weight += weight_of(op, members->slots[rank]);
    return weight;
}

static int64_t number_of(const struct operation *op, uint32_t slot, uint64_t at) {
    if (at == 0 && op->draw.codec != pcclQuantIntSum) return (int64_t)(1ull << (slot - 1));
    return (int64_t)((slot * 7919 + op->step * 31 + op->tag * 17 + at) * 0x9e3779b97f4a7c15 >> 54);
}

/* Element at of what slot sends, as it lies in memory. */
static uint64_t input_at(const struct operation *op, uint32_t slot, uint64_t at, bool unread) {
    if (unread) return UNREAD;
    const int64_t number = number_of(op, slot, at);
    const double real = (double)number;
    uint64_t bits;
    memcpy(&bits, as_double(op) ? (const void *)&real : (const void *)&number, sizeof bits);
    return bits;
}

/* Of all memory of the operation but the receive buffer. */
static uint64_t digest_outside(const struct operation *op) {
    const size_t before = (size_t)(op->recv - op->memory), after = op->memory_elems - before - op->recv_elems;
    return pc_digest64(op->memory, before * sizeof *op->memory) * 31 +
           pc_digest64(op->recv + op->recv_elems, after * sizeof *op->memory);
}

static void place_buffers(struct operation *op) {
    const struct operation_draw *draw = &op->draw;
    const bool blocks = has_blocks(op) && draw->kind != PCCL_COLLECTIVE_ALL_TO_ALL;
    const bool can = draw->kind <= PCCL_COLLECTIVE_REDUCE || blocks;
    op->send_elems = sent_elems(op);
    op->recv_elems = received_elems(op);
    op->in_place = draw->in_place && can && op->send_elems > 0 && op->recv_elems > 0;
    const uint64_t own = op->in_place && blocks ? block_first(op, op->members.rank) : 0;
    const bool around = op->recv_elems > op->send_elems; /* the own block lies within what is received, else within what is sent */
    const uint64_t larger = around ? op->recv_elems : op->send_elems;
    op->memory_elems = op->in_place ? larger + 2 : op->send_elems + op->recv_elems + 3;
    op->memory = malloc(op->memory_elems * sizeof *op->memory);
    if (op->memory == NULL) abort();
    uint64_t *first = op->memory + 1;
    op->send = first + (op->in_place && around ? own : 0);
    op->recv = op->in_place ? first + (around ? 0 : own) : first + op->send_elems + 1;
    const bool received_over = draw->kind == PCCL_COLLECTIVE_BROADCAST && op->members.rank != op->root;
    op->undo = received_over || (op->in_place && (reduces(op) || op->draw.codec != pcclQuantNone));
    for (size_t i = 0; i < op->memory_elems; i++) op->memory[i] = MARK;
    const bool unread = weight_of(op, op->slot) == 0;
    for (uint64_t i = 0; i < op->send_elems; i++) op->send[i] = input_at(op, op->slot, i, unread);
    op->outside = digest_outside(op);
}

void pc_oracle_prepare(struct operation *op) {
    pc_oracle_free(op);
    op->base = op->draw.count - pc_operation_miscounts(op);
    op->root = (uint32_t)(op->draw.bits % op->members.n);
    op->source = op->target = PC_RANK_NONE;
    op->concerned = UINT64_MAX;
    op->idle = false;
    if (op->draw.kind == PCCL_COLLECTIVE_SEND) pair_up(op);
    if (op->draw.kind == PCCL_COLLECTIVE_RECV) find_sender(op);
    if (has_blocks(op)) fill_counts(op);
    place_buffers(op);
}

void pc_oracle_free(struct operation *op) {
    free(op->memory);
    op->memory = op->send = op->recv = NULL;
    op->memory_elems = 0;
}

/* Checks -------------------------------------------------------------------------------------------------------- */

static bool inputs_intact(const struct operation *op) {
    const bool unread = weight_of(op, op->slot) == 0;
    for (uint64_t i = 0; i < op->send_elems; i++) {
        if (op->send[i] != input_at(op, op->slot, i, unread)) return false;
    }
    return true;
}

/* A buffer without inputs, over which nothing was to come in the end. */
static bool received_nothing(const struct operation *op) {
    for (uint64_t i = 0; i < op->recv_elems; i++) {
        if (op->recv[i] != MARK) return false;
    }
    return true;
}

bool pc_oracle_kept(const struct operation *op, bool success) {
    if (digest_outside(op) != op->outside) return false;
    if (success) return true;
    return inputs_intact(op) && (op->in_place || !op->undo || received_nothing(op));
}

bool pc_oracle_untouched(const struct operation *op) {
    return op->memory == NULL || op->idle || op->digest == pc_digest64(op->memory, op->memory_elems * sizeof *op->memory);
}

/* Whether element at of what slot has sent has arrived; encoded, it may differ in the last bits. */
static bool right_value(const struct operation *op, uint32_t slot, uint64_t found, uint64_t at) {
    if (op->draw.codec == pcclQuantNone) return found == input_at(op, slot, at, false);
    double real;
    memcpy(&real, &found, sizeof real);
    return isfinite(real) && fabs(real) < 0x1p60 && llround(real) == number_of(op, slot, at);
}

/* Whether element at of the combination is right. */
static bool right_sum(const struct operation *op, const uint64_t *weights, uint64_t divisor, uint64_t found, uint64_t at) {
    int64_t sum = 0;
    for (uint32_t rank = 0; rank < op->members.n; rank++) {
        if (weights[rank] > 0) sum += (int64_t)weights[rank] * number_of(op, op->members.slots[rank], at);
    }
    if (!as_double(op)) return (int64_t)found == sum;
    double real;
    memcpy(&real, &found, sizeof real);
    return isfinite(real) && fabs(real) < 0x1p60 && llround(real * (double)divisor) == sum;
}

static void wrong_element(struct pc_workload *workload, const struct operation *op, uint64_t i, bool who) {
    char name[48];
    pc_operation_name(&op->draw, name, sizeof name);
    pc_workload_violate(workload, "%s: step %llu tag %u, %s: element %llu at peer %u is wrong: %llx among %u",
                        who ? "L5" : "L3", (unsigned long long)op->step, op->tag, name, (unsigned long long)i, op->slot,
                        (unsigned long long)op->recv[i], op->members.n);
}

static void check_runs(struct pc_workload *workload, const struct operation *op) {
    struct run runs[PC_WORLD_PROCESSES_MAX];
    uint64_t weights[PC_WORLD_PROCESSES_MAX];
    const uint32_t count = runs_of(op, runs);
    for (uint32_t rank = 0; rank < op->members.n; rank++) weights[rank] = weight_of(op, op->members.slots[rank]);
    const uint64_t divisor = op->draw.average ? pc_oracle_weight(op, &op->members) : 1;
    uint64_t at = 0;
    for (uint32_t r = 0; r < count; r++) {
        const struct run *run = &runs[r];
        for (uint64_t i = 0; i < run->elems; i++, at++) {
            const bool all = run->rank == ALL;
            const bool right =
                all ? right_sum(op, weights, divisor, op->recv[at], run->first + i)
                    : right_value(op, op->members.slots[run->rank], op->recv[at], run->first + i);
            if (right) continue;
            wrong_element(workload, op, at, all && (op->draw.average || run->first + i == 0));
            return;
        }
    }
    assert(at == op->recv_elems);
}

/*
 * The group may have shrunk between post and start of a call that fits groups of any size, and again with its verdict. It
 * does not grow meanwhile, so its size tells which list it was.
 */
static bool find_participants(const struct pc_workload *workload, struct operation *op) {
    const uint32_t n = op->call.outcome.reduce.local_world_size;
    const struct program *program = &workload->programs[op->slot];
    if (op->members.n == n) return true;
    if (op->draw.kind != PCCL_COLLECTIVE_ALL_REDUCE && op->draw.kind != PCCL_COLLECTIVE_BARRIER) return false;
    if (op->group != 0) return false;
    struct member_list now;
    pc_program_members(program, &now);
    if (now.n == n) op->members = now;
    else if (program->members.n == n) op->members = program->members;
    return op->members.n == n;
}

static uint64_t result_digest(const struct operation *op) {
    return pc_digest64(op->recv, op->recv_elems * sizeof *op->recv) | 1;
}

/* All that succeed hold the same bytes. */
static bool is_alike(const struct operation *op) {
    return op->draw.kind == PCCL_COLLECTIVE_ALL_REDUCE || op->draw.kind == PCCL_COLLECTIVE_BROADCAST ||
           op->draw.kind == PCCL_COLLECTIVE_ALL_GATHER;
}

/*
 * A barrier has been called by all that took part. Others by all that survive it, if they are strict: who died may have
 * had nothing to give, and in a step a root is through at once.
 */
static void check_called(struct pc_workload *workload, const struct operation *op) {
    struct member_list now;
    pc_program_members(&workload->programs[op->slot], &now);
    const bool barrier = op->draw.kind == PCCL_COLLECTIVE_BARRIER;
    if (op->in_step && !barrier) return;
    const uint64_t needed = slots_of(&op->members) & op->concerned & (barrier ? UINT64_MAX : slots_of(&now));
    const uint64_t missing = needed & ~pc_workload_attempt(workload, op->step, op->tag, op->attempt)->posted;
    if (missing == 0) return;
    pc_workload_violate(workload, "L2: step %llu tag %u: peer %u is through, and peers %llx have not called",
                        (unsigned long long)op->step, op->tag, op->slot, (unsigned long long)missing);
}

void pc_oracle_check(struct pc_workload *workload, struct operation *op) {
    if (!find_participants(workload, op)) {
        pc_workload_violate(workload, "L5: step %llu tag %u: peer %u was told of %u participants, its group has %u",
                            (unsigned long long)op->step, op->tag, op->slot, op->call.outcome.reduce.local_world_size,
                            op->members.n);
        return;
    }
    if (op->recv_elems > 0 && reduces(op) && pc_oracle_weight(op, &op->members) == 0) {
        pc_workload_violate(workload, "L5: step %llu tag %u: peer %u has a result of nobody's values",
                            (unsigned long long)op->step, op->tag, op->slot);
    }
    if (!pc_oracle_kept(op, true)) {
        pc_workload_violate(workload, "L2: step %llu tag %u: the inputs of peer %u changed", (unsigned long long)op->step,
                            op->tag, op->slot);
    }
    check_called(workload, op);
    struct attempt *attempt = pc_workload_attempt(workload, op->step, op->tag, op->attempt);
    const uint64_t slots = slots_of(&op->members);
    /* Where all hold the same bytes, looking at them once will do. */
    const uint64_t digest = is_alike(op) ? result_digest(op) : 0;
    if (digest != 0 && attempt->looked_at == digest && attempt->slots == slots) return;
    check_runs(workload, op);
    attempt->looked_at = digest;
    attempt->slots = slots;
}

void pc_oracle_compare(struct pc_workload *workload, const struct operation *op) {
    struct attempt *attempt = pc_workload_attempt(workload, op->step, op->tag, op->attempt);
    const uint64_t digest = is_alike(op) ? result_digest(op) : 0, slots = slots_of(&op->members);
    const bool first = attempt->winners == 0;
    if (!first && attempt->digest != digest) {
        pc_workload_violate(workload, "L3: step %llu tag %u: peer %u holds other bytes than its peers",
                            (unsigned long long)op->step, op->tag, op->slot);
    }
    /* What goes from one to another may come with different lists, one after another. */
    if (!first && attempt->winner_slots != slots && op->concerned == UINT64_MAX) {
        pc_workload_violate(workload, "L5: step %llu tag %u: peer %u did it with peers %llx, others with %llx",
                            (unsigned long long)op->step, op->tag, op->slot, (unsigned long long)slots,
                            (unsigned long long)attempt->winner_slots);
    }
    attempt->digest = digest;
    attempt->winner_slots = slots;
    attempt->winners |= 1ull << (op->slot - 1);
}
