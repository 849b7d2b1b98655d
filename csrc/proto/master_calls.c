/*
 * Joint calls: a topology call runs when all members of the run are in it, a synchronisation when all of a group are.
 * Calls that can never match (the wait-for graph has no way out) fail for all, with the list of who is where.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/master_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void pc_master_answer(struct pc_master *master, struct pc_peer *peer, uint64_t value, const pc_error *error) {
    if (peer->call == PC_CALL_NONE) return;
    struct pc_msg_call_result result = {.serial = peer->call_serial, .value = value};
    if (error != NULL) result.error = pc_error_to_wire(error);
    peer->call = PC_CALL_NONE;
    peer->sync_id = 0;
    peer->sync_waited = false;
    peer->stall_count = 0;
    pc_master_tell(master, peer, PC_MSG_CALL_RESULT, &result);
}

void pc_master_call(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, uint64_t now_ns) {
    (void)master;
    peer->call = call->kind;
    peer->call_serial = call->serial;
    peer->call_ns = now_ns;
    peer->vote = call->value != 0;
    if (call->kind == PC_CALL_END_STEP) peer->step_ops = call->step_ops;
}

void pc_master_call_cancel(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call_cancel *cancel) {
    if (peer->call == PC_CALL_NONE || peer->call_serial != cancel->serial) return;
    pc_error error = {.peer_id = peer->id};
    pc_error_set(&error, pcclCancelled, "peer %llu gave up its call of %s", (unsigned long long)peer->id,
                 pc_call_name(peer->call));
    if (peer->sync_id != 0) pc_master_sync_lose(master, peer, &error);
    pc_master_answer(master, peer, 0, &error);
}

/* Shared state -------------------------------------------------------------------------------------------------- */

pc_status pc_master_sync_offer(struct pc_master *master, struct pc_peer *peer, const struct pc_frame *frame,
                               struct pc_cursor meta, uint64_t now_ns) {
    (void)master;
    /* The texts of the decoded offer point into the message, which must outlive it. */
    uint8_t *copy = malloc(meta.left + 1);
    if (copy == NULL) return pcclNoMemory;
    memcpy(copy, meta.at, meta.left);
    free(peer->offer_bytes);
    peer->offer_bytes = copy;
    pc_arena_reset(&peer->offer_arena);
    PC_TRY(pc_schema_decode(pc_message_info(frame->type)->schema, pc_cursor_of(copy, meta.left), &peer->offer_arena,
                            &peer->offer));
    peer->call = PC_CALL_SYNC_STATE;
    peer->call_serial = peer->offer.serial;
    peer->call_ns = now_ns;
    return pcclSuccess;
}

static void end_sync(struct pc_master *master, struct pc_group *group, const pc_error *error) {
    const uint64_t sync_id = group->sync_id;
    group->sync_id = 0;
    if (error == NULL) group->revision = group->sync_revision + 1;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        if (peer->sync_id == sync_id) {
            if (error == NULL) peer->standing = true;
            pc_master_answer(master, peer, group->sync_revision, error);
        }
    }
}

void pc_master_sync_fail(struct pc_master *master, struct pc_group *group, const pc_error *error) {
    if (group->sync_id != 0) end_sync(master, group, error);
}

static void check_transfers(struct pc_master *master, struct pc_group *group) {
    PC_EACH_PEER(master, peer) {
        if (pc_master_in_group(peer, group) && peer->sync_waited) return;
    }
    end_sync(master, group, NULL);
}

void pc_master_sync_lose(struct pc_master *master, const struct pc_peer *lost, const pc_error *error) {
    struct pc_group *group = pc_master_group(master, lost->group, false);
    if (group == NULL || group->sync_id == 0 || lost->sync_id != group->sync_id) return;
    bool source = false;
    PC_EACH_PEER(master, peer) source |= peer != lost && peer->sync_waited && peer->sync_source == lost->id;
    if (source) {
        pc_master_sync_fail(master, group, error);
    } else if (lost->sync_waited) {
        struct pc_peer *receiver = pc_master_find(master, lost->id);
        receiver->sync_waited = false;
        receiver->sync_id = 0;
        check_transfers(master, group);
    }
}

