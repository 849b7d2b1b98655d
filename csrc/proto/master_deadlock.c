/*
 * Calls that can never match: the wait-for graph has no way out. They fail for all, with the list of who is where.
 *
 * It is made of what the peers report when they are blocked, and of what they answer when they are asked: operations of a
 * step are over for a member without a word to the master.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/master_state.h"

#include <stdio.h>
#include <string.h>

enum { ANSWERS_MAX = 4096 };

#define UNKNOWN UINT64_MAX

/* What is known of a peer --------------------------------------------------------------------------------------- */

static bool has_started(const struct pc_peer *peer, const struct pc_op_key *key) {
    for (size_t i = 0; i < peer->started_count; i++) {
        if (pc_op_key_equal(&peer->started[i], key)) return true;
    }
    return false;
}

pc_status pc_master_stalled(struct pc_peer *peer, const struct pc_msg_stalled *stalled) {
    if (stalled->started.count > PC_OPS_MAX) return pcclProtocolError;
    /* What it waits for may be on its way. */
    if (stalled->heard != peer->told && stalled->calls.count > 0) return pcclSuccess;
    const struct pc_stall *calls = stalled->calls.items;
    peer->stall_count = 0;
    peer->answer_count = 0;
    for (uint32_t i = 0; i < stalled->calls.count && peer->stall_count < PC_STALLS_MAX; i++) {
        peer->stalls[peer->stall_count++] = calls[i];
    }
    peer->stall_reports = peer->stall_count > 0 && !stalled->threads_free ? peer->stall_reports + 1 : 0;
    void *items = peer->started;
    if (!pc_grow(&items, &peer->started_capacity, stalled->started.count, sizeof *peer->started)) return pcclSuccess;
    peer->started = items;
    peer->started_count = stalled->started.count;
    if (peer->started_count > 0) {
        memcpy(peer->started, stalled->started.items, peer->started_count * sizeof *peer->started);
    }
    return pcclSuccess;
}

void pc_master_unblock(struct pc_peer *peer) {
    peer->stall_count = peer->stall_reports = 0;
    peer->started_count = 0;
    peer->answer_count = 0;
}

void pc_master_moved(struct pc_master *master, const struct pc_group *group, const struct pc_op_key *key) {
    PC_EACH_PEER(master, peer) {
        if (key == NULL ? pc_master_in_group(peer, group) : pc_master_takes_part(peer, group, key)) pc_master_unblock(peer);
    }
}

static bool is_of_tag(const struct pc_op_key *a, const struct pc_op_key *b) {
    return a->epoch == b->epoch && a->tag == b->tag && a->channel == b->channel && a->group == b->group &&
           a->subset == b->subset;
}

static struct pc_answer *answer_of(struct pc_peer *peer, const struct pc_op_key *key) {
    for (size_t i = 0; i < peer->answer_count; i++) {
        if (is_of_tag(&peer->answers[i].key, key)) return &peer->answers[i];
    }
    return NULL;
}

/* How many operations peer has posted with that key's tag; UNKNOWN: it will be asked. */
static uint64_t posted_by(struct pc_peer *peer, const struct pc_op_key *key) {
    const struct pc_answer *answer = answer_of(peer, key);
    if (answer != NULL) return answer->known ? answer->key.seq : UNKNOWN;
    void *items = peer->answers;
    if (peer->answer_count < ANSWERS_MAX &&
        pc_grow(&items, &peer->answer_capacity, peer->answer_count + 1, sizeof *peer->answers)) {
        peer->answers = items;
        peer->answers[peer->answer_count++] = (struct pc_answer){.key = *key};
    }
    return UNKNOWN;
}

static void ask(struct pc_master *master) {
    PC_EACH_PEER(master, peer) {
        struct pc_op_key *keys = pc_arena_alloc(&master->arena, peer->answer_count, sizeof *keys);
        uint32_t count = 0;
        for (size_t i = 0; keys != NULL && i < peer->answer_count; i++) {
            if (!peer->answers[i].asked) keys[count++] = peer->answers[i].key;
            peer->answers[i].asked = true;
        }
        if (count > 0) pc_master_tell(master, peer, PC_MSG_ASK_POSTED, &(struct pc_msg_posted){{keys, count}});
    }
}

pc_status pc_master_posted(struct pc_peer *peer, const struct pc_msg_posted *posted) {
    const struct pc_op_key *keys = posted->keys.items;
    if (posted->keys.count > ANSWERS_MAX) return pcclProtocolError;
    for (uint32_t i = 0; i < posted->keys.count; i++) {
        struct pc_answer *answer = answer_of(peer, &keys[i]);
        if (answer == NULL) continue;
        answer->key.seq = keys[i].seq;
        answer->known = true;
    }
    return pcclSuccess;
}

