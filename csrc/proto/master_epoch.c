/*
 * Removal is a flush: the groups concerned are frozen (FREEZE), answer what they have started and finished (STATE), and
 * get one epoch with the fate of every operation. All groups that are being flushed share the epoch.
 */
#include "base/checked.h"
#include "base/log.h"
#include "plan/chunk_plan.h"
#include "proto/master_state.h"
#include "proto/mutant.h"

#include <stdlib.h>
#include <string.h>

struct pc_group *pc_master_group(struct pc_master *master, uint32_t number, bool create) {
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->number == number && group->subset == 0) return group;
    }
    struct pc_group *group = create ? pc_calloc(1, sizeof *group) : NULL;
    if (group == NULL) return NULL;
    group->number = number;
    pc_list_append(&master->groups, &group->node);
    return group;
}

struct pc_group *pc_master_group_of(const struct pc_master *master, const struct pc_op_key *key) {
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->number == key->group && group->subset == key->subset) return group;
    }
    return NULL;
}

bool pc_master_in_group(const struct pc_peer *peer, const struct pc_group *group) {
    if (!pc_master_votes(peer) || peer->group != group->number) return false;
    return group->subset == 0 || pc_master_listed(group, peer->id);
}

static void freeze_group(struct pc_master *master, struct pc_group *group, uint64_t due_ns) {
    group->flushing = true;
    const struct pc_msg_freeze message = {master->epoch, group->subset};
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        peer->freeze_due_ns = peer->freeze_waited == 0 ? due_ns : pc_min_u64(peer->freeze_due_ns, due_ns);
        peer->freeze_waited++;
        pc_master_tell(master, peer, PC_MSG_FREEZE, &message);
    }
}

void pc_master_flush(struct pc_master *master, struct pc_group *group, const pc_error *cause, uint64_t now_ns) {
    master->flushing = master->flip_wanted = true;
    if (group->cause.code == pcclSuccess) group->cause = *cause;
    if (!group->flushing) freeze_group(master, group, now_ns + master->config.dead_timeout_ns);
}

void pc_master_freeze(struct pc_master *master, const struct pc_peer *a, const struct pc_peer *b, const pc_error *cause,
                      uint64_t now_ns) {
    master->flushing = master->flip_wanted = true;
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        const bool both = group->number == a->group && group->number == b->group &&
                          (group->subset == 0 || (pc_master_listed(group, a->id) && pc_master_listed(group, b->id)));
        if (!both) continue;
        if (group->cause.code == pcclSuccess) group->cause = *cause;
        if (!group->flushing) freeze_group(master, group, now_ns + PC_FLUSH_MS * PC_NS_PER_MS);
    }
}

void pc_master_remove(struct pc_master *master, struct pc_peer *peer, const pc_error *why, bool evict,
                      uint64_t now_ns) {
    if (peer->state < PC_PEER_MEMBER) {
        /* Not refused for what it is: nothing speaks against another attempt. */
        pc_error lost = *why;
        lost.code = pcclMasterConnectionFailed;
        pc_master_refuse(master, peer, &lost);
        return;
    }
    if (peer->state == PC_PEER_GONE) return;
    PC_LOG(pcclLogInfo, "%s: removed: %s", master->machine.name, why->message);
    if (evict) {
        pc_error told = *why;
        told.code = pcclEvicted;
        pc_error_hint(&told, "connect again to join as a newcomer");
        const struct pc_msg_refuse message = {pc_error_to_wire(&told)};
        pc_master_tell(master, peer, PC_MSG_EVICT, &message);
    }
    if (peer->stream != NULL) pc_stream_close(peer->stream, true, &master->machine.actions);
    peer->stream = NULL;
    peer->state = PC_PEER_GONE;
    peer->call = PC_CALL_NONE;
    peer->vote_count = 0;
    if (!PC_MUTANT(PC_MUTANT_DEAD_DONE)) peer->freeze_waited = 0;
    pc_error cause = *why;
    cause.code = pcclRankConnectionLost;
    peer->why = cause;
    pc_master_sync_lose(master, peer, &cause);
    master->flip_wanted = true;
    if (!peer->observer) pc_master_freeze(master, peer, peer, &cause, now_ns);
    if (PC_MUTANT(PC_MUTANT_DEAD_DONE)) peer->freeze_waited = 1;
}

