/*
 * User programs and laws of the simulation.
 *
 * Laws, checked at every completion and every event:
 *   L1  every call ends within CALL_LIMIT of virtual time, and every program that was not killed comes to its end;
 *       who answers in time is not removed for others' silence
 *   L2  an attempt of an operation succeeds on all that survive it or fails on all; after a failure the inputs are as
 *       before; nobody is through before all have called, and nobody writes to a buffer after its call has ended
 *   L3  all that succeed hold the bytes that the operation makes of the inputs of those that took part (oracle.c)
 *   L4  epochs only grow; one number, one member list
 *   L5  those that took part are the members of the group, as many as the result names, each with its weight
 */
#include "sim/workload_state.h"

#include "base/checked.h"
#include "math/digest.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum alarm { ALARM_START, ALARM_NEXT, ALARM_CRASH, ALARM_VANISH, ALARM_PAUSE, ALARM_CUT, ALARM_DEAFEN, ALARM_LATE,
             ALARM_CHECK, ALARM_RESTED };

void pc_workload_violate(struct pc_workload *workload, const char *format, ...) {
    if (workload->broken) return;
    workload->broken = workload->stop = true;
    char text[400];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)snprintf(workload->verdict, sizeof workload->verdict, "%s (at %.6f s)", text,
                   (double)pc_world_now(workload->world) / 1e9);
}

/* The data of the programs: pure functions of (seed, step, tag) ---------------------------------------------------- */

uint64_t pc_workload_mix(uint64_t a, uint64_t b, uint64_t c) {
    const uint64_t words[3] = {a, b, c};
    return pc_digest64(words, sizeof words);
}

/* The links are measured before this step of the program. In one schedule of three: the others are quicker without. */
static bool optimized(const struct pc_workload *workload, uint64_t step) {
    if (pc_workload_mix(workload->config.seed, 0, 598) % 3 != 0) return false;
    return pc_workload_mix(workload->config.seed, step, 600) % 5 == 0;
}

static int64_t state_of(const struct pc_workload *workload, uint64_t step, uint64_t i) {
    return (int64_t)pc_workload_mix(workload->config.seed ^ 0x5745, step, i);
}

struct attempt *pc_workload_attempt(struct pc_workload *workload, uint64_t step, uint32_t tag, uint32_t attempt) {
    return &workload->attempts[(step * (TAGS_MAX + SUBSETS_MAX) + tag) * ATTEMPTS_MAX + attempt];
}

void pc_program_members(const struct program *program, struct member_list *members) {
    struct pc_member_view view;
    pc_member_view(program->process->member, &view);
    members->n = view.member_count;
    members->rank = 0;
    for (uint32_t rank = 0; rank < view.member_count; rank++) {
        members->slots[rank] = view.members[rank].address.ip[3];
        if (view.members[rank].id == view.id) members->rank = rank;
    }
}

uint64_t pc_program_group_epoch(const struct program *program) {
    struct pc_member_view view;
    pc_member_view(program->process->member, &view);
    return view.group_epoch;
}

/* Posting ------------------------------------------------------------------------------------------------------- */

void pc_workload_post(struct pc_workload *workload, struct program *program, struct pc_call *call) {
    call->user = program;
    call->blocking = true;
    program->waiting_ns = pc_world_now(workload->world);
    pc_world_post(program->process, call);
}

static void post_joint(struct pc_workload *workload, struct program *program, enum pc_call_kind kind,
                       enum program_state state) {
    memset(&program->call, 0, sizeof program->call);
    program->call.kind = kind;
    program->state = state;
    program->call_out = true;
    pc_workload_post(workload, program, &program->call);
}

static void delay(struct pc_workload *workload, struct program *program, uint64_t delay_ns) {
    program->state = WAIT_DELAY;
    pc_world_alarm(workload->world, pc_world_now(workload->world) + delay_ns, ALARM_NEXT, program->slot);
}