void pc_master_sync_ready(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_sync_ready *ready) {
    struct pc_group *group = pc_master_group(master, peer->group, false);
    if (group == NULL || group->sync_id == 0 || ready->sync_id != group->sync_id || !peer->sync_waited) return;
    peer->sync_waited = false;
    pc_error error;
    pc_error_from_wire(&ready->error, &error);
    if (error.code != pcclSuccess) {
        pc_master_sync_fail(master, group, &error);
    } else {
        check_transfers(master, group);
    }
}

static void send_plan(struct pc_master *master, struct pc_peer *peer, const struct pc_voter *voter,
                      const struct pc_election *election) {
    struct pc_msg_sync_plan plan = {
        .serial = peer->call_serial,
        .sync_id = peer->sync_id,
        .revision = election->revision,
        .role = (uint8_t)voter->role,
        .source = voter->source,
    };
    struct pc_index_item *keys = pc_arena_alloc(&master->arena, voter->key_count, sizeof *keys);
    struct pc_digest_item *digests = pc_arena_alloc(&master->arena, voter->key_count, sizeof *digests);
    if (keys == NULL || digests == NULL) return; /* the time limit of the call ends it */
    const struct pc_peer *source = voter->key_count > 0 ? pc_master_find(master, voter->source) : NULL;
    for (uint32_t i = 0; i < voter->key_count; i++) {
        keys[i].index = voter->keys[i];
        const struct pc_state_key *wanted = (const struct pc_state_key *)source->offer.keys.items + voter->keys[i];
        memcpy(digests[i].digest, wanted->digest, sizeof digests[i].digest);
    }
    plan.keys = (struct pc_array){keys, voter->key_count};
    plan.digests = (struct pc_array){digests, voter->key_count};
    pc_master_tell(master, peer, PC_MSG_SYNC_PLAN, &plan);
}

static void kick(struct pc_master *master, struct pc_peer *peer, const char *reason, uint64_t now_ns) {
    pc_error error = {.peer_id = peer->id};
    char name[224];
    pc_master_name_peer(peer, name, sizeof name);
    pc_error_set(&error, pcclInvalidUsage, "sync_shared_state: %s was kicked: %s", name, reason);
    pc_error_hint(&error, "connect again to join as a newcomer");
    pc_master_answer(master, peer, 0, &error);
    pc_master_remove(master, peer, &error, true, now_ns);
}

/* Plans go out for the whole group, or, when nothing needs to move, the result at once. */
static void carry_out(struct pc_master *master, struct pc_group *group, const struct pc_election *election,
                      uint64_t now_ns) {
    group->sync_id = ++master->next_sync_id;
    group->sync_revision = election->revision;
    bool transfers = false;
    for (uint32_t i = 0; i < election->count; i++) {
        const struct pc_voter *voter = &election->voters[i];
        struct pc_peer *peer = pc_master_find(master, voter->id);
        if (voter->kicked) continue;
        peer->sync_id = group->sync_id;
        peer->sync_waited = voter->role == PC_SYNC_RECEIVE;
        peer->sync_source = voter->source;
        transfers |= peer->sync_waited;
    }
    for (uint32_t i = 0; i < election->count && transfers; i++) {
        struct pc_peer *peer = pc_master_find(master, election->voters[i].id);
        if (!election->voters[i].kicked) send_plan(master, peer, &election->voters[i], election);
    }
    if (!transfers) end_sync(master, group, NULL);
    for (uint32_t i = 0; i < election->count; i++) {
        struct pc_peer *peer = pc_master_find(master, election->voters[i].id);
        if (election->voters[i].kicked && peer != NULL) kick(master, peer, election->voters[i].reason, now_ns);
    }
}

static void run_sync(struct pc_master *master, struct pc_group *group, uint32_t count, uint64_t now_ns) {
    struct pc_election election = {.expected = group->revision, .count = 0};
    election.voters = pc_arena_alloc(&master->arena, count, sizeof *election.voters);
    if (election.voters == NULL) return;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        election.voters[election.count++] =
            (struct pc_voter){.id = peer->id, .standing = peer->standing, .offer = &peer->offer};
    }
    if (pc_election_run(&election, &master->arena) == pcclSuccess) {
        carry_out(master, group, &election, now_ns);
        return;
    }
    const pc_error error = {.code = pcclNoMemory, .message = "the master has no memory to elect the shared state"};
    PC_EACH_PEER(master, peer) {
        if (pc_master_in_group(peer, group)) pc_master_answer(master, peer, 0, &error);
    }
}

