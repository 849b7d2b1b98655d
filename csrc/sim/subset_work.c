/*
 * What the programs do in groups of some members: make one now and then, all with the same list; do an operation in it
 * beside those of the whole, with the same tags in flight, strictly or in steps of its own; give it up when it is broken.
 *
 * Laws, beside those of workload.c: a number stands for one list; a failure names a member of the group, for nothing that
 * happens to others touches it.
 */
#include "sim/workload_state.h"

#include "math/digest.h"

#include <stdlib.h>
#include <string.h>

static uint64_t draw(const struct pc_workload *workload, const struct program *program, uint64_t what) {
    return pc_workload_mix(workload->config.seed, program->step, what);
}

static uint32_t index_of(const struct program *program, const struct subset *subset) {
    return (uint32_t)(subset - program->subsets);
}

/* Making -------------------------------------------------------------------------------------------------------- */

static void drop(struct pc_workload *workload, struct program *program, struct subset *subset) {
    if (subset->number == 0) return;
    pc_error error = {0};
    if (pc_member_destroy_group(program->process->member, subset->number, &error) != pcclSuccess) {
        pc_workload_violate(workload, "L1: peer %u cannot destroy a group: %s", program->slot, error.message);
    }
    subset->number = 0;
}

static struct subset *made_now(const struct pc_workload *workload, struct program *program) {
    return &program->subsets[draw(workload, program, 1601) % SUBSETS_MAX];
}

/* A user error now and then: one peer asks for another list. All must be told, and the next call must work. */
static void spoil(const struct pc_workload *workload, struct program *program) {
    const bool wrong = program->slot == 1 && program->asked_count > 1 && draw(workload, program, 1603) % 16 == 0;
    if (!wrong || program->spoiled_step == program->step + 1) return;
    program->spoiled_step = program->step + 1;
    program->asked_members.n = --program->asked_count;
}

static void ask_for(struct program *program, const struct pc_member_record *record) {
    const uint8_t slot = record->address.ip[3];
    if (slot == program->slot) program->asked_members.rank = program->asked_count;
    program->asked_members.slots[program->asked_count] = slot;
    program->asked[program->asked_count++].id = record->id;
}

static bool asked_for(const struct program *program) {
    const struct member_list *members = &program->asked_members;
    return members->rank < members->n && members->slots[members->rank] == program->slot;
}

/* Some of those that are there, in some order: the same for all that see the same members. */
static void choose(const struct pc_workload *workload, struct program *program) {
    struct pc_member_view view;
    pc_member_view(program->process->member, &view);
    const uint64_t bits = draw(workload, program, 1602);
    program->asked_count = 0;
    for (uint32_t i = 0; i < view.member_count; i++) {
        const struct pc_member_record *record = &view.members[(i + bits / 7) % view.member_count];
        if (view.member_count > 2 && (bits >> i % 60 & 3) == 0) continue;
        ask_for(program, record);
    }
    if (program->asked_count == 0) ask_for(program, &view.members[0]);
    program->asked_members.n = program->asked_count;
}

bool pc_subset_make(struct pc_workload *workload, struct program *program) {
    /* In one schedule of three: the others are quicker without. */
    if (pc_workload_mix(workload->config.seed, 0, 1599) % 3 != 0) return false;
    if (program->grouped_step == program->step + 1 || draw(workload, program, 1600) % 2 != 0) return false;
    drop(workload, program, made_now(workload, program));
    choose(workload, program);
    spoil(workload, program);
    memset(&program->call, 0, sizeof program->call);
    program->call.kind = PC_CALL_CREATE_GROUP;
    program->call.ids = program->asked;
    program->call.id_count = program->asked_count;
    program->state = WAIT_GROUP;
    program->call_out = true;
    pc_workload_post(workload, program, &program->call);
    return true;
}

bool pc_subset_made(struct pc_workload *workload, struct program *program) {
    const pc_status code = program->call.outcome.error.code;
    const uint32_t number = program->call.outcome.group;
    if (code != pcclSuccess) {
        const bool usual = code == pcclMismatch ? workload->disturbed || draw(workload, program, 1603) % 16 == 0
                                                : workload->disturbed && code == pcclRankConnectionLost;
        if (!usual) {
            pc_workload_violate(workload, "L7: unexpected %s of new_group at peer %u: %s", pc_status_name(code),
                                program->slot, program->call.outcome.error.message);
        }
        return false;
    }
    program->grouped_step = program->step + 1;
    if ((number != 0) != asked_for(program)) {
        pc_workload_violate(workload, "L2: peer %u is wrong about being in group %u", program->slot, number);
    }
    if (number == 0) return true;
    struct subset *subset = made_now(workload, program);
    subset->number = number;
    subset->members = program->asked_members;
    for (uint32_t i = 0; i < subset->members.n; i++) subset->ids[i] = program->asked[i].id;
    const uint64_t digest = pc_digest64(subset->ids, subset->members.n * sizeof subset->ids[0]) | 1;
    uint64_t *known = &workload->subset_lists[number % SUBSET_NUMBERS_MAX];
    if (number < SUBSET_NUMBERS_MAX && *known != 0 && *known != digest) {
        pc_workload_violate(workload, "L4: group %u has two member lists", number);
    }
    *known = digest;
    return true;
}

/* Operations ---------------------------------------------------------------------------------------------------- */