/* Wait-for graph ------------------------------------------------------------------------------------------------ */

/* One report may be older than what has been posted since; the second one after the last verdict is not. */
static bool blocked(const struct pc_peer *peer) {
    return peer->stall_count > 0 && peer->stall_reports >= 2;
}

/*
 * Whether other does, or did, its part of the operation that peer is blocked in. In a step it is over for a member as soon
 * as it is complete there; its frames may be under way still, or lost with a link whose end has not been noticed yet.
 */
static bool does_part(struct pc_peer *other, const struct pc_peer *peer, const struct pc_stall *stall) {
    if (other == peer || has_started(other, &stall->key)) return true;
    return stall->in_step != 0 && posted_by(other, &stall->key) > stall->key.seq;
}

/* Whether other can still send what peer would receive from anybody, or has sent what peer has not received. */
static bool may_send(struct pc_peer *other, struct pc_peer *peer, const struct pc_op_key *parked) {
    if (!other->stuck) return true;
    struct pc_op_key key = *parked;
    key.channel = pc_channel(other->id, peer->id);
    const uint64_t sent = posted_by(other, &key), received = posted_by(peer, &key);
    return sent == UNKNOWN || received == UNKNOWN || sent > received;
}

static bool somebody_may_send(struct pc_master *master, const struct pc_group *group, struct pc_peer *peer,
                              const struct pc_op_key *parked) {
    bool any = false;
    PC_EACH_PEER(master, other) any |= other != peer && pc_master_in_group(other, group) && may_send(other, peer, parked);
    return any;
}

/* Whether the operation can still come to its end by those that are not stuck. */
static bool op_hopeful(struct pc_master *master, struct pc_peer *peer, const struct pc_stall *stall) {
    const struct pc_group *group = pc_master_group_of(master, &stall->key);
    if (group == NULL) return true; /* its end is on its way */
    if (stall->key.channel == pc_channel_to(peer->id)) return somebody_may_send(master, group, peer, &stall->key);
    bool all = pc_master_who_left(group, &stall->key) == 0;
    PC_EACH_PEER(master, other) {
        if (!pc_master_takes_part(other, group, &stall->key)) continue;
        all &= !other->stuck || does_part(other, peer, stall);
    }
    return all;
}

/* Whether all others may still make the joint call that peer is in. */
static bool call_hopeful(struct pc_master *master, const struct pc_peer *peer) {
    const struct pc_group *group = pc_master_group_of_peer(master, peer, 0);
    if (group == NULL || (peer->call == PC_CALL_SYNC_STATE && group->sync_id != 0)) return true;
    PC_EACH_PEER(master, other) {
        if (pc_master_in_group(other, group) && other->stuck && other->call != peer->call) return false;
    }
    return true;
}

static bool vote_hopeful(struct pc_master *master, const struct pc_peer *peer, uint32_t subset) {
    const struct pc_group *group = pc_master_group_of_peer(master, peer, subset);
    if (group == NULL) return true;
    if (group->left_count > 0) return false;
    PC_EACH_PEER(master, other) {
        const bool voted = pc_master_vote_of(other, subset) != NULL;
        if (pc_master_in_group(other, group) && other->stuck && !voted) return false;
    }
    return true;
}

/* Whether something that peer waits for can still come. */
static bool hopeful(struct pc_master *master, struct pc_peer *peer) {
    for (uint32_t i = 0; i < peer->stall_count; i++) {
        if (peer->stalls[i].kind == PC_CALL_COLLECTIVE && op_hopeful(master, peer, &peer->stalls[i])) return true;
    }
    for (size_t i = 0; i < peer->vote_count; i++) {
        if (vote_hopeful(master, peer, peer->votes[i].subset)) return true;
    }
    return peer->call != PC_CALL_NONE && call_hopeful(master, peer);
}

static void describe(const struct pc_peer *peer, char *out, size_t out_bytes) {
    char name[224];
    pc_master_name_peer(peer, name, sizeof name);
    if (peer->stalls[0].kind != PC_CALL_COLLECTIVE) {
        (void)snprintf(out, out_bytes, "%s is in %s", name, pc_call_name(peer->stalls[0].kind));
    } else {
        (void)snprintf(out, out_bytes, "%s is in %s with tag %llu", name, pc_collective_name(peer->stalls[0].collective),
                       (unsigned long long)peer->stalls[0].key.tag);
    }
}