void pc_master_state(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_state *state) {
    if (peer->freeze_waited == 0) return;
    const size_t count = peer->flushed_count + state->ops.count;
    void *items = peer->flushed;
    if (!pc_grow(&items, &peer->flushed_capacity, count, sizeof *peer->flushed)) return;
    peer->flushed = items;
    if (state->ops.count > 0) {
        memcpy(peer->flushed + peer->flushed_count, state->ops.items, state->ops.count * sizeof *peer->flushed);
    }
    peer->flushed_count = count;
    peer->freeze_waited--;
    const struct pc_op_key key = {.group = peer->group, .subset = state->subset};
    struct pc_group *group = pc_master_group_of(master, &key);
    if (group != NULL && state->step_open) group->step_failed = true;
}

void pc_master_flush_tick(struct pc_master *master, uint64_t now_ns) {
    if (!master->flushing) return;
    PC_EACH_PEER(master, peer) {
        if (peer->freeze_waited == 0 || peer->state == PC_PEER_GONE || now_ns < peer->freeze_due_ns) continue;
        pc_error why = {.peer_id = peer->id};
        char name[224];
        pc_master_name_peer(peer, name, sizeof name);
        pc_error_set(&why, pcclRankConnectionLost, "%s did not answer in time when its group got a new epoch", name);
        pc_master_remove(master, peer, &why, true, now_ns);
    }
}

/* Epochs -------------------------------------------------------------------------------------------------------- */

/* The member list of group, and its ring. Returns false when no ring avoids the bad pairs. */
static bool plan_ring(struct pc_master *master, struct pc_group *group, bool *changed) {
    uint32_t n = 0;
    PC_EACH_PEER(master, peer) n += pc_master_in_group(peer, group);
    uint64_t *ids = pc_arena_alloc(&master->arena, n, sizeof *ids);
    uint32_t *order = pc_arena_alloc(&master->arena, n, sizeof *order);
    void *kept = group->ids, *ring = group->ring;
    if (ids == NULL || order == NULL) return false;
    n = 0;
    PC_EACH_PEER(master, peer) {
        if (pc_master_in_group(peer, group)) ids[n++] = peer->id;
    }
    bool others = n != group->n;
    *changed = others;
    const bool possible = pc_master_order_ring(master, group, ids, n, order, changed);
    if (!pc_grow(&kept, &group->ids_capacity, n, sizeof *group->ids)) return false;
    group->ids = kept;
    if (!pc_grow(&ring, &group->ring_capacity, n, sizeof *group->ring)) return false;
    group->ring = ring;
    for (uint32_t i = 0; i < n; i++) {
        others |= group->ids[i] != ids[i];
        *changed |= others || group->ring[i] != order[i];
        group->ids[i] = ids[i];
        group->ring[i] = order[i];
    }
    group->n = n;
    if (others) group->members_epoch = master->epoch;
    const uint32_t rtt_us = pc_master_longest_rtt(master, ids, n);
    *changed |= (rtt_us >= PC_FAR_US) != (group->rtt_us >= PC_FAR_US); /* other algorithms are chosen */
    if (*changed) group->rtt_us = rtt_us;
    return possible;
}

/* The end with more bad pairs goes; on a tie the one that came later. */
static struct pc_peer *worst_peer(struct pc_master *master, const struct pc_group *group) {
    struct pc_peer *worst = NULL;
    uint32_t worst_count = 0;
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        uint32_t count = 0;
        for (size_t i = 0; i < master->pair_count; i++) {
            const struct pc_pair *pair = &master->pairs[i];
            count += pair->bad && (pair->low == peer->id || pair->high == peer->id);
        }
        if (count > 0 && count >= worst_count) {
            worst = peer;
            worst_count = count;
        }
    }
    return worst;
}

/* Those frozen already, and those whose operations end without an answer: all of what they have not heard of fails. */
static void flush_all_with(struct pc_master *master, const struct pc_peer *peer) {
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->number != peer->group) continue;
        group->flushing |= group->subset == 0 || pc_master_listed(group, peer->id);
    }
}

/*
 * Plans every group; a peer that no ring can hold is removed, which changes its group too. Subsets come after the group
 * that they are part of, in the list as they came into being.
 */