static void post(struct pc_workload *workload, struct program *program, struct subset *subset) {
    pc_operation_post(workload, program, &subset->work, &subset->members);
}

static void start_work(struct pc_workload *workload, struct program *program, struct subset *subset) {
    const uint32_t index = index_of(program, subset), tag = TAGS_MAX + index;
    subset->working = true;
    subset->rested = subset->voting = subset->voted = subset->failed = false;
    subset->work = (struct operation){
        .draw = pc_operation_draw(workload, program->step, tag, subset->members.n),
        .step = program->step,
        .tag = tag,
        .group = subset->number,
        .slot = program->slot,
        .in_step = draw(workload, program, 1640 + index) % 2 == 0,
    };
}

void pc_subset_start(struct pc_workload *workload, struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        if (program->subsets[i].number == 0 || draw(workload, program, 1630 + i) % 4 == 0) continue;
        start_work(workload, program, &program->subsets[i]);
    }
    for (uint32_t i = 0; i < SUBSETS_MAX && program->state == WAIT_OPERATIONS; i++) {
        if (program->subsets[i].working) post(workload, program, &program->subsets[i]);
    }
}

bool pc_subset_all_done(const struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        if (program->subsets[i].working && !program->subsets[i].work.done) return false;
    }
    return true;
}

bool pc_subset_untouched(const struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        if (!pc_oracle_untouched(&program->subsets[i].work)) return false;
    }
    return true;
}

void pc_subset_free(struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        pc_oracle_free(&program->subsets[i].work);
        program->subsets[i].working = false;
    }
}

/* Nothing that happens to others touches the group. */
static void check_cause(struct pc_workload *workload, const struct program *program, const struct subset *subset,
                        const pc_error *error) {
    if (error->code != pcclRankConnectionLost) return;
    for (uint32_t i = 0; i < subset->members.n; i++) {
        if (subset->ids[i] == error->peer_id) return;
    }
    pc_workload_violate(workload, "L2: what happened to others failed group %u at peer %u: %s", subset->number,
                        program->slot, error->message);
}

void pc_subset_ended(struct pc_workload *workload, struct program *program, struct subset *subset) {
    const pc_error *error = &subset->work.call.outcome.error;
    const pc_status code = error->code;
    if (code == pcclTooFewPeers && subset->members.n > 1) {
        pc_workload_violate(workload, "L2: group %u of %u is too small for peer %u", subset->number, subset->members.n,
                            program->slot);
    }
    check_cause(workload, program, subset, error);
    subset->failed |= code != pcclSuccess && code != pcclTooFewPeers;
    switch (pc_operation_ended(workload, program, &subset->work)) {
    case OPERATION_OUT: pc_workload_give_up(program); return;
    case OPERATION_AGAIN: post(workload, program, subset); break;
    case OPERATION_BROKEN: drop(workload, program, subset); /* fall through */
    case OPERATION_DONE: subset->work.done = true; break;
    }
    pc_workload_go_on(workload, program);
}

/* Votes --------------------------------------------------------------------------------------------------------- */

void pc_subset_vote(struct pc_workload *workload, struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX && program->state == WAIT_OPERATIONS; i++) {
        struct subset *subset = &program->subsets[i];
        const bool complete = subset->working && subset->work.in_step && subset->work.done;
        if (!complete || subset->voting || subset->voted) continue;
        const bool rests = !subset->rested && pc_world_below(workload->world, 3) == 0;
        subset->rested = true;
        if (rests) { /* others vote meanwhile, or die */
            pc_workload_rest(workload, program);
            continue;
        }
        memset(&subset->vote, 0, sizeof subset->vote);
        subset->vote.kind = PC_CALL_END_STEP;
        subset->vote.group = subset->number;
        subset->vote.vote = !subset->failed;
        subset->vote.timeout_ns = pc_group_vote_limit(workload, program, &subset->work);
        subset->voting = true;
        pc_workload_post(workload, program, &subset->vote);
    }
}

bool pc_subset_all_voted(const struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        const struct subset *subset = &program->subsets[i];
        if (subset->working && subset->work.in_step && !subset->voted) return false;
    }
    return true;
}

void pc_subset_voted(struct pc_workload *workload, struct program *program, struct subset *subset) {
    const pc_error *error = &subset->vote.outcome.error;
    subset->voting = false;
    if (pc_workload_expelled(error->code)) {
        pc_workload_give_up(program);
        return;
    }
    subset->voted = true;
    const bool commit = error->code == pcclSuccess;
    if (commit && subset->failed) {
        pc_workload_violate(workload, "L2: a step of group %u that failed at peer %u was committed", subset->number,
                            program->slot);
    } else if (!commit && error->code != pcclStepAborted && error->code != pcclRankConnectionLost &&
               (error->code != pcclTimeout || subset->vote.timeout_ns == 0)) {
        pc_workload_violate(workload, "L7: unexpected %s of a vote of a group at peer %u: %s", pc_status_name(error->code),
                            program->slot, error->message);
    }
    check_cause(workload, program, subset, error);
    if (!pc_operation_voted(workload, &subset->work, commit)) return;
    if (!commit && strstr(error->message, "is broken") != NULL) {
        drop(workload, program, subset);
    } else if (!commit) {
        subset->rested = subset->voted = subset->failed = false;
        post(workload, program, subset);
    }
    pc_workload_go_on(workload, program);
}
