/*
 * Votes on steps: of each group that it is in a peer may have cast one, whatever else it is in. When all of a group have,
 * the step is committed, or it is aborted for all. When one gives up its vote the step is over for all at once: who has
 * voted is told, and who has not owes a vote, which is answered alone when it comes.
 */
#include "base/checked.h"
#include "proto/master_state.h"
#include "proto/mutant.h"

#define AGAIN "nothing of the step counts at any peer; do it again"

/* Casting ------------------------------------------------------------------------------------------------------- */

struct pc_group *pc_master_group_of_peer(const struct pc_master *master, const struct pc_peer *peer, uint32_t subset) {
    const struct pc_op_key key = {.group = peer->group, .subset = subset};
    return pc_master_group_of(master, &key);
}

struct pc_vote *pc_master_vote_of(const struct pc_peer *peer, uint32_t subset) {
    for (size_t i = 0; i < peer->vote_count; i++) {
        if (peer->votes[i].subset == subset) return &peer->votes[i];
    }
    return NULL;
}

bool pc_master_anybody_votes(const struct pc_master *master) {
    bool any = false;
    PC_EACH_PEER(master, peer) any |= peer->vote_count > 0;
    return any;
}

/* error NULL: success. The next step of the peer begins as failed if next_failed. */
static void tell_result(struct pc_master *master, struct pc_peer *peer, uint64_t serial, const pc_error *error,
                        bool next_failed) {
    struct pc_msg_call_result result = {.serial = serial, .value = next_failed};
    if (error != NULL) result.error = pc_error_to_wire(error);
    pc_master_unblock(peer);
    pc_master_tell(master, peer, PC_MSG_CALL_RESULT, &result);
}

void pc_master_vote_answer(struct pc_master *master, struct pc_peer *peer, uint32_t subset, const pc_error *error) {
    struct pc_vote *vote = pc_master_vote_of(peer, subset);
    if (vote == NULL) return;
    const uint64_t serial = vote->serial;
    *vote = peer->votes[--peer->vote_count];
    tell_result(master, peer, serial, error, false);
}

static pc_error fault_of(const struct pc_peer *peer, pc_status code, const char *what, const char *hint) {
    pc_error error = {.peer_id = peer->id};
    pc_error_set(&error, code, "peer %llu %s", (unsigned long long)peer->id, what);
    pc_error_hint(&error, "%s", hint);
    return error;
}

static pc_error failed_at(const struct pc_peer *peer) {
    pc_error error = {.peer_id = peer->id};
    pc_error_set(&error, pcclStepAborted, "the step was aborted: something in it failed at peer %llu", (unsigned long long)peer->id);
    pc_error_hint(&error, AGAIN);
    return error;
}

/* The others may be waiting in the step for what will not come, and must not wait longer. */
static void poison_step(struct pc_master *master, const struct pc_group *group, const pc_error *error) {
    /* Not an operation of anybody: none has so high a number. */
    const struct pc_op_key none = {.epoch = group->epoch, .seq = UINT64_MAX, .group = group->number, .subset = group->subset};
    pc_master_abort_op(master, &none, error, true);
}

static void refuse(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, pc_status code,
                   const char *why) {
    pc_error error = {0};
    pc_error_set(&error, code, "%s", why);
    tell_result(master, peer, call->serial, &error, false);
}

/* NULL: there is none, or no memory for one. */
static struct pc_owed *owed_by(struct pc_peer *peer, uint32_t subset, bool create) {
    for (size_t i = 0; i < peer->owed_count; i++) {
        if (peer->owed[i].subset == subset) return &peer->owed[i];
    }
    void *items = peer->owed;
    if (!create || !pc_grow(&items, &peer->owed_capacity, peer->owed_count + 1, sizeof *peer->owed)) return NULL;
    peer->owed = items;
    peer->owed[peer->owed_count] = (struct pc_owed){.subset = subset};
    return &peer->owed[peer->owed_count++];
}

void pc_master_forget_owed(struct pc_master *master, uint32_t subset) {
    PC_EACH_PEER(master, peer) {
        struct pc_owed *owed = owed_by(peer, subset, false);
        if (owed != NULL) *owed = peer->owed[--peer->owed_count];
    }
}

/* A vote on a step that is over for the others. */
static void take_late(struct pc_master *master, struct pc_peer *peer, const struct pc_group *group, uint64_t serial,
                      struct pc_owed *owed) {
    pc_error error = {.peer_id = owed->to};
    pc_error_set(&error, pcclStepAborted, "the step was aborted: it was over for peer %llu, which did not wait for this one",
                 (unsigned long long)owed->to);
    pc_error_hint(&error, "nothing of the step counts at any peer; do it again. If this peer was late, raise PCCL_OP_TIMEOUT");
    owed->steps--;
    /* What fails this peer's next step may have been said already, when it was in this one. */
    tell_result(master, peer, serial, &error, owed->steps > 0 || group->step_failed);
}

/* Giving up ----------------------------------------------------------------------------------------------------- */

/*
 * The others are in the step or before it, so it is over for all only with an epoch: what is in flight in the old one ends
 * alike everywhere. All that needs memory is done first. end: what those who have voted are told; NULL: who has not.
 */
