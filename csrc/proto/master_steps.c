/*
 * Votes on steps: of each group that it is in a peer may have cast one, whatever else it is in. When all of a group have,
 * the step is committed, or it is aborted for all.
 */
#include "base/checked.h"
#include "proto/master_state.h"
#include "proto/mutant.h"

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

void pc_master_vote_answer(struct pc_master *master, struct pc_peer *peer, uint32_t subset, const pc_error *error) {
    struct pc_vote *vote = pc_master_vote_of(peer, subset);
    if (vote == NULL) return;
    struct pc_msg_call_result result = {.serial = vote->serial};
    if (error != NULL) result.error = pc_error_to_wire(error);
    *vote = peer->votes[--peer->vote_count];
    pc_master_unblock(peer);
    pc_master_tell(master, peer, PC_MSG_CALL_RESULT, &result);
}

/* peer has voted against its step: the others may be waiting in it for what will not come, and must not wait longer. */
static void poison_step(struct pc_master *master, const struct pc_peer *peer, const struct pc_group *group) {
    /* Not an operation of anybody: none has so high a number. */
    const struct pc_op_key none = {.epoch = group->epoch, .seq = UINT64_MAX, .group = group->number, .subset = group->subset};
    pc_error error = {.peer_id = peer->id};
    pc_error_set(&error, pcclStepAborted, "peer %llu has voted against the step", (unsigned long long)peer->id);
    pc_error_hint(&error, "nothing of the step counts at any peer; do it again");
    pc_master_abort_op(master, &none, &error, true);
}

static void refuse(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, pc_status code,
                   const char *why) {
    pc_error error = {0};
    pc_error_set(&error, code, "%s", why);
    const struct pc_msg_call_result result = {.serial = call->serial, .error = pc_error_to_wire(&error)};
    pc_master_tell(master, peer, PC_MSG_CALL_RESULT, &result);
}

void pc_master_vote(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, uint64_t now_ns) {
    const struct pc_group *group = pc_master_group_of_peer(master, peer, call->subset);
    if (group != NULL && !pc_master_in_group(peer, group)) {
        refuse(master, peer, call, pcclInvalidUsage, "this peer has no vote in that group");
        return;
    }
    const struct pc_vote vote = {
        .subset = call->subset,
        .serial = call->serial,
        .yes = call->value != 0,
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
        poison_step(master, peer, group);
    }
}

bool pc_master_vote_cancel(struct pc_master *master, struct pc_peer *peer, uint64_t serial) {
    for (size_t i = 0; i < peer->vote_count; i++) {
        if (peer->votes[i].serial != serial) continue;
        const uint32_t subset = peer->votes[i].subset;
        const struct pc_group *group = pc_master_group_of_peer(master, peer, subset);
        pc_error error = {.peer_id = peer->id};
        pc_error_set(&error, pcclCancelled, "peer %llu gave up its call of %s", (unsigned long long)peer->id,
                     pc_call_name(PC_CALL_END_STEP));
        pc_master_vote_answer(master, peer, subset, &error);
        /* It is against. After the answer, so that its next step fails too: that one's vote ends the others' step. */
        if (group != NULL) poison_step(master, peer, group);
        return true;
    }
    return false;
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
        complete &= vote->epoch == group->epoch;
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
        error->peer_id = against->id;
        pc_error_set(error, pcclStepAborted, "the step was aborted: something in it failed at peer %llu",
                     (unsigned long long)against->id);
        pc_error_hint(error, "nothing of the step counts at any peer; do it again");
    } else if (!PC_MUTANT(PC_MUTANT_STEP_UNCOMPARED)) {
        compare_steps(master, group, error);
    }
}

/* A step is committed if nothing has failed anywhere. If not, its operations have ended unevenly: seqs start again. */
static void end_step(struct pc_master *master, struct pc_group *group) {
    pc_error error;
    judge_step(master, group, &error);
    const bool commit = error.code == pcclSuccess;
    if (!commit && !group->broken) {
        const struct pc_op_key key = {.group = group->number, .subset = group->subset};
        group->flushing = true; /* nothing is in flight: all are here */
        pc_master_flip(master, false);
        group = pc_master_group_of(master, &key);
        if (group == NULL) return; /* it could not be planned anew, and was broken */
    }
    PC_EACH_PEER(master, peer) {
        if (pc_master_in_group(peer, group)) pc_master_vote_answer(master, peer, group->subset, commit ? NULL : &error);
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
    if (all_voted(master, subset)) {
        end_step(master, subset);
        return;
    }
    const pc_error error = {.code = pcclRankConnectionLost, .peer_id = subset->lost, .message = "the group is broken"};
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, subset)) continue;
        pc_master_vote_answer(master, peer, subset->subset, PC_MUTANT(PC_MUTANT_HALF_VOTE) ? NULL : &error);
    }
}

/*
 * Some have voted on a step, others are not there yet. What the former did in it is complete only with the members of
 * before (it needed nothing from the others), so the latter must not do it with those of after.
 */
bool pc_master_vote_is_split(const struct pc_master *master, const struct pc_group *group) {
    size_t members = 0, votes = 0;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        members++;
        votes += pc_master_vote_of(peer, group->subset) != NULL;
    }
    return votes > 0 && votes < members;
}
