/*
 * An operation of a program from post to end: the call that the API would make of it, and what its end must be like,
 * whatever it is and whichever group it is in.
 */
#include "sim/workload_state.h"

#include "base/log.h"
#include "math/codec.h"
#include "math/digest.h"

#include <string.h>

enum {
    PATIENCE = 4, /* attempts of a step */
    AGAIN_MAX = ATTEMPTS_MAX * PC_WORLD_PROCESSES_MAX
};

/* Posting ------------------------------------------------------------------------------------------------------- */

/* All know how much each contributes, so it is part of what they must agree on. */
static bool all_know(pcclCollective_t kind) {
    return kind <= PCCL_COLLECTIVE_REDUCE_SCATTER;
}

/* Nothing goes round a link that is missing. */
static bool direct_only(pcclCollective_t kind) {
    return kind >= PCCL_COLLECTIVE_GATHER && kind <= PCCL_COLLECTIVE_RECV;
}

static bool one_way(pcclCollective_t kind) {
    return kind == PCCL_COLLECTIVE_SEND || kind == PCCL_COLLECTIVE_RECV;
}

bool pc_operation_miscounts(const struct operation *op) {
    return op->draw.blunder == WRONG_COUNT && op->slot == 1 && op->attempt == 0 && op->again == 0 && !op->in_step;
}

/* In a step of the whole; some of these at the second attempt, which others may come to while one is still in the first. */
static bool is_left_out(const struct operation *op, enum blunder blunder) {
    return op->draw.blunder == blunder && op->in_step && op->group == 0 && op->attempt == (op->draw.bits >> 59 & 1);
}

bool pc_operation_deserts(const struct operation *op) {
    return is_left_out(op, DESERTS) && op->slot == 1;
}

static bool forgets(const struct operation *op) {
    return is_left_out(op, FORGETS) && op->slot == 1;
}

/* Slot 1 gives it up. */
static bool may_time_out(const struct operation *op) {
    return op->draw.blunder == IMPATIENT && op->attempt == 0;
}

static struct pc_op_shape shape_of(const struct operation *op) {
    const struct operation_draw *draw = &op->draw;
    struct pc_op_shape shape = {
        .count = all_know(draw->kind) ? op->base : 0,
        .dtype = draw->codec != pcclQuantNone || draw->average ? pcclDouble : pcclInt64,
        .redop = draw->average ? pcclAvg : pcclSum,
        .collective = one_way(draw->kind) ? PC_SEND_RECV : (uint8_t)draw->kind,
        .consistency = op->in_step ? PC_STEP : PC_STRICT,
        .algorithm = draw->algorithm,
    };
    if (pc_collective_has_root(shape.collective)) shape.root = op->root;
    if (draw->codec != pcclQuantNone) {
        shape.codec = (uint8_t)draw->codec;
        shape.codec_bits = draw->codec == pcclQuantIntSum ? PC_CODEC_EXPONENT_BIAS : 64; /* whole numbers */
        shape.codec_block = PC_CODEC_BLOCK_MIN;
    }
    if (draw->kind == PCCL_COLLECTIVE_BARRIER) {
        shape.count = 1;
        shape.dtype = pcclUint8;
        shape.redop = pcclMax;
        shape.collective = PC_BARRIER;
    }
    return shape;
}

/* Blocks of different sizes. */
static void describe_blocks(struct operation *op) {
    struct pc_call *call = &op->call;
    call->counts = op->counts;
    if (op->draw.kind == PCCL_COLLECTIVE_ALL_TO_ALL) call->recv_counts = op->recv_counts;
    if (!all_know(op->draw.kind)) return;
    uint64_t total = 0;
    for (uint32_t rank = 0; rank < op->members.n; rank++) total += op->counts[rank];
    call->shape.layout = pc_digest64(op->counts, op->members.n * sizeof op->counts[0]) | 1;
    call->shape.count = total / op->members.n;
}