void pc_workload_rest(struct pc_workload *workload, const struct program *program) {
    const uint64_t rest_ns = pc_world_below(workload->world, 20 * PC_NS_PER_MS);
    pc_world_alarm(workload->world, pc_world_now(workload->world) + rest_ns, ALARM_RESTED, program->slot);
}

/* What a step begins with once all know who is there. */
static void start_step(struct pc_workload *workload, struct program *program) {
    if (!pc_subset_make(workload, program)) pc_group_start(workload, program);
}

/*
 * Without random faults, who is there first lets the others come, so that all do the first step together: short schedules
 * are worth their while.
 */
static bool waits_for_more(const struct pc_workload *workload, const struct program *program) {
    struct pc_member_view view;
    pc_member_view(program->process->member, &view);
    return !workload->config.faults && program->step == 0 && view.member_count == 1 && program->alone < ALONE_MAX;
}

/* Everybody knows what comes next. */
static void go_on(struct pc_workload *workload, struct program *program) {
    struct pc_member_view view;
    pc_member_view(program->process->member, &view);
    if (waits_for_more(workload, program)) {
        program->alone++;
        delay(workload, program, PC_NS_PER_MS);
    } else if (optimized(workload, program->step) && view.member_count > 1) {
        post_joint(workload, program, PC_CALL_OPTIMIZE_TOPOLOGY, WAIT_OPTIMIZE);
    } else {
        start_step(workload, program);
    }
}

static void start_sync(struct pc_workload *workload, struct program *program) {
    memset(&program->call, 0, sizeof program->call);
    program->state_step = (int64_t)program->step;
    program->tensors[0] = (struct pc_tensor){"step", (uint8_t *)&program->state_step, 1, 8, pcclInt64, false, {0}, NULL};
    program->tensors[1] = (struct pc_tensor){
        "weights", (uint8_t *)program->state_data, STATE_ELEMS, sizeof program->state_data, pcclInt64, false, {0}, NULL};
    program->call.kind = PC_CALL_SYNC_STATE;
    program->call.tensors = program->tensors;
    program->call.tensor_count = 2;
    program->call.revision = program->step + 1;
    if (pc_call_prepare_sync(&program->call) != pcclSuccess) abort();
    /* A source whose memory changes after the offer, by a bug: its receivers must notice, and keep what they had. */
    program->state_spoiled = workload->config.faults && program->step > 0 && pc_world_below(workload->world, 12) == 0;
    if (program->state_spoiled) program->state_data[3] ^= 1;
    program->state = WAIT_SYNC;
    program->call_out = true;
    pc_workload_post(workload, program, &program->call);
}

/* The program --------------------------------------------------------------------------------------------------- */

static void free_work(struct program *program) {
    pc_subset_free(program);
    pc_group_free(program);
}

static void leave(struct pc_workload *workload, struct program *program) {
    program->left = true;
    post_joint(workload, program, PC_CALL_LEAVE, FINISHED);
}

static void begin_step(struct pc_workload *workload, struct program *program) {
    if (program->step >= workload->config.ops) {
        leave(workload, program);
    } else if (program->topology_changed) {
        start_sync(workload, program);
    } else {
        post_joint(workload, program, PC_CALL_PEERS_PENDING, WAIT_PENDING);
    }
}

static void end_step(struct pc_workload *workload, struct program *program) {
    if (!pc_group_untouched(program) || !pc_subset_untouched(program)) {
        pc_workload_violate(workload, "L2: peer %u, step %llu: a buffer changed after its call had ended", program->slot,
                            (unsigned long long)program->step);
    }
    free_work(program);
    program->step++;
    workload->furthest_step = pc_max_u64(workload->furthest_step, program->step);
    for (uint64_t i = 0; i < STATE_ELEMS; i++) program->state_data[i] = state_of(workload, program->step, i);
    const uint64_t think_ns = pc_world_below(workload->world, 8) == 0 ? pc_world_below(workload->world, 50000000) : 0;
    delay(workload, program, think_ns);
}