/* Topology ------------------------------------------------------------------------------------------------------ */

static void run_topology(struct pc_master *master, uint8_t kind) {
    if (kind == PC_CALL_UPDATE_TOPOLOGY && pc_master_admit(master)) {
        pc_master_flip(master, true);
        return;
    }
    if (kind == PC_CALL_OPTIMIZE_TOPOLOGY) {
        /* All are here, so no operation is in flight: plans may follow what was measured since. */
        for (size_t i = 0; i < master->pair_count; i++) master->pairs[i].rtt_us = master->pairs[i].measured_us;
        pc_master_flip(master, false);
    }
    const bool pending = kind == PC_CALL_PEERS_PENDING && pc_master_anyone_admissible(master);
    PC_EACH_PEER(master, peer) {
        if (pc_master_votes(peer)) pc_master_answer(master, peer, pending, NULL);
    }
}

/* The call that all of them are in; PC_CALL_NONE: they are not in one and the same. */
static uint8_t common_call(struct pc_master *master, const struct pc_group *group, uint32_t *count) {
    uint8_t common = PC_CALL_NONE;
    bool same = true;
    *count = 0;
    PC_EACH_PEER(master, peer) {
        if (group == NULL ? !pc_master_votes(peer) : !pc_master_in_group(peer, group)) continue;
        if (*count > 0 && peer->call != common) same = false;
        common = peer->call;
        (*count)++;
    }
    return same ? common : PC_CALL_NONE;
}

/* Wait-for graph ------------------------------------------------------------------------------------------------ */

static bool has_started(const struct pc_peer *peer, const struct pc_op_key *key) {
    for (size_t i = 0; i < peer->started_count; i++) {
        if (pc_op_key_equal(&peer->started[i], key)) return true;
    }
    return false;
}

void pc_master_moved(struct pc_master *master, const struct pc_group *group) {
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        peer->stall_count = peer->stall_reports = 0;
        peer->started_count = 0;
    }
}

/* One report may be older than what has been posted since; the second one after the last verdict is not. */
static bool blocked(const struct pc_peer *peer) {
    return peer->stall_count > 0 ? peer->stall_reports >= 2 : peer->call != PC_CALL_NONE;
}

/*
 * Whether other does, or did, its part of the operation that peer is blocked in. In a step it is over for a member as soon
 * as it is complete there; its frames may be under way still, or lost with a link whose end has not been noticed yet.
 */
static bool does_part(const struct pc_peer *other, const struct pc_peer *peer, const struct pc_stall *stall) {
    if (other == peer || has_started(other, &stall->key)) return true;
    if (!stall->in_step) return false;
    return stall->key.channel != 0 || other->step_ops >= peer->step_ops;
}

/* Whether what peer waits for can still come, given that all of its group are blocked. */
static bool hopeful(struct pc_master *master, const struct pc_peer *peer) {
    for (uint32_t i = 0; i < peer->stall_count; i++) {
        if (peer->stalls[i].kind != PC_CALL_COLLECTIVE) continue;
        const struct pc_op_key *key = &peer->stalls[i].key;
        const struct pc_group *group = pc_master_group_of(master, key);
        if (group == NULL) return true;
        bool all = true;
        PC_EACH_PEER(master, other) {
            if (!pc_master_takes_part(other, group, key)) continue;
            all &= does_part(other, peer, &peer->stalls[i]);
            /* In are_peers_pending without a report yet: operations of other threads may be in flight. */
            if (other->call == PC_CALL_PEERS_PENDING && other->stall_count == 0) return true;
        }
        if (all) return true;
    }
    if (peer->call == PC_CALL_NONE) return false;
    PC_EACH_PEER(master, other) {
        if (pc_master_votes(other) && other->group == peer->group && other->call != peer->call) return false;
    }
    return true;
}

static void describe(const struct pc_peer *peer, char *out, size_t out_bytes) {
    char name[224];
    pc_master_name_peer(peer, name, sizeof name);
    if (peer->call != PC_CALL_NONE) {
        (void)snprintf(out, out_bytes, "%s is in %s", name, pc_call_name(peer->call));
    } else {
        (void)snprintf(out, out_bytes, "%s is in %s with tag %llu", name, pc_collective_name(peer->stalls[0].collective),
                       (unsigned long long)peer->stalls[0].key.tag);
    }
}