static void describe(struct operation *op) {
    struct pc_call *call = &op->call;
    const pcclCollective_t kind = op->draw.kind;
    memset(call, 0, sizeof *call);
    call->kind = PC_CALL_COLLECTIVE;
    call->group = op->group;
    /* Tags are used in all groups, and what only two members do may have the tag of something else. */
    call->tag = (op->group == 0 ? op->tag : op->tag % 2) ^ one_way(kind);
    call->send = op->send_elems == 0 && kind == PCCL_COLLECTIVE_BROADCAST ? op->recv : op->send;
    call->recv = op->recv;
    call->undo = op->undo;
    call->count = op->base;
    call->weight = pc_oracle_own_weight(op);
    call->scale = op->draw.average && call->weight > 1 ? (double)call->weight : 1.0;
    call->shape = shape_of(op);
    call->source = op->source;
    call->target = op->target;
    if (kind == PCCL_COLLECTIVE_BARRIER) call->send = call->recv = &call->barrier;
    if (op->draw.uneven && kind >= PCCL_COLLECTIVE_ALL_GATHER && kind <= PCCL_COLLECTIVE_ALL_TO_ALL) describe_blocks(op);
    if (op->slot == 1 && may_time_out(op) && op->again == 0) call->timeout_ns = PC_NS_PER_MS / 4;
    /* A group of some members does not change; the whole does, and sizes and ranks are of when it was prepared. */
    const bool fits_any = kind == PCCL_COLLECTIVE_ALL_REDUCE || kind == PCCL_COLLECTIVE_BARRIER;
    if (op->group == 0 && !fits_any) call->group_epoch = op->group_epoch;
}

static void log_done(const struct operation *op) {
    char name[48], shape[200];
    pc_operation_name(&op->draw, name, sizeof name);
    pc_op_shape_format(&op->call.shape, shape, sizeof shape);
    pc_log_write(pcclLogDebug, "program %02u: step %llu tag %u: done: %s: %llu elements sent, %llu received: %s", op->slot,
                 (unsigned long long)op->step, op->tag, name, (unsigned long long)op->send_elems,
                 (unsigned long long)op->recv_elems, shape);
}

static void call_it(struct pc_workload *workload, struct program *program, struct operation *op) {
    describe(op);
    pc_workload_attempt(workload, op->step, op->tag, op->attempt)->posted |= 1ull << (op->slot - 1);
    pc_workload_post(workload, program, &op->call);
}

void pc_operation_post(struct pc_workload *workload, struct program *program, struct operation *op,
                       const struct member_list *members) {
    op->members = *members;
    op->group_epoch = pc_program_group_epoch(program);
    pc_oracle_prepare(op);
    /* Two members that lost their link for good would fail each attempt of a step: what has no way round is left out. */
    const bool given_up = op->in_step && op->attempt >= PATIENCE && direct_only(op->draw.kind);
    op->forgotten = !op->idle && !given_up && op->members.n > 1 && forgets(op);
    op->idle |= given_up || op->forgotten || pc_operation_deserts(op);
    op->done = op->idle;
    if (op->idle) return;
    op->rests = op->times > 1 && op->round == 0 && op->target == op->members.rank;
    if (op->rests) {
        pc_workload_rest(workload, program);
    } else {
        call_it(workload, program, op);
    }
}

void pc_operation_rested(struct pc_workload *workload, struct program *program, struct operation *op) {
    if (!op->rests) return;
    op->rests = false;
    call_it(workload, program, op);
}

/* Ending -------------------------------------------------------------------------------------------------------- */

/* Again and again, until it has received from all others. */
static bool receives_from_any(const struct operation *op) {
    return op->draw.kind == PCCL_COLLECTIVE_RECV && op->target == op->members.rank;
}

/* Who was it that a receive from anybody has received from, or has heard of that it will not? */
static void note_source(struct pc_workload *workload, struct operation *op, uint32_t rank) {
    if (!receives_from_any(op)) return;
    const uint64_t slot = rank < op->members.n ? 1ull << (op->members.slots[rank] - 1) : 0;
    if (slot == 0 || rank == op->members.rank || (op->got & slot) != 0) {
        pc_workload_violate(workload, "L2: step %llu tag %u: peer %u received from rank %u of %u, once more or wrongly",
                            (unsigned long long)op->step, op->tag, op->slot, rank, op->members.n);
        return;
    }
    op->got |= slot;
    op->source = rank;
}