/* Out of the run, by its own error: it ends. That others see it so, too, is checked at them. */
bool pc_workload_expelled(pc_status code) {
    return code == pcclEvicted || code == pcclOutcomeUnknown || code == pcclMasterConnectionFailed ||
           code == pcclCancelled || code == pcclRefused;
}

void pc_workload_give_up(struct program *program) {
    program->state = FINISHED;
    program->left = true;
}

/* Votes of the whole and of groups are cast as they come, as if each group had a thread of its own. */
void pc_workload_go_on(struct pc_workload *workload, struct program *program) {
    if (program->state == WAIT_OPERATIONS) pc_subset_vote(workload, program);
    if (program->state != WAIT_OPERATIONS || !pc_group_all_done(program)) return;
    if (program->in_step && !program->voted) {
        if (!program->voting) pc_group_vote(workload, program);
    } else if (pc_subset_all_done(program) && pc_subset_all_voted(program)) {
        end_step(workload, program);
    }
}

static void on_synced(struct pc_workload *workload, struct program *program) {
    const pc_status code = program->call.outcome.error.code;
    pc_call_fini_sync(&program->call);
    if (program->state_spoiled) program->state_data[3] ^= 1;
    if (code == pcclSuccess) {
        const bool behind = (uint64_t)program->state_step != program->step;
        program->step = (uint64_t)program->state_step;
        if (program->state_spoiled && behind) program->state_data[3] ^= 1; /* received over the spoiled place */
        for (uint64_t i = 0; i < STATE_ELEMS; i++) {
            if (program->state_data[i] == state_of(workload, program->step, i)) continue;
            pc_workload_violate(workload, "L3: the shared state of peer %u is wrong after a synchronisation to step %llu",
                    program->slot, (unsigned long long)program->step);
            return;
        }
        program->topology_changed = false;
        /* Those that knew more died before they could tell: going on from 0 would be another run, as above. */
        const bool lost = program->step == 0 && workload->furthest_step > 0;
        if (program->step >= workload->config.ops || lost) {
            leave(workload, program);
        } else {
            go_on(workload, program);
        }
    } else if (pc_workload_expelled(code) || code == pcclInvalidUsage) {
        pc_workload_give_up(program);
    } else {
        if ((uint64_t)program->state_step != program->step) {
            pc_workload_violate(workload, "L2: peer %u: a failed synchronisation changed its state", program->slot);
        }
        delay(workload, program, PC_NS_PER_MS);
    }
}

/* All that knew the state have gone: what would start now is another run, with a state of its own. */
static bool state_is_lost(const struct pc_workload *workload, const struct program *program) {
    struct pc_member_view view;
    pc_member_view(program->process->member, &view);
    uint64_t furthest = 0;
    for (uint32_t i = 0; i < view.member_count; i++) {
        furthest = pc_max_u64(furthest, workload->programs[view.members[i].address.ip[3]].step);
    }
    return workload->furthest_step > 0 && furthest == 0;
}

static void on_joint(struct pc_workload *workload, struct program *program) {
    const pc_status code = program->call.outcome.error.code;
    const enum program_state state = program->state;
    program->call_out = false;
    if (program->left) {
        program->state = FINISHED;
        return;
    }
    if (state == WAIT_SYNC) {
        on_synced(workload, program);
    } else if (state == WAIT_OPERATIONS) {
        pc_group_voted(workload, program);
    } else if (state == WAIT_GROUP && !pc_workload_expelled(code)) {
        if (pc_subset_made(workload, program)) {
            pc_group_start(workload, program);
        } else {
            delay(workload, program, PC_NS_PER_MS);
        }
    } else if (code != pcclSuccess) {
        if (pc_workload_expelled(code) || state == WAIT_CONNECT) {
            pc_workload_give_up(program);
        } else {
            delay(workload, program, PC_NS_PER_MS);
        }
    } else if (state == WAIT_CONNECT) {
        program->topology_changed = true;
        if (state_is_lost(workload, program)) {
            leave(workload, program);
        } else {
            begin_step(workload, program);
        }
    } else if (state == WAIT_PENDING) {
        if (program->call.outcome.pending && !waits_for_more(workload, program)) {
            post_joint(workload, program, PC_CALL_UPDATE_TOPOLOGY, WAIT_UPDATE);
        } else {
            go_on(workload, program);
        }
    } else if (state == WAIT_OPTIMIZE) {
        start_step(workload, program);
    } else if (state == WAIT_UPDATE) {
        program->topology_changed = true;
        start_sync(workload, program);
    }
}