static void give_up(struct pc_master *master, struct pc_peer *peer, struct pc_group *group, const pc_error *error,
                    const pc_error *end, uint64_t now_ns) {
    if (group->given_up_by != 0) return;
    PC_EACH_PEER(master, member) {
        if (!pc_master_in_group(member, group) || owed_by(member, group->subset, true) != NULL) continue;
        pc_error why = {.peer_id = peer->id};
        pc_error_set(&why, pcclNoMemory, "the master has no memory to end a step that peer %llu has given up",
                     (unsigned long long)peer->id);
        pc_master_remove(master, peer, &why, true, now_ns);
        return;
    }
    poison_step(master, group, error);
    group->given_up_by = peer->id;
    if (end != NULL) group->step_end = *end;
    const pc_error cause = fault_of(peer, pcclRankConnectionLost, "gave up a step, which begins a new epoch of its group",
                                    "no member was lost: do again what was in flight");
    pc_master_flush(master, group, &cause, now_ns);
}

void pc_master_votes_end(struct pc_master *master, struct pc_peer *peer, const pc_error *error, uint64_t now_ns) {
    for (size_t i = 0; i < peer->vote_count; i++) {
        struct pc_group *group = pc_master_group_of_peer(master, peer, peer->votes[i].subset);
        if (group != NULL) give_up(master, peer, group, error, error, now_ns);
    }
}

void pc_master_vote(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, uint64_t now_ns) {
    struct pc_group *group = pc_master_group_of_peer(master, peer, call->subset);
    if (group != NULL && !pc_master_in_group(peer, group)) {
        refuse(master, peer, call, pcclInvalidUsage, "this peer has no vote in that group");
        return;
    }
    struct pc_owed *owed = owed_by(peer, call->subset, false);
    if (group != NULL && owed != NULL && owed->steps > 0 && !PC_MUTANT(PC_MUTANT_LATE_VOTE)) {
        take_late(master, peer, group, call->serial, owed);
        return;
    }
    const struct pc_vote vote = {
        .subset = call->subset,
        .serial = call->serial,
        .yes = call->value == PC_VOTE_FOR,
        .cast_ns = now_ns,
        .epoch = group != NULL ? group->epoch : 0,
        .step = call->step,
    };
    struct pc_vote *earlier = pc_master_vote_of(peer, call->subset);
    void *items = peer->votes;
    if (earlier != NULL) {
        *earlier = vote;
    } else if (pc_grow(&items, &peer->vote_capacity, peer->vote_count + 1, sizeof *peer->votes)) {
        peer->votes = items;
        peer->votes[peer->vote_count++] = vote;
    } else {
        refuse(master, peer, call, pcclNoMemory, "the master has no memory for a vote");
        return;
    }
    if (group == NULL) {
        const pc_error error = {.code = pcclRankConnectionLost, .message = "the group is broken"};
        pc_master_vote_answer(master, peer, call->subset, &error);
    } else if (!vote.yes) {
        const pc_error error = fault_of(peer, pcclStepAborted, "has voted against the step", AGAIN);
        const pc_error end = failed_at(peer);
        if (call->value == PC_VOTE_GIVE_UP) give_up(master, peer, group, &error, &end, now_ns);
        else poison_step(master, group, &error);
    }
}

bool pc_master_vote_cancel(struct pc_master *master, struct pc_peer *peer, uint64_t serial, uint64_t now_ns) {
    for (size_t i = 0; i < peer->vote_count; i++) {
        if (peer->votes[i].serial != serial) continue;
        struct pc_group *group = pc_master_group_of_peer(master, peer, peer->votes[i].subset);
        const pc_error error = fault_of(peer, pcclStepAborted, "gave up its vote on the step", AGAIN);
        if (group != NULL) give_up(master, peer, group, &error, NULL, now_ns);
        return true;
    }
    return false;
}

/*
 * Some have voted on a step, others are not there yet. What the former did in it is complete only with the members of
 * before (it needed nothing from the others), so the latter must not do it with those of after.
 */
static bool is_split(const struct pc_master *master, const struct pc_group *group) {
    size_t members = 0, votes = 0;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        members++;
        votes += pc_master_vote_of(peer, group->subset) != NULL;
    }
    return votes > 0 && votes < members;
}

void pc_master_step_flushed(struct pc_master *master, struct pc_group *group) {
    if (group->given_up_by != 0) group->step_failed = false; /* it is that of the next step now */
    else if (is_split(master, group)) group->step_failed = true;
}