static void fail_group(struct pc_master *master, const struct pc_group *group) {
    pc_error error = {0};
    char list[600] = "";
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        size_t used = strlen(list);
        if (used > 0) used += (size_t)snprintf(list + used, sizeof list - used, "; ");
        if (used < sizeof list) describe(peer, list + used, sizeof list - used);
    }
    pc_error_set(&error, pcclDeadlock, "these calls can never match: %s", list);
    pc_error_hint(&error, "all peers of a group must make the same joint calls, and post the operations of a tag alike");
    PC_LOG(pcclLogWarn, "%s: %s", master->machine.name, error.message);
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        for (uint32_t i = 0; i < peer->stall_count; i++) {
            if (peer->stalls[i].kind != PC_CALL_COLLECTIVE) continue;
            pc_master_abort_op(master, &peer->stalls[i].key, &error, peer->stalls[i].in_step != 0);
        }
        pc_master_answer(master, peer, 0, &error);
    }
    pc_master_moved(master, group);
}

static void find_deadlock(struct pc_master *master, const struct pc_group *group) {
    uint32_t count = 0;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        if (!blocked(peer) || hopeful(master, peer)) return;
        count++;
    }
    if (count > 1) fail_group(master, group);
}

void pc_master_stalled(struct pc_peer *peer, const struct pc_msg_stalled *stalled) {
    const struct pc_stall *calls = stalled->calls.items;
    peer->stall_count = 0;
    for (uint32_t i = 0; i < stalled->calls.count && peer->stall_count < PC_STALLS_MAX; i++) {
        peer->stalls[peer->stall_count++] = calls[i];
    }
    if (peer->call != PC_CALL_END_STEP) peer->step_ops = stalled->step_ops;
    peer->stall_reports = peer->stall_count > 0 ? peer->stall_reports + 1 : 0;
    void *items = peer->started;
    if (!pc_grow(&items, &peer->started_capacity, stalled->started.count, sizeof *peer->started)) return;
    peer->started = items;
    peer->started_count = stalled->started.count;
    if (peer->started_count > 0) {
        memcpy(peer->started, stalled->started.items, peer->started_count * sizeof *peer->started);
    }
}

/* A step is committed if nothing has failed anywhere. If not, its operations have ended unevenly: seqs start again. */
static void end_step(struct pc_master *master, struct pc_group *group) {
    pc_error error = {0};
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group) || peer->vote) continue;
        if (error.code != pcclSuccess) continue;
        error.peer_id = peer->id;
        pc_error_set(&error, pcclStepAborted, "the step was aborted: something in it failed at peer %llu",
                     (unsigned long long)peer->id);
        pc_error_hint(&error, "nothing of the step counts at any peer; do it again");
    }
    const bool commit = error.code == pcclSuccess;
    if (!commit) {
        group->flushing = true; /* nothing is in flight: all are here */
        pc_master_flip(master, false);
    }
    PC_EACH_PEER(master, peer) {
        if (pc_master_in_group(peer, group)) pc_master_answer(master, peer, 0, commit ? NULL : &error);
    }
    pc_master_moved(master, group);
}

void pc_master_evaluate(struct pc_master *master, uint64_t now_ns) {
    if (master->flushing || master->flip_wanted || master->ending) return;
    uint32_t count = 0;
    const uint8_t topology = common_call(master, NULL, &count);
    if (count == 0) {
        /* Nobody is there whose consent were needed: the first ones are members at once. */
        if (pc_master_admit(master)) pc_master_flip(master, false);
        return;
    }
    const bool of_groups = topology == PC_CALL_SYNC_STATE || topology == PC_CALL_END_STEP;
    if (topology != PC_CALL_NONE && !of_groups) run_topology(master, topology);
    for (struct pc_list *node = master->groups.next, *next; node != &master->groups; node = next) {
        next = node->next;
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->sync_id != 0) continue;
        const uint8_t call = common_call(master, group, &count);
        if (call == PC_CALL_SYNC_STATE) {
            run_sync(master, group, count, now_ns);
        } else if (call == PC_CALL_END_STEP) {
            end_step(master, group);
        } else {
            find_deadlock(master, group);
        }
        if (master->flip_wanted) return; /* somebody was kicked: the rest after the epoch */
    }
}