static void operation_ended(struct pc_workload *workload, struct program *program, struct pc_call *call) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        if (call != &program->subsets[i].work.call) continue;
        pc_subset_ended(workload, program, &program->subsets[i]);
        return;
    }
    pc_group_ended(workload, program, (struct operation *)(void *)((char *)call - offsetof(struct operation, call)));
}

static void vote_ended(struct pc_workload *workload, struct program *program, const struct pc_call *call) {
    for (uint32_t i = 0; i < SUBSETS_MAX; i++) {
        if (call == &program->subsets[i].vote) pc_subset_voted(workload, program, &program->subsets[i]);
    }
}

static void completed(void *context, struct pc_process *process, struct pc_call *call) {
    struct pc_workload *workload = context;
    struct program *program = call->user;
    (void)process;
    const uint64_t took_ns = pc_world_now(workload->world) - call->posted_ns;
    const bool evicted = call->outcome.error.code == pcclEvicted && program->process->paused_until_ns == 0 && !workload->cut_off;
    if (evicted && strstr(call->outcome.error.message, "did not answer in time") != NULL) {
        pc_workload_violate(workload, "L1: peer %u was well, and was removed: %s", program->slot, call->outcome.error.message);
    }
    if (took_ns > CALL_LIMIT_S * PC_NS_PER_S && call->kind != PC_CALL_CONNECT) {
        pc_workload_violate(workload, "L1: %s of peer %u took %llu s", pc_call_name(call->kind), program->slot,
                (unsigned long long)(took_ns / PC_NS_PER_S));
    }
    if (call->kind == PC_CALL_COLLECTIVE) {
        if (program->state == WAIT_OPERATIONS) operation_ended(workload, program, call);
    } else if (call != &program->call) {
        if (program->state == WAIT_OPERATIONS) vote_ended(workload, program, call);
    } else {
        on_joint(workload, program);
    }
}

static void after_event(void *context, struct pc_process *process) {
    struct pc_workload *workload = context;
    const struct pc_workload_config *config = &workload->config;
    if (config->crash_event != 0 && !workload->crashed && pc_world_events(workload->world) >= config->crash_event) {
        workload->crashed = workload->disturbed = true;
        pc_world_alarm(workload->world, pc_world_now(workload->world), ALARM_CRASH, config->crash_peer);
    }
    if (process->member == NULL) return;
    struct pc_member_view view;
    pc_member_view(process->member, &view);
    struct program *program = &workload->programs[process->slot];
    if (view.epoch == program->epoch || !view.connected) return;
    if (view.epoch < program->epoch) pc_workload_violate(workload, "L4: the epoch of peer %u went back", process->slot);
    program->epoch = view.epoch;
    pc_program_members(program, &program->members);
    const uint64_t list = pc_digest64(view.members, view.member_count * sizeof *view.members) | 1;
    uint64_t *known = &workload->epoch_lists[view.epoch % EPOCHS_MAX];
    if (view.epoch < EPOCHS_MAX && *known != 0 && *known != list) {
        pc_workload_violate(workload, "L4: epoch %llu has two member lists", (unsigned long long)view.epoch);
    }
    *known = list;
}

/* Schedule ------------------------------------------------------------------------------------------------------ */