static void succeeded(struct pc_workload *workload, struct operation *op) {
    if (pc_log_level() >= pcclLogDebug) log_done(op);
    note_source(workload, op, op->call.outcome.source);
    pc_oracle_check(workload, op);
}

/* Winners and losers of one attempt: only those that were expelled may see it otherwise. */
static void check_agreement(struct pc_workload *workload, const struct operation *op) {
    const struct attempt *attempt = pc_workload_attempt(workload, op->step, op->tag, op->attempt);
    const uint64_t winners = attempt->winners & op->concerned, losers = attempt->losers & op->concerned;
    if (winners == 0 || losers == 0) return;
    pc_workload_violate(workload, "L2: step %llu tag %u attempt %u: success at peers %llx, failure at %llx",
                        (unsigned long long)op->step, op->tag, op->attempt, (unsigned long long)winners,
                        (unsigned long long)losers);
}

/* All that took part had weight 0, as far as this peer can know who they were. */
static bool without_weight(const struct program *program, const struct operation *op) {
    struct member_list now;
    pc_program_members(program, &now);
    return op->draw.weighted && (pc_oracle_weight(op, &op->members) == 0 || pc_oracle_weight(op, &program->members) == 0 ||
                                 pc_oracle_weight(op, &now) == 0);
}

/* Whether the program has to reckon with this failure. */
static bool usual(const struct pc_workload *workload, const struct program *program, const struct operation *op) {
    switch (op->call.outcome.error.code) {
    case pcclRankConnectionLost: return true;
    case pcclMismatch: return op->draw.blunder == WRONG_COUNT;
    case pcclTimeout: return op->draw.blunder == IMPATIENT;
    case pcclInvalidArgument: return without_weight(program, op);
    case pcclRankConnectionFailed: /* two members without a link */
        return workload->disturbed && direct_only(op->draw.kind);
    default: return false;
    }
}

static void check_failure(struct pc_workload *workload, const struct program *program, const struct operation *op) {
    const pc_error *error = &op->call.outcome.error;
    if (!pc_oracle_kept(op, false)) {
        pc_workload_violate(workload, "L2: step %llu tag %u: the buffer of peer %u is not as before after %s",
                            (unsigned long long)op->step, op->tag, op->slot, pc_status_name(error->code));
    }
    if (error->message[0] == '\0') {
        pc_workload_violate(workload, "L7: %s without a message at peer %u", pc_status_name(error->code), op->slot);
    }
    if (pc_workload_expelled(error->code) || error->code == pcclTooFewPeers) return;
    if (!usual(workload, program, op)) {
        pc_workload_violate(workload, "L7: step %llu tag %u: unexpected %s at peer %u: %s", (unsigned long long)op->step,
                            op->tag, pc_status_name(error->code), op->slot, error->message);
    }
    if (!workload->disturbed && strstr(error->message, "the link between") != NULL) {
        pc_workload_violate(workload, "L1: without a fault: %s", error->message);
    }
}

/* One attempt is over for all. False: it was one too many. */
static bool lost_attempt(struct pc_workload *workload, struct operation *op) {
    pc_workload_attempt(workload, op->step, op->tag, op->attempt)->losers |= 1ull << (op->slot - 1);
    check_agreement(workload, op);
    if (++op->attempt < ATTEMPTS_MAX) return true;
    pc_workload_violate(workload, "L1: step %llu tag %u failed %u times at peer %u", (unsigned long long)op->step, op->tag,
                        ATTEMPTS_MAX, op->slot);
    return false;
}

/* Nobody else knows of this post: the rank in it was one of an older epoch, or it has waited for one in vain. */
static bool was_refused(const struct operation *op) {
    const char *message = op->call.outcome.error.message;
    return (one_way(op->draw.kind) && strstr(message, "has changed since its ranks") != NULL) ||
           strstr(message, "could not begin") != NULL;
}

