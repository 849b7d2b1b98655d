/*
 * What the programs do in groups of some members: make one now and then, all with the same list; reduce in it beside the
 * reductions of the whole, with the same tags in flight, strictly or in steps of its own; give it up when it is broken.
 *
 * Laws, beside those of workload.c: the sum has exactly the members of the group in it; a number stands for one list;
 * a failure names a member of the group, for nothing that happens to others touches it.
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

static uint32_t tag_of(const struct program *program, const struct subset *subset) {
    return TAGS_MAX + index_of(program, subset);
}

static uint64_t count_of(const struct pc_workload *workload, const struct program *program, const struct subset *subset) {
    const uint64_t number = draw(workload, program, 1610 + index_of(program, subset));
    if (number % 16 == 0) return number / 16 % 4;
    if (number % 64 == 1) return 9000 + number / 64 % 60000;
    return 1 + number / 64 % 300;
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
    program->asked_count--;
}

/* Some of those that are there, in some order: the same for all that see the same members. */
static void choose(const struct pc_workload *workload, struct program *program) {
    struct pc_member_view view;
    pc_member_view(program->process->member, &view);
    const uint64_t bits = draw(workload, program, 1602);
    program->asked_count = 0;
    program->asked_slots = 0;
    for (uint32_t i = 0; i < view.member_count; i++) {
        const struct pc_member_record *record = &view.members[(i + bits / 7) % view.member_count];
        if (view.member_count > 2 && (bits >> i % 60 & 3) == 0) continue;
        program->asked[program->asked_count++].id = record->id;
        program->asked_slots |= 1ull << (record->address.ip[3] - 1);
    }
    if (program->asked_count > 0) return;
    program->asked[program->asked_count++].id = view.members[0].id;
    program->asked_slots = 1ull << (view.members[0].address.ip[3] - 1);
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
    if ((number != 0) != ((program->asked_slots >> (program->slot - 1) & 1) != 0)) {
        pc_workload_violate(workload, "L2: peer %u is wrong about being in group %u", program->slot, number);
    }
    if (number == 0) return true;
    struct subset *subset = made_now(workload, program);
    subset->number = number;
    subset->slots = program->asked_slots;
    subset->n = program->asked_count;
    for (uint32_t i = 0; i < subset->n; i++) subset->ids[i] = program->asked[i].id;
    const uint64_t digest = pc_digest64(subset->ids, subset->n * sizeof subset->ids[0]) | 1;
    uint64_t *known = &workload->subset_lists[number % SUBSET_NUMBERS_MAX];
    if (number < SUBSET_NUMBERS_MAX && *known != 0 && *known != digest) {
        pc_workload_violate(workload, "L4: group %u has two member lists", number);
    }
    *known = digest;
    return true;
}

/* Reductions ---------------------------------------------------------------------------------------------------- */

static void fill(const struct pc_workload *workload, struct program *program, struct subset *subset) {
    const uint64_t count = count_of(workload, program, subset);
    for (uint64_t i = 0; i < count; i++) {
        subset->work.send[i] = pc_workload_value(program->slot, program->step, tag_of(program, subset), i);
    }
}

static void post_work(struct pc_workload *workload, struct program *program, struct subset *subset) {
    struct reduction *work = &subset->work;
    memset(&work->call, 0, sizeof work->call);
    work->call.kind = PC_CALL_COLLECTIVE;
    work->call.group = subset->number;
    work->call.tag = index_of(program, subset) % 2; /* one that the whole uses too */
    work->call.shape = (struct pc_op_shape){
        .count = count_of(workload, program, subset),
        .dtype = pcclInt64,
        .redop = pcclSum,
        .consistency = subset->in_step ? PC_STEP : PC_STRICT,
        .algorithm = (uint8_t)(draw(workload, program, 1620 + index_of(program, subset)) % PC_ALGORITHM_COUNT),
    };
    work->call.send = work->call.recv = work->send;
    work->call.undo = true;
    work->call.weight = 1;
    work->call.scale = 1.0;
    work->done = false;
    pc_workload_post(workload, program, &work->call);
}

void pc_subset_start(struct pc_workload *workload, struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        struct subset *subset = &program->subsets[i];
        if (subset->number == 0 || draw(workload, program, 1630 + i) % 4 == 0) continue;
        memset(&subset->work, 0, sizeof subset->work);
        subset->work.send = malloc(count_of(workload, program, subset) * sizeof(int64_t) + 8);
        if (subset->work.send == NULL) abort();
        subset->in_step = draw(workload, program, 1640 + i) % 2 == 0;
        subset->rested = subset->voted = subset->failed = false;
        fill(workload, program, subset);
    }
    for (uint32_t i = 0; i < SUBSETS_MAX && program->state == WAIT_REDUCE; i++) {
        if (program->subsets[i].work.send != NULL) post_work(workload, program, &program->subsets[i]);
    }
}

bool pc_subset_all_done(const struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        if (program->subsets[i].work.send != NULL && !program->subsets[i].work.done) return false;
    }
    return true;
}

void pc_subset_free(struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        free(program->subsets[i].work.send);
        program->subsets[i].work.send = NULL;
    }
}

static void check_sum(struct pc_workload *workload, struct program *program, const struct subset *subset) {
    const uint64_t count = count_of(workload, program, subset);
    const uint64_t slots = pc_workload_check_sum(workload, program, &subset->work, tag_of(program, subset), count);
    workload->committed++;
    if (count == 0 || slots == subset->slots) return;
    pc_workload_violate(workload, "L5: step %llu: group %u of %llx has a sum over %llx", (unsigned long long)program->step,
                        subset->number, (unsigned long long)subset->slots, (unsigned long long)slots);
}