static void start_program(struct pc_workload *workload, uint32_t slot) {
    struct program *program = &workload->programs[slot];
    program->slot = slot;
    program->process = pc_world_start(workload->world, slot, 0);
    if (program->process == NULL) abort();
    for (uint64_t i = 0; i < STATE_ELEMS; i++) program->state_data[i] = state_of(workload, 0, i);
    post_joint(workload, program, PC_CALL_CONNECT, WAIT_CONNECT);
    pc_world_settle(program->process);
}

static void kill_program(struct program *program, bool silent) {
    if (program->process == NULL || !program->process->alive) return;
    pc_world_crash(program->process, silent);
    if (program->state == WAIT_SYNC && program->call_out) pc_call_fini_sync(&program->call);
    free_work(program);
    program->killed = true;
    program->state = FINISHED;
}

static void check_progress(struct pc_workload *workload) {
    bool finished = true;
    for (uint32_t slot = 1; slot <= workload->program_count; slot++) finished &= workload->programs[slot].state == FINISHED;
    const uint64_t now_ns = pc_world_now(workload->world);
    if (finished) {
        workload->stop = true;
    } else if (now_ns > RUN_LIMIT_S * PC_NS_PER_S) {
        for (uint32_t slot = 1; slot <= workload->program_count; slot++) {
            const struct program *program = &workload->programs[slot];
            if (program->state == FINISHED) continue;
            pc_workload_violate(workload, "L1: peer %u never came to its end: step %llu, state %d", slot,
                    (unsigned long long)program->step, program->state);
        }
    } else {
        pc_world_alarm(workload->world, now_ns + PC_NS_PER_S / 4, ALARM_CHECK, 0);
    }
}

static uint32_t any_slot(struct pc_workload *workload) {
    return 1 + (uint32_t)pc_world_below(workload->world, workload->config.peers);
}

static void alarm(void *context, uint32_t what, uint32_t which) {
    struct pc_workload *workload = context;
    struct program *program = &workload->programs[which % PC_WORLD_PROCESSES_MAX];
    const uint64_t seconds = PC_NS_PER_S;
    switch ((enum alarm)what) {
    case ALARM_START: start_program(workload, which); break;
    case ALARM_NEXT:
        if (program->state != WAIT_DELAY || !program->process->alive) return;
        begin_step(workload, program);
        pc_world_settle(program->process);
        break;
    case ALARM_RESTED:
        if (program->state != WAIT_OPERATIONS || !program->process->alive) return;
        pc_group_rested(workload, program);
        pc_workload_go_on(workload, program);
        pc_world_settle(program->process);
        break;
    case ALARM_CRASH: kill_program(program, false); break;
    case ALARM_VANISH: kill_program(program, true); break;
    case ALARM_PAUSE: {
        const bool longer = pc_world_below(workload->world, 3) == 0;
        if (program->process != NULL && program->process->alive) {
            pc_world_pause(program->process, longer ? 6 * seconds + pc_world_below(workload->world, 10 * seconds)
                                                    : pc_world_below(workload->world, 3 * seconds));
        }
        break;
    }
    case ALARM_CUT: pc_world_cut(workload->world, which, any_slot(workload)); break;
    case ALARM_DEAFEN: {
        const bool for_ever = pc_world_below(workload->world, 4) == 0;
        const uint32_t other = (uint32_t)pc_world_below(workload->world, workload->config.peers + 1);
        workload->cut_off |= which == 0 || other == 0;
        pc_world_deafen(workload->world, which, other, for_ever ? 0 : pc_world_below(workload->world, 3 * seconds));
        break;
    }
    case ALARM_LATE: {
        /* Frames are under way to one neighbour while the other dies: they arrive in a later epoch. */
        const uint32_t peers = workload->config.peers;
        const uint64_t now_ns = pc_world_now(workload->world);
        pc_world_deafen(workload->world, which, which % peers + 1, pc_world_below(workload->world, 60 * PC_NS_PER_MS));
        pc_world_alarm(workload->world, now_ns + pc_world_below(workload->world, 4 * PC_NS_PER_MS), ALARM_CRASH,
                       (which + 1) % peers + 1);
        break;
    }
    case ALARM_CHECK: check_progress(workload); break;
    }
}