/* Who receives from anybody may hear of a failure of each of the others in each epoch. */
static enum operation_end again(struct pc_workload *workload, struct operation *op) {
    if (++op->again < AGAIN_MAX) return OPERATION_AGAIN;
    pc_workload_violate(workload, "L1: step %llu tag %u was posted %u times at peer %u", (unsigned long long)op->step,
                        op->tag, AGAIN_MAX, op->slot);
    return OPERATION_DONE;
}

static enum operation_end failed(struct pc_workload *workload, const struct program *program, struct operation *op) {
    const pc_error *error = &op->call.outcome.error;
    workload->aborted++;
    check_failure(workload, program, op);
    if (pc_workload_expelled(error->code)) return OPERATION_OUT;
    if (error->code == pcclTooFewPeers) return OPERATION_DONE; /* alone: nothing to do with others */
    if (op->group != 0 && strstr(error->message, "is broken") != NULL) return OPERATION_BROKEN;
    const bool unreachable = error->code == pcclRankConnectionFailed;
    if (unreachable && op->call.source != PC_RANK_NONE) note_source(workload, op, op->call.source);
    if (was_refused(op) || receives_from_any(op)) return again(workload, op);
    if (!lost_attempt(workload, op)) return OPERATION_DONE;
    return unreachable ? OPERATION_DONE : OPERATION_AGAIN; /* it has failed for all, and would fail again */
}

/* In the step that op is part of. */
static bool any_may_time_out(const struct program *program, const struct operation *op) {
    bool any = may_time_out(op);
    for (uint32_t i = 0; i < program->operation_count && op->group == 0; i++) any |= may_time_out(&program->operations[i]);
    return any;
}

static bool somebody_forgets(const struct program *program) {
    bool any = false;
    for (uint32_t i = 0; i < program->operation_count; i++) any |= is_left_out(&program->operations[i], FORGETS);
    return any;
}

/* Of a step: what it came to counts when it has been voted on. */
static enum operation_end ended_in_step(struct pc_workload *workload, const struct program *program, struct operation *op) {
    const pc_error *error = &op->call.outcome.error;
    if (pc_workload_expelled(error->code)) return OPERATION_OUT;
    if (error->code == pcclSuccess) {
        succeeded(workload, op);
        return receives_from_any(op) || ++op->round < op->times ? OPERATION_AGAIN : OPERATION_DONE;
    }
    /* The first failure in a step is that of all its operations, whatever they are. */
    const bool known = error->code == pcclTooFewPeers || error->code == pcclRankConnectionLost ||
                       error->code == pcclInvalidArgument || error->code == pcclStepAborted ||
                       (error->code == pcclRankConnectionFailed && workload->disturbed) ||
                       (error->code == pcclDeadlock && somebody_forgets(program)) ||
                       (error->code == pcclTimeout && any_may_time_out(program, op));
    if (!known) {
        pc_workload_violate(workload, "L7: unexpected %s in a step at peer %u: %s", pc_status_name(error->code), op->slot,
                            error->message);
    }
    if (!pc_oracle_kept(op, true)) {
        pc_workload_violate(workload, "L2: step %llu tag %u: peer %u lost an input that nothing was to come over",
                            (unsigned long long)op->step, op->tag, op->slot);
    }
    return OPERATION_DONE;
}

enum operation_end pc_operation_ended(struct pc_workload *workload, struct program *program, struct operation *op) {
    op->digest = pc_digest64(op->memory, op->memory_elems * sizeof *op->memory);
    if (op->in_step) return ended_in_step(workload, program, op);
    if (op->call.outcome.error.code != pcclSuccess) return failed(workload, program, op);
    workload->committed++;
    succeeded(workload, op);
    pc_oracle_compare(workload, op);
    check_agreement(workload, op);
    return receives_from_any(op) ? OPERATION_AGAIN : OPERATION_DONE;
}

bool pc_operation_voted(struct pc_workload *workload, struct operation *op, bool commit) {
    if (!commit) {
        workload->aborted++;
        op->got = 0;
        op->round = 0;
        return lost_attempt(workload, op);
    }
    if (op->idle || op->call.outcome.error.code != pcclSuccess) return true;
    workload->committed++;
    pc_oracle_compare(workload, op);
    check_agreement(workload, op);
    return true;
}
