/*
 * What the programs do in the whole group: some operations at once, each strict or all of them in a step with one vote.
 */
#include "sim/workload_state.h"

#include <string.h>

static uint32_t tags_of(const struct pc_workload *workload, uint64_t step) {
    return 1 + (uint32_t)(pc_workload_mix(workload->config.seed, step, 1) % TAGS_MAX);
}

/* Operations of this step of the program return when they are complete, and are voted on together. */
static bool voted_on(const struct pc_workload *workload, uint64_t step) {
    return pc_workload_mix(workload->config.seed, step, 500) % 3 == 0;
}

/* Sends of a step end here before they are received. Now and then there are four times as many as may wait there. */
static uint32_t times_of(const struct pc_workload *workload, const struct operation *op) {
    const bool far_ahead = workload->config.faults && op->in_step && op->draw.kind == PCCL_COLLECTIVE_SEND &&
                           op->draw.count < 300 && pc_workload_mix(workload->config.seed, op->step, 700) % 6 == 0;
    return far_ahead ? 4 * PC_EAGER_LINK_BYTES / PC_EAGER_FRAME_BYTES : 1;
}

static void post(struct pc_workload *workload, struct program *program, struct operation *op) {
    struct member_list members;
    pc_program_members(program, &members);
    pc_operation_post(workload, program, op, &members);
}

/* It comes to the step when others may have given up their votes on it, once or more often. */
static bool comes_late(const struct pc_workload *workload, const struct program *program) {
    const uint64_t bits = pc_workload_mix(workload->config.seed, program->step, 800 + program->slot);
    return program->in_step && program->operations[0].attempt == 0 && bits % 6 == 0;
}

uint64_t pc_group_vote_limit(const struct pc_workload *workload, const struct program *program, const struct operation *op) {
    const uint64_t which = (uint64_t)op->tag << 16 | (uint64_t)op->attempt << 8 | program->slot;
    static const uint64_t limits_ms[] = {1, 1, 3, 10, 30, 300, 1000, 2500};
    const uint64_t bits = pc_workload_mix(workload->config.seed ^ 0x901, op->step, which);
    const bool gives_up = op->attempt < 4 && bits % 3 == 0;
    return gives_up ? limits_ms[bits >> 20 & 7] * PC_NS_PER_MS : 0;
}

static void post_all(struct pc_workload *workload, struct program *program) {
    program->state = WAIT_OPERATIONS;
    program->step_failed = false;
    const uint64_t turn = pc_world_random(workload->world);
    for (uint32_t i = 0; i < program->operation_count && program->state == WAIT_OPERATIONS; i++) {
        struct operation *op = &program->operations[(i + turn) % program->operation_count];
        program->step_failed |= pc_operation_deserts(op);
        post(workload, program, op);
    }
    pc_workload_go_on(workload, program);
}

void pc_group_start(struct pc_workload *workload, struct program *program) {
    pc_subset_free(program);
    pc_group_free(program);
    program->in_step = voted_on(workload, program->step);
    program->voting = program->voted = false;
    program->operation_count = tags_of(workload, program->step);
    memset(program->operations, 0, sizeof program->operations);
    for (uint32_t tag = 0; tag < program->operation_count; tag++) {
        struct operation *op = &program->operations[tag];
        op->draw = pc_operation_draw(workload, program->step, tag, workload->config.peers);
        op->step = program->step;
        op->tag = tag;
        op->slot = program->slot;
        op->in_step = program->in_step;
        op->times = times_of(workload, op);
    }
    program->state = WAIT_OPERATIONS;
    pc_subset_start(workload, program);
    if (program->state != WAIT_OPERATIONS) return;
    program->late = comes_late(workload, program);
    if (program->late) pc_workload_rest(workload, program);
    else post_all(workload, program);
}

void pc_group_free(struct program *program) {
    for (uint32_t tag = 0; tag < program->operation_count; tag++) pc_oracle_free(&program->operations[tag]);
    program->operation_count = 0;
}

bool pc_group_all_done(const struct program *program) {
    for (uint32_t i = 0; i < program->operation_count; i++) {
        if (!program->operations[i].done) return false;
    }
    return true;
}

bool pc_group_untouched(const struct program *program) {
    for (uint32_t i = 0; i < program->operation_count; i++) {
        if (!pc_oracle_untouched(&program->operations[i])) return false;
    }
    return true;
}

void pc_group_vote(struct pc_workload *workload, struct program *program) {
    memset(&program->call, 0, sizeof program->call);
    program->call.kind = PC_CALL_END_STEP;
    program->call.vote = !program->step_failed;
    program->call.timeout_ns = pc_group_vote_limit(workload, program, &program->operations[0]);
    program->voting = program->call_out = true;
    pc_workload_post(workload, program, &program->call);
}

/* While all are there, somebody else has done what this program has left out, or would have. */
static void check_complete(struct pc_workload *workload, const struct program *program) {
    struct member_list now;
    pc_program_members(program, &now);
    for (uint32_t tag = 0; tag < program->operation_count; tag++) {
        const struct operation *op = &program->operations[tag];
        if (!op->forgotten || op->members.n != now.n) continue;
        pc_workload_violate(workload, "L2: step %llu was committed, and peer %u has not called tag %u",
                            (unsigned long long)program->step, program->slot, tag);
    }
}

void pc_group_voted(struct pc_workload *workload, struct program *program) {
    const pc_status code = program->call.outcome.error.code;
    program->voting = false;
    if (pc_workload_expelled(code)) {
        pc_workload_give_up(program);
        return;
    }
    const bool usual = code == pcclSuccess || code == pcclStepAborted || (code == pcclTimeout && program->call.timeout_ns > 0);
    if (!usual) {
        pc_workload_violate(workload, "L7: unexpected %s of a vote at peer %u: %s", pc_status_name(code), program->slot,
                            program->call.outcome.error.message);
        return;
    }
    if (code == pcclSuccess && program->step_failed) {
        pc_workload_violate(workload, "L2: a step that failed at peer %u was committed", program->slot);
        return;
    }
    for (uint32_t tag = 0; tag < program->operation_count; tag++) {
        if (!pc_operation_voted(workload, &program->operations[tag], code == pcclSuccess)) return;
    }
    program->voted = code == pcclSuccess;
    if (program->voted) {
        check_complete(workload, program);
        pc_workload_go_on(workload, program);
    } else {
        post_all(workload, program);
    }
}

void pc_group_rested(struct pc_workload *workload, struct program *program) {
    if (program->late) {
        program->late = false;
        post_all(workload, program);
        return;
    }
    for (uint32_t i = 0; i < program->operation_count; i++) {
        pc_operation_rested(workload, program, &program->operations[i]);
    }
}

void pc_group_ended(struct pc_workload *workload, struct program *program, struct operation *op) {
    const pc_status code = op->call.outcome.error.code;
    switch (pc_operation_ended(workload, program, op)) {
    case OPERATION_OUT: pc_workload_give_up(program); return;
    case OPERATION_AGAIN: post(workload, program, op); break;
    case OPERATION_DONE:
    case OPERATION_BROKEN: op->done = true; break;
    }
    program->step_failed |= program->in_step && code != pcclSuccess && code != pcclTooFewPeers;
    pc_workload_go_on(workload, program);
}