static void plan_all(struct pc_master *master) {
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->subset != 0) {
            if (pc_master_plan_subset(master, group)) group->epoch = master->epoch;
            continue;
        }
        bool changed = false, again = false;
        while (!plan_ring(master, group, &again)) {
            changed |= again;
            struct pc_peer *worst = worst_peer(master, group);
            if (worst == NULL) break;
            pc_error why = {.peer_id = worst->id};
            char name[224];
            pc_master_name_peer(worst, name, sizeof name);
            pc_error_set(&why, pcclRankConnectionLost, "%s lost its link to another peer twice, and no ring goes round it",
                         name);
            flush_all_with(master, worst);
            pc_master_remove(master, worst, &why, true, 0); /* nobody is frozen for it any more */
        }
        if (changed || again || group->flushing) group->epoch = master->epoch;
    }
}

static struct pc_array fates_of(struct pc_master *master, const struct pc_group *group) {
    size_t most = 0;
    PC_EACH_PEER(master, peer) {
        if (pc_master_in_group(peer, group)) most += peer->flushed_count;
    }
    struct pc_verdict *fates = pc_arena_alloc(&master->arena, most, sizeof *fates);
    uint32_t count = 0;
    if (fates == NULL) return (struct pc_array){0};
    PC_EACH_PEER(master, peer) {
        if (!pc_master_in_group(peer, group)) continue;
        for (size_t i = 0; i < peer->flushed_count; i++) {
            const struct pc_op_key *key = &peer->flushed[i].key;
            bool known = key->group != group->number || key->subset != group->subset;
            for (uint32_t k = 0; k < count && !known; k++) known = pc_op_key_equal(&fates[k].key, key);
            if (!known) fates[count++] = (struct pc_verdict){*key, pc_master_fate(master, group, key)};
        }
    }
    /* In order of seq: tombstones of one tag are consumed in that order. */
    for (uint32_t i = 1; i < count; i++) {
        const struct pc_verdict fate = fates[i];
        uint32_t k = i;
        for (; k > 0 && fates[k - 1].key.seq > fate.key.seq; k--) fates[k] = fates[k - 1];
        fates[k] = fate;
    }
    return (struct pc_array){fates, count};
}

static void fill_members(struct pc_master *master, struct pc_msg_epoch *message) {
    uint32_t count = 0;
    PC_EACH_PEER(master, peer) count += peer->state == PC_PEER_MEMBER;
    struct pc_member_record *records = pc_arena_alloc(&master->arena, count, sizeof *records);
    if (records == NULL) return;
    message->members = (struct pc_array){records, count};
    PC_EACH_PEER(master, peer) {
        if (peer->state != PC_PEER_MEMBER) continue;
        *records = (struct pc_member_record){.id = peer->id, .group = peer->group, .observer = peer->observer};
        memcpy(records->incarnation, peer->incarnation, sizeof records->incarnation);
        if (peer->address_count > 0) records->address = peer->addresses[0];
        records++;
    }
}

/* A group, as the epoch to come tells its members. */
struct group_part {
    const struct pc_group *group;
    struct pc_group_record record;
    struct pc_array fates;
};

static void describe_group(struct pc_master *master, const struct pc_group *group, struct group_part *part) {
    struct pc_id_item *ids = pc_arena_alloc(&master->arena, group->n, sizeof *ids);
    struct pc_index_item *ring = pc_arena_alloc(&master->arena, group->n, sizeof *ring);
    pc_error *cause = pc_arena_alloc(&master->arena, 1, sizeof *cause);
    *part = (struct group_part){.group = group};
    if (group->flushing) part->fates = fates_of(master, group);
    if (ids == NULL || ring == NULL || cause == NULL) return;
    for (size_t i = 0; i < group->n; i++) {
        ids[i].id = group->ids[i];
        ring[i].index = group->ring[i];
    }
    pc_master_cause(master, group, cause);
    part->record = (struct pc_group_record){
        .group = group->number,
        .subset = group->subset,
        .epoch = group->epoch,
        .members = {ids, (uint32_t)group->n},
        .ring = {ring, (uint32_t)group->n},
        .links = {group->links, (uint32_t)group->link_count},
        .rtt_us = group->rtt_us,
        .ring_only = group->ring_only,
        .step_poisoned = group->step_failed,
        .cause = pc_error_to_wire(cause),
        .broken = group->broken,
    };
}

