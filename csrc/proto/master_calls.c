/*
 * Joint calls: a topology call runs when all members of the run are in it, a synchronisation when all of a group are. A
 * peer is in one of them at a time. Votes on steps are apart (master_steps.c).
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/master_state.h"
#include "proto/mutant.h"

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
    pc_master_unblock(peer);
    pc_master_tell(master, peer, PC_MSG_CALL_RESULT, &result);
}

static bool keep_wanted(struct pc_peer *peer, const struct pc_msg_call *call) {
    void *items = peer->wanted;
    if (!pc_grow(&items, &peer->wanted_capacity, call->ids.count, sizeof *peer->wanted)) return false;
    peer->wanted = items;
    peer->wanted_count = call->ids.count;
    for (uint32_t i = 0; i < call->ids.count; i++) peer->wanted[i] = ((const struct pc_id_item *)call->ids.items)[i].id;
    return true;
}

void pc_master_call(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, uint64_t now_ns) {
    peer->answer_count = 0;
    if (call->kind == PC_CALL_END_STEP) {
        pc_master_vote(master, peer, call, now_ns);
        return;
    }
    peer->call = call->kind;
    peer->call_serial = call->serial;
    peer->call_ns = now_ns;
    if (call->kind == PC_CALL_CREATE_GROUP && !keep_wanted(peer, call)) {
        const pc_error error = {.code = pcclNoMemory, .message = "the master has no memory for the list of a group"};
        pc_master_answer(master, peer, 0, &error);
    }
}

void pc_master_call_cancel(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call_cancel *cancel,
                           uint64_t now_ns) {
    if (pc_master_vote_cancel(master, peer, cancel->serial, now_ns)) return;
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

static void run_topology(struct pc_master *master, uint8_t kind, uint64_t now_ns) {
    /* All are here, so no operation is in flight: plans may follow what was found and measured since. */
    if (kind == PC_CALL_UPDATE_TOPOLOGY) {
        const bool better = pc_master_adopt_rings(master);
        if (pc_master_admit(master) || better) {
            pc_master_flip(master, true);
            return;
        }
    }
    if (kind == PC_CALL_OPTIMIZE_TOPOLOGY) {
        if (!pc_master_probe(master, now_ns)) return;
        (void)pc_master_adopt_rings(master);
        for (size_t i = 0; i < master->pair_count; i++) {
            struct pc_pair *pair = &master->pairs[i];
            pair->rtt_us = pair->measured_us;
            memcpy(pair->rate, pair->measured_rate, sizeof pair->rate);
        }
        for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
            PC_LIST_ENTRY(node, struct pc_group, node)->replan = true;
        }
        pc_master_flip(master, false);
    }
    const bool pending = kind == PC_CALL_PEERS_PENDING && pc_master_anyone_admissible(master);
    PC_EACH_PEER(master, peer) {
        if (pc_master_votes(peer)) pc_master_answer(master, peer, pending, NULL);
    }
}

/* The call of group, or of the run (NULL), that all of them are in; PC_CALL_NONE: they are not in one and the same. */
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

/* Calls of one group; the others are of the whole run. */
static bool of_one_group(uint8_t call) {
    return call == PC_CALL_SYNC_STATE || call == PC_CALL_CREATE_GROUP;
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
    if (topology != PC_CALL_OPTIMIZE_TOPOLOGY) master->probe.active = false; /* somebody has given up */
    if (topology != PC_CALL_NONE && !of_one_group(topology)) run_topology(master, topology, now_ns);
    const uint64_t epoch = master->epoch;
    const bool anybody_votes = pc_master_anybody_votes(master);
    for (struct pc_list *node = master->groups.next, *next; node != &master->groups; node = next) {
        next = node->next;
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->sync_id != 0) continue;
        if (anybody_votes) pc_master_count_votes(master, group);
        const bool whole = master->epoch == epoch && group->subset == 0;
        const uint8_t call = whole ? common_call(master, group, &count) : PC_CALL_NONE;
        if (call == PC_CALL_SYNC_STATE) {
            run_sync(master, group, count, now_ns);
        } else if (call == PC_CALL_CREATE_GROUP) {
            pc_master_create_subset(master, group);
        }
        if (master->flip_wanted) return; /* somebody was kicked: the rest after the epoch */
        if (master->epoch != epoch) { /* the list may have changed */
            pc_master_evaluate(master, now_ns);
            return;
        }
    }
    pc_master_find_deadlock(master, now_ns);
}