/* A schedule has none to three faults, in the time in which the programs run. */
static void plan_faults(struct pc_workload *workload) {
    static const enum alarm kinds[] = {ALARM_CRASH, ALARM_CRASH, ALARM_VANISH, ALARM_PAUSE, ALARM_CUT, ALARM_CUT,
                                       ALARM_DEAFEN, ALARM_LATE, ALARM_LATE};
    struct pc_world *world = workload->world;
    const uint64_t span_ns = PC_NS_PER_MS * (10 + 4ull * workload->config.ops);
    const uint64_t count = pc_world_below(world, 4);
    workload->disturbed = count > 0;
    for (uint64_t i = 0; i < count; i++) {
        const enum alarm kind = kinds[pc_world_below(world, sizeof kinds / sizeof kinds[0])];
        pc_world_alarm(world, PC_NS_PER_S + pc_world_below(world, span_ns), kind, any_slot(workload));
    }
    while (workload->program_count < 62 && pc_world_below(world, 2) == 0) {
        const uint32_t slot = ++workload->program_count;
        pc_world_alarm(world, PC_NS_PER_S + pc_world_below(world, span_ns), ALARM_START, slot);
    }
}

struct pc_workload *pc_workload_create(const struct pc_workload_config *config) {
    struct pc_workload *workload = pc_calloc(1, sizeof *workload);
    if (workload == NULL) return NULL;
    workload->config = *config;
    workload->attempts = pc_calloc((size_t)(config->ops + 1) * (TAGS_MAX + SUBSETS_MAX) * ATTEMPTS_MAX, sizeof *workload->attempts);
    const struct pc_world_hooks hooks = {completed, after_event, alarm, workload};
    workload->world = pc_world_create(config->seed, config->io_threads, &hooks);
    if (workload->world == NULL || workload->attempts == NULL) {
        pc_workload_destroy(workload);
        return NULL;
    }
    return workload;
}

void pc_workload_destroy(struct pc_workload *workload) {
    if (workload == NULL) return;
    pc_world_destroy(workload->world);
    for (uint32_t slot = 1; slot <= workload->program_count; slot++) {
        struct program *program = &workload->programs[slot];
        if (program->call.kind == PC_CALL_SYNC_STATE) pc_call_fini_sync(&program->call);
        free_work(program);
    }
    free(workload->attempts);
    free(workload);
}

bool pc_workload_run(struct pc_workload *workload, pcclSimReport_t *report) {
    if (pc_world_start(workload->world, 0, 0) == NULL) abort();
    workload->program_count = workload->config.peers;
    for (uint32_t slot = 1; slot <= workload->config.peers; slot++) {
        pc_world_alarm(workload->world, PC_NS_PER_S + pc_world_below(workload->world, 3 * PC_NS_PER_MS), ALARM_START, slot);
    }
    if (workload->config.faults) plan_faults(workload);
    pc_world_alarm(workload->world, PC_NS_PER_S + PC_NS_PER_MS, ALARM_CHECK, 0);
    pc_world_run(workload->world, UINT64_MAX - 1, &workload->stop);
    report->ok = !workload->broken;
    report->peers = workload->config.peers;
    report->events = pc_world_events(workload->world);
    report->ops_committed = workload->committed;
    report->ops_aborted = workload->aborted;
    report->epochs = pc_master_epoch(pc_world_process(workload->world, 0)->master);
    report->virtual_ns = pc_world_now(workload->world);
    report->trace_hash = pc_world_hash(workload->world);
    memcpy(report->verdict, workload->verdict, sizeof report->verdict);
    return report->ok;
}