/* What concerns peer, into the lists of message, which have room for all of it. */
static void gather(const struct pc_peer *peer, const struct group_part *parts, uint32_t count,
                   struct pc_msg_epoch *message) {
    struct pc_group_record *records = message->groups.items;
    struct pc_verdict *fates = message->fates.items;
    message->groups.count = message->fates.count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct pc_group *group = parts[i].group;
        if (group->subset == 0 ? peer->group != group->number : !pc_master_in_group(peer, group)) continue;
        records[message->groups.count++] = parts[i].record;
        if (parts[i].fates.count == 0) continue;
        memcpy(fates + message->fates.count, parts[i].fates.items, parts[i].fates.count * sizeof *fates);
        message->fates.count += parts[i].fates.count;
    }
}

static void send_epoch(struct pc_master *master, bool topology) {
    struct pc_msg_epoch message = {.incarnation = master->config.incarnation, .number = master->epoch};
    fill_members(master, &message);
    uint32_t total = 0, count = 0;
    size_t fate_count = 0;
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) total++;
    struct group_part *parts = pc_arena_alloc(&master->arena, total, sizeof *parts);
    for (struct pc_list *node = master->groups.next; node != &master->groups && parts != NULL; node = node->next) {
        const struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->subset != 0 && group->epoch != master->epoch) continue; /* its members know it as it is */
        describe_group(master, group, &parts[count]);
        fate_count += parts[count++].fates.count;
    }
    message.groups.items = pc_arena_alloc(&master->arena, count, sizeof(struct pc_group_record));
    message.fates.items = pc_arena_alloc(&master->arena, fate_count, sizeof(struct pc_verdict));
    if (message.groups.items == NULL || message.fates.items == NULL) count = 0; /* an epoch that nobody can accept */
    PC_EACH_PEER(master, peer) {
        if (peer->state != PC_PEER_MEMBER) continue;
        gather(peer, parts, count, &message);
        const bool answered = topology && peer->call == PC_CALL_UPDATE_TOPOLOGY;
        message.topology_serial = answered ? peer->call_serial : 0;
        if (answered) peer->call = PC_CALL_NONE;
        pc_master_tell(master, peer, PC_MSG_EPOCH, &message);
    }
}

static void forget_gone(struct pc_master *master) {
    PC_EACH_PEER(master, peer) {
        peer->flushed_count = 0;
        if (peer->state != PC_PEER_GONE) continue;
        pc_master_forget_pairs(master, peer->id);
        pc_master_free_peer(master, peer);
    }
}

static void drop_empty_groups(struct pc_master *master) {
    for (struct pc_list *node = master->groups.next, *next; node != &master->groups; node = next) {
        next = node->next;
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        group->flushing = group->replan = false;
        group->cause = (pc_error){0};
        bool used = false;
        PC_EACH_PEER(master, peer) {
            used |= group->subset == 0 ? peer->state >= PC_PEER_DIAL_BACK && peer->group == group->number
                                       : !group->broken && pc_master_in_group(peer, group);
        }
        if (!used) pc_master_free_group(master, group);
    }
}

void pc_master_flip(struct pc_master *master, bool topology) {
    master->epoch++;
    plan_all(master);
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->flushing) pc_master_step_flushed(master, group);
    }
    send_epoch(master, topology);
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->epoch == master->epoch) pc_master_forget_ops(master, group);
        if (group->broken) pc_master_end_broken(master, group);
        else pc_master_step_over(master, group);
        pc_master_moved(master, group, NULL);
    }
    forget_gone(master);
    drop_empty_groups(master);
    for (size_t i = 0; i < master->pair_count; i++) {
        if (!master->pairs[i].renew) continue;
        master->pairs[i].renew = false;
        pc_master_introduce(master, &master->pairs[i]);
    }
    master->flushing = master->flip_wanted = false;
    pc_master_search_on(master);
    PC_LOG(pcclLogInfo, "%s: epoch %llu committed", master->machine.name, (unsigned long long)master->epoch);
}

void pc_master_try_flip(struct pc_master *master) {
    if (!master->flip_wanted || master->ending) return;
    PC_EACH_PEER(master, peer) {
        if (peer->freeze_waited > 0) return;
    }
    pc_master_flip(master, false);
}