/* Then its step fails, and it goes on to the vote: those who wait there hear of it with all others. */
static bool any_in_step(struct pc_master *master, const struct pc_group *group) {
    PC_EACH_PEER(master, peer) {
        if (!peer->stuck || peer->group != group->number) continue;
        for (uint32_t i = 0; i < peer->stall_count; i++) {
            if (peer->stalls[i].kind == PC_CALL_COLLECTIVE && peer->stalls[i].in_step) return true;
        }
    }
    return false;
}

/* A receive from anybody has a key of its receiver alone. */
static bool takes_part(const struct pc_peer *peer, const struct pc_group *group, const struct pc_op_key *key) {
    const bool parked = key->channel == pc_channel_to(peer->id) && pc_master_in_group(peer, group);
    return parked || pc_master_takes_part(peer, group, key);
}

/* Nothing that the stuck ones of this peer group wait for can come. */
static void fail_stuck(struct pc_master *master, const struct pc_group *group, uint64_t now_ns) {
    pc_error error = {0};
    char list[600] = "";
    PC_EACH_PEER(master, peer) {
        if (!peer->stuck || peer->group != group->number) continue;
        size_t used = strlen(list);
        if (used > 0) used += (size_t)snprintf(list + used, sizeof list - used, "; ");
        if (used < sizeof list) describe(peer, list + used, sizeof list - used);
    }
    for (size_t i = 0; i < group->left_count; i++) {
        const size_t used = strlen(list);
        (void)snprintf(list + used, sizeof list - used, "; peer %llu has destroyed its end of the group",
                       (unsigned long long)group->left[i]);
    }
    pc_error_set(&error, pcclDeadlock, "these calls can never match: %s", list);
    pc_error_hint(&error, "all peers of a group must make the same joint calls, and post the operations of a tag alike");
    PC_LOG(pcclLogWarn, "%s: %s", master->machine.name, error.message);
    const bool votes_last = any_in_step(master, group);
    /* All keys before the first abort, with which the reports are out of date. */
    uint32_t count = 0;
    PC_EACH_PEER(master, peer) count += peer->stall_count;
    struct pc_stall *stalls = pc_arena_alloc(&master->arena, count, sizeof *stalls);
    if (stalls == NULL) return; /* the time limits of the calls end them */
    count = 0;
    PC_EACH_PEER(master, peer) {
        if (!peer->stuck || peer->group != group->number) continue;
        for (uint32_t i = 0; i < peer->stall_count; i++) {
            const struct pc_op_key *key = &peer->stalls[i].key;
            const struct pc_group *of = pc_master_group_of(master, key);
            const bool own = peer->stalls[i].kind == PC_CALL_COLLECTIVE && of != NULL && takes_part(peer, of, key);
            if (own) stalls[count++] = peer->stalls[i];
        }
    }
    for (uint32_t i = 0; i < count; i++) pc_master_abort_op(master, &stalls[i].key, &error, stalls[i].in_step != 0);
    PC_EACH_PEER(master, peer) {
        if (!peer->stuck || peer->group != group->number) continue;
        pc_master_answer(master, peer, 0, &error);
        if (!votes_last) pc_master_votes_end(master, peer, &error, now_ns);
        pc_master_unblock(peer);
    }
}

/* Leaves marked those that cannot go on unless another of them does. */
static void clear_hopeful(struct pc_master *master) {
    for (bool changed = true; changed;) {
        changed = false;
        PC_EACH_PEER(master, peer) {
            if (!peer->stuck || !hopeful(master, peer)) continue;
            peer->stuck = false;
            changed = true;
        }
    }
}

/* All of group: those that are not in it may be doing whatever they like. */
static bool all_stuck(struct pc_master *master, const struct pc_group *group) {
    size_t count = group->left_count;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        if (!peer->stuck) return false;
        count++;
    }
    return count > 1;
}

static const struct pc_group *find_stuck_group(struct pc_master *master) {
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        const struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (all_stuck(master, group)) return group;
    }
    return NULL;
}

void pc_master_find_deadlock(struct pc_master *master, uint64_t now_ns) {
    bool any = false;
    PC_EACH_PEER(master, peer) {
        peer->stuck = pc_master_votes(peer) && blocked(peer);
        any |= peer->stuck;
    }
    if (!any || find_stuck_group(master) == NULL) return;
    clear_hopeful(master);
    const struct pc_group *group = find_stuck_group(master);
    /* Of other peer groups, the next event decides. */
    if (group != NULL) fail_stuck(master, group, now_ns);
    else ask(master);
}