void pc_master_step_over(struct pc_master *master, struct pc_group *group) {
    if (group->given_up_by == 0) return;
    uint64_t *late = pc_arena_alloc(&master->arena, group->n, sizeof *late);
    size_t late_count = 0;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group) || pc_master_vote_of(peer, group->subset) != NULL) continue;
        struct pc_owed *owed = owed_by(peer, group->subset, false);
        owed->steps++;
        owed->to = group->given_up_by;
        if (late != NULL) late[late_count++] = peer->id;
    }
    char list[200] = "";
    if (late_count > 0) pc_master_list_ids(late, late_count, list, sizeof list);
    pc_error error = group->step_end;
    if (error.code == pcclSuccess) {
        error.peer_id = late_count > 0 ? late[0] : 0;
        pc_error_set(&error, pcclStepAborted, "the step was aborted: peer %llu gave up its vote on it%s%s",
                     (unsigned long long)group->given_up_by, late_count > 0 ? "; not voted: peers " : "", list);
        pc_error_hint(&error, "nothing of the step counts at any peer; do it again, or raise PCCL_OP_TIMEOUT");
    }
    PC_EACH_PEER(master, peer) {
        if (pc_master_in_group(peer, group)) pc_master_vote_answer(master, peer, group->subset, &error);
    }
    group->given_up_by = 0;
    group->step_end = (pc_error){0};
}

/* Counting ------------------------------------------------------------------------------------------------------ */

/* Whether the members of group have not done the same in their step, and who. */
static void compare_steps(struct pc_master *master, const struct pc_group *group, pc_error *error) {
    struct pc_step_sum sum = {0};
    const struct pc_peer *one = NULL;
    const struct pc_vote *first = NULL;
    bool complete = true; /* nobody has left since somebody voted, with what he sent and received */
    PC_EACH_PEER(master, peer) {
        const struct pc_vote *vote = pc_master_in_group(peer, group) ? pc_master_vote_of(peer, group->subset) : NULL;
        if (vote == NULL) continue;
        if (one == NULL) {
            one = peer;
            first = vote;
        }
        if (vote->step.digest != first->step.digest && error->code == pcclSuccess) {
            error->peer_id = peer->id;
            pc_error_set(error, pcclStepAborted,
                         "the step was aborted: peers %llu and %llu did not post the same operations in it (%llu and %llu)",
                         (unsigned long long)one->id, (unsigned long long)peer->id, (unsigned long long)first->step.ops,
                         (unsigned long long)vote->step.ops);
            pc_error_hint(error, "all peers of a group must make the same collective calls in a step, with the same tags");
        }
        complete &= vote->epoch >= group->members_epoch;
        sum.sends += vote->step.sends;
        sum.receives += vote->step.receives;
        sum.channels += vote->step.channels;
    }
    if (sum.channels == 0 || !complete || error->code != pcclSuccess) return;
    pc_error_set(error, pcclStepAborted, "the step was aborted: sends and receives in it (%llu and %llu) do not match",
                 (unsigned long long)sum.sends, (unsigned long long)sum.receives);
    pc_error_hint(error, "what is sent in a step must be received in the same step, with the same tag");
}

/* Why the step of group is not committed; code 0: it is. */
static void judge_step(struct pc_master *master, const struct pc_group *group, pc_error *error) {
    const struct pc_peer *against = NULL;
    uint64_t since_ns = UINT64_MAX; /* the first one: the others may have heard of it from there */
    PC_EACH_PEER(master, peer) {
        const struct pc_vote *vote = pc_master_in_group(peer, group) ? pc_master_vote_of(peer, group->subset) : NULL;
        if (vote == NULL || vote->yes || vote->cast_ns >= since_ns) continue;
        against = peer;
        since_ns = vote->cast_ns;
    }
    *error = (pc_error){0};
    if (against != NULL) {
        *error = failed_at(against);
    } else if (!PC_MUTANT(PC_MUTANT_STEP_UNCOMPARED)) {
        compare_steps(master, group, error);
    }
}

/* A step is committed if nothing has failed anywhere. If not, its operations have ended unevenly: seqs start again. */
static void end_step(struct pc_master *master, struct pc_group *group) {
    pc_error error;
    judge_step(master, group, &error);
    const bool commit = error.code == pcclSuccess;
    group->step_failed = false;
    if (!commit && !group->broken) {
        const struct pc_op_key key = {.group = group->number, .subset = group->subset};
        group->flushing = true; /* nothing is in flight: all are here */
        pc_master_flip(master, false);
        group = pc_master_group_of(master, &key);
        if (group == NULL) return; /* it could not be planned anew, and was broken */
    }
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        if (commit) peer->young = false;
        pc_master_vote_answer(master, peer, group->subset, commit ? NULL : &error);
    }
    pc_master_moved(master, group, NULL);
}

static bool all_voted(struct pc_master *master, const struct pc_group *group) {
    bool any = false;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        if (pc_master_vote_of(peer, group->subset) == NULL) return false;
        any = true;
    }
    return any;
}

void pc_master_count_votes(struct pc_master *master, struct pc_group *group) {
    if (all_voted(master, group)) end_step(master, group);
}

void pc_master_end_broken(struct pc_master *master, struct pc_group *subset) {
    if (all_voted(master, subset) && subset->given_up_by == 0) {
        end_step(master, subset);
        return;
    }
    const pc_error error = {.code = pcclRankConnectionLost, .peer_id = subset->lost, .message = "the group is broken"};
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, subset)) continue;
        pc_master_vote_answer(master, peer, subset->subset, PC_MUTANT(PC_MUTANT_HALF_VOTE) ? NULL : &error);
    }
}