static bool names_member(const struct subset *subset, const pc_error *error) {
    for (uint32_t i = 0; i < subset->n; i++) {
        if (subset->ids[i] == error->peer_id) return true;
    }
    return false;
}

/* An attempt has failed for all of the group. False: there will be no other, the group is broken. */
static bool try_again(struct pc_workload *workload, struct program *program, struct subset *subset, const pc_error *error) {
    struct reduction *work = &subset->work;
    const uint32_t tag = tag_of(program, subset);
    const bool broken = strstr(error->message, "is broken") != NULL;
    workload->aborted++;
    pc_workload_attempt(workload, program->step, tag, work->attempt)->losers |= 1ull << (program->slot - 1);
    pc_workload_check_agreement(workload, program, work, tag);
    if (!names_member(subset, error) && error->code == pcclRankConnectionLost) {
        pc_workload_violate(workload, "L2: what happened to others failed group %u of %llx at peer %u: %s",
                            subset->number, (unsigned long long)subset->slots, program->slot, error->message);
    }
    if (broken) return false;
    if (++work->attempt < ATTEMPTS_MAX) return true;
    pc_workload_violate(workload, "L1: step %llu: group %u failed %u times at peer %u", (unsigned long long)program->step,
                        subset->number, ATTEMPTS_MAX, program->slot);
    return false;
}

static void check_restored(struct pc_workload *workload, const struct program *program, const struct subset *subset) {
    const uint64_t count = count_of(workload, program, subset);
    for (uint64_t i = 0; i < count; i++) {
        const int64_t before = pc_workload_value(program->slot, program->step, tag_of(program, subset), i);
        if (subset->work.send[i] == before) continue;
        pc_workload_violate(workload, "L2: step %llu group %u: the buffer of peer %u is not as before",
                            (unsigned long long)program->step, subset->number, program->slot);
        return;
    }
}

void pc_subset_reduced(struct pc_workload *workload, struct program *program, struct subset *subset) {
    struct reduction *work = &subset->work;
    const pc_error *error = &work->call.outcome.error;
    if (pc_workload_expelled(error->code)) {
        pc_workload_give_up(program);
        return;
    }
    if (error->code != pcclSuccess && error->code != pcclRankConnectionLost &&
        !(error->code == pcclTooFewPeers && subset->n == 1)) {
        pc_workload_violate(workload, "L7: unexpected %s in a group at peer %u: %s", pc_status_name(error->code),
                            program->slot, error->message);
        return;
    }
    if (subset->in_step) {
        subset->failed |= error->code == pcclRankConnectionLost;
    } else if (error->code == pcclSuccess) {
        check_sum(workload, program, subset);
        pc_workload_check_agreement(workload, program, work, tag_of(program, subset));
    } else if (error->code == pcclRankConnectionLost) {
        check_restored(workload, program, subset);
        if (try_again(workload, program, subset, error)) {
            post_work(workload, program, subset);
            return;
        }
        drop(workload, program, subset);
    }
    work->done = true;
    pc_workload_go_on(workload, program);
}

/* Votes --------------------------------------------------------------------------------------------------------- */

bool pc_subset_vote(struct pc_workload *workload, struct program *program) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        struct subset *subset = &program->subsets[i];
        if (subset->work.send == NULL || !subset->in_step || subset->voted) continue;
        const bool rests = !subset->rested && pc_world_below(workload->world, 3) == 0;
        subset->rested = true;
        if (rests) { /* others vote meanwhile, or die */
            pc_workload_rest(workload, program);
            return true;
        }
        memset(&program->call, 0, sizeof program->call);
        program->call.kind = PC_CALL_END_STEP;
        program->call.group = subset->number;
        program->call.vote = !subset->failed;
        program->voting = i;
        program->state = WAIT_SUBSET_VOTE;
        program->call_out = true;
        pc_workload_post(workload, program, &program->call);
        return true;
    }
    return false;
}

void pc_subset_voted(struct pc_workload *workload, struct program *program) {
    struct subset *subset = &program->subsets[program->voting];
    struct reduction *work = &subset->work;
    const pc_error *error = &program->call.outcome.error;
    if (pc_workload_expelled(error->code)) {
        pc_workload_give_up(program);
        return;
    }
    program->state = WAIT_REDUCE;
    subset->voted = true;
    if (error->code == pcclSuccess) {
        if (subset->failed) {
            pc_workload_violate(workload, "L2: a step of group %u that failed at peer %u was committed", subset->number,
                                program->slot);
        } else if (work->call.outcome.error.code == pcclSuccess) {
            check_sum(workload, program, subset);
            pc_workload_check_agreement(workload, program, work, tag_of(program, subset));
        }
    } else if (error->code != pcclStepAborted && error->code != pcclRankConnectionLost) {
        pc_workload_violate(workload, "L7: unexpected %s of a vote of a group at peer %u: %s", pc_status_name(error->code),
                            program->slot, error->message);
    } else if (try_again(workload, program, subset, error)) {
        subset->rested = subset->voted = subset->failed = false;
        fill(workload, program, subset);
        post_work(workload, program, subset);
        return;
    } else {
        drop(workload, program, subset);
    }
    pc_workload_go_on(workload, program);
}
