/*
 * Groups of a member: the peer group, and groups made of some of its members. An epoch tells of them all. Others may
 * hear of a new one first, and post operations: what comes of these waits in a group that is forming. Which number the
 * new one will have is not known here yet, so each of the others may be the first to speak of one.
 */
#include "base/checked.h"
#include "base/log.h"
#include "bytes/log16.h"
#include "proto/member_state.h"

#include <stdlib.h>

void pc_member_group_init(struct pc_member_group *group, uint32_t number, uint32_t subset) {
    *group = (struct pc_member_group){.number = number, .subset = subset, .rank = PC_RANK_NONE};
    for (int i = 0; i < PC_TAG_BUCKETS; i++) pc_list_init(&group->few_tags[i]);
    group->tags = group->few_tags;
    group->tag_buckets = PC_TAG_BUCKETS;
}

struct pc_member_group *pc_member_group(struct pc_member *member, uint32_t subset) {
    for (struct pc_list *node = member->groups.next; node != &member->groups; node = node->next) {
        struct pc_member_group *group = PC_LIST_ENTRY(node, struct pc_member_group, node);
        if (group->subset == subset) return group;
    }
    return NULL;
}

static struct pc_member_group *new_subset(const struct pc_member *member, uint32_t subset) {
    struct pc_member_group *group = malloc(sizeof *group);
    if (group != NULL) pc_member_group_init(group, member->group.number, subset);
    return group;
}

static bool is_asking(const struct pc_member *member) {
    for (struct pc_list *node = member->calls.next; node != &member->calls; node = node->next) {
        if (PC_LIST_ENTRY(node, struct pc_call, node)->kind == PC_CALL_CREATE_GROUP) return true;
    }
    return false;
}

/*
 * No group with this peer in it is made without its call, and then one. A member that names two is wrong, and so is one
 * that names any without such a call.
 */
static pc_status forming(struct pc_member *member, uint32_t subset, uint64_t from, struct pc_member_group **group) {
    *group = NULL;
    if (!is_asking(member)) return pcclProtocolError;
    for (struct pc_list *node = member->forming.next; node != &member->forming; node = node->next) {
        struct pc_member_group *other = PC_LIST_ENTRY(node, struct pc_member_group, node);
        if (other->subset == subset) *group = other;
        else if (other->heard_from == from) return pcclProtocolError;
    }
    if (*group != NULL) return pcclSuccess;
    *group = new_subset(member, subset);
    if (*group == NULL) return pcclNoMemory;
    (*group)->heard_from = from;
    pc_list_append(&member->forming, &(*group)->node);
    return pcclSuccess;
}

pc_status pc_member_group_of(struct pc_member *member, const struct pc_op_key *key, uint64_t from,
                             struct pc_member_group **group) {
    *group = pc_member_group(member, key->subset);
    if (*group != NULL || key->subset <= member->newest_subset) return pcclSuccess;
    if (key->epoch <= member->epoch.number) return pcclProtocolError;
    return forming(member, key->subset, from, group);
}

static void free_subset(struct pc_member_group *group) {
    pc_member_ops_forget(group);
    pc_list_remove(&group->node);
    free(group->ids);
    free(group->ring);
    free(group->cost_memory);
    free(group);
}

void pc_member_drop_forming(struct pc_member *member) {
    while (!pc_list_empty(&member->forming)) {
        free_subset(PC_LIST_ENTRY(member->forming.next, struct pc_member_group, node));
    }
}

void pc_member_drop_groups(struct pc_member *member) {
    pc_member_drop_forming(member);
    while (member->group.node.next != &member->groups) {
        free_subset(PC_LIST_ENTRY(member->group.node.next, struct pc_member_group, node));
    }
}

/* Epochs -------------------------------------------------------------------------------------------------------- */

/* Who is where. The ring must hold every rank once: plans walk along it. */
static pc_status copy_order(struct pc_member *member, struct pc_member_group *group,
                            const struct pc_group_record *record) {
    const uint32_t n = record->members.count;
    void *ids = group->ids, *ring = group->ring;
    bool *seen = pc_arena_alloc(&member->arena, n, sizeof *seen);
    if (record->ring.count != n || n > PC_RANKS_MAX) return pcclProtocolError;
    if (seen == NULL || !pc_grow(&ids, &group->ids_capacity, n, sizeof *group->ids)) return pcclNoMemory;
    group->ids = ids;
    if (!pc_grow(&ring, &group->ring_capacity, n, sizeof *group->ring)) return pcclNoMemory;
    group->ring = ring;
    bool changed = group->n != n;
    group->n = n;
    group->rank = PC_RANK_NONE;
    for (uint32_t i = 0; i < n; i++) seen[i] = false;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t rank = ((const struct pc_index_item *)record->ring.items)[i].index;
        const uint64_t id = ((const struct pc_id_item *)record->members.items)[i].id;
        changed |= group->ids[i] != id;
        group->ids[i] = id;
        if (group->ids[i] == member->id) group->rank = i;
        if (rank >= n || seen[rank]) return pcclProtocolError;
        seen[rank] = true;
        group->ring[i] = rank;
    }
    if (changed) group->members_epoch = record->epoch;
    return pcclSuccess;
}

/* The same numbers at all members, so the same model. */
static pc_status copy_links(struct pc_member *member, struct pc_member_group *group,
                            const struct pc_group_record *record) {
    const struct pc_link_item *links = record->links.items;
    const uint32_t n = record->members.count;
    const size_t cells = (size_t)n * n;
    group->cost = NULL;
    if (record->links.count == 0) return pcclSuccess;
    if (n > PC_COST_MEMBERS_MAX || record->links.count != (cells - n) / 2) return pcclProtocolError;
    uint32_t *rtt_us = pc_arena_alloc(&member->arena, cells, sizeof *rtt_us);
    uint32_t *bytes_per_ms = pc_arena_alloc(&member->arena, cells, sizeof *bytes_per_ms);
    if (rtt_us == NULL || bytes_per_ms == NULL) return pcclNoMemory;
    if (!pc_grow(&group->cost_memory, &group->cost_capacity, pc_cost_bytes(n), 1)) return pcclNoMemory;
    for (uint32_t low = 0; low < n; low++) {
        for (uint32_t high = low + 1; high < n; high++, links++) {
            rtt_us[low * n + high] = rtt_us[high * n + low] = pc_log16_value(links->rtt_us);
            bytes_per_ms[low * n + high] = pc_log16_value(links->up);
            bytes_per_ms[high * n + low] = pc_log16_value(links->down);
        }
    }
    const struct pc_cost_request request = {n, group->ring, rtt_us, bytes_per_ms};
    group->cost = pc_cost_init(&request, group->cost_memory);
    return pcclSuccess;
}

static pc_status update(struct pc_member *member, struct pc_member_group *group, const struct pc_group_record *record) {
    pc_error cause;
    pc_error_from_wire(&record->cause, &cause);
    const bool changed = record->epoch != group->epoch;
    if (record->step_poisoned) pc_member_poison_step(member, group, &cause);
    group->epoch = record->epoch;
    group->ring_only = record->ring_only != 0;
    group->rtt_us = record->rtt_us;
    if (record->broken && group->subset != 0) {
        if (group->n == 0) PC_TRY(copy_order(member, group, record)); /* it was lost in the epoch in which it was made */
        group->broken = cause;
    } else {
        PC_TRY(copy_order(member, group, record));
        if (changed) PC_TRY(copy_links(member, group, record));
    }
    if (changed) pc_member_ops_flip(member, group, &cause);
    return pcclSuccess;
}

/* With what came for it before. */
static struct pc_member_group *take_formed(struct pc_member *member, uint32_t subset) {
    for (struct pc_list *node = member->forming.next; node != &member->forming; node = node->next) {
        struct pc_member_group *group = PC_LIST_ENTRY(node, struct pc_member_group, node);
        if (group->subset != subset) continue;
        pc_list_remove(node);
        return group;
    }
    return new_subset(member, subset);
}

static pc_status update_subset(struct pc_member *member, const struct pc_group_record *record) {
    struct pc_member_group *group = pc_member_group(member, record->subset);
    if (group == NULL) {
        if (record->subset <= member->newest_subset) return pcclSuccess; /* destroyed here, which is not known there yet */
        group = take_formed(member, record->subset);
        if (group == NULL) return pcclNoMemory;
        pc_list_append(&member->groups, &group->node);
        member->newest_subset = record->subset;
    }
    PC_TRY(update(member, group, record));
    return group->rank != PC_RANK_NONE ? pcclSuccess : pcclProtocolError;
}

pc_status pc_member_update_groups(struct pc_member *member, const struct pc_msg_epoch *message) {
    const struct pc_group_record *records = message->groups.items;
    bool own = member->config.observer;
    for (uint32_t i = 0; i < message->groups.count; i++) {
        if (records[i].group != member->group.number) return pcclProtocolError;
        own |= records[i].subset == 0;
        PC_TRY(records[i].subset == 0 ? update(member, &member->group, &records[i])
                                      : update_subset(member, &records[i]));
    }
    for (struct pc_list *node = member->groups.next; node != &member->groups; node = node->next) {
        PC_LIST_ENTRY(node, struct pc_member_group, node)->frozen = false;
    }
    return own ? pcclSuccess : pcclProtocolError;
}

/* The user's ---------------------------------------------------------------------------------------------------- */

uint32_t pc_member_groups(const struct pc_member *member, struct pc_group_view *out, uint32_t room) {
    uint32_t count = 0;
    for (struct pc_list *node = member->group.node.next; node != &member->groups; node = node->next) {
        const struct pc_member_group *group = PC_LIST_ENTRY(node, struct pc_member_group, node);
        if (count < room) out[count] = (struct pc_group_view){group->subset, (uint32_t)group->n, group->rank};
        count++;
    }
    return count;
}

pc_status pc_member_destroy_group(struct pc_member *member, uint32_t number, pc_error *error) {
    struct pc_member_group *group = number == 0 ? NULL : pc_member_group(member, number);
    if (group == NULL) return pc_error_set(error, pcclInvalidUsage, "there is no group %u", number);
    bool busy = pc_member_ops_posted(member, group) > 0;
    for (struct pc_list *node = member->calls.next; node != &member->calls; node = node->next) {
        busy |= PC_LIST_ENTRY(node, struct pc_call, node)->group == number;
    }
    if (busy) return pc_error_set(error, pcclPendingAsyncOps, "calls of the group are in flight; await them first");
    if (group->step_open) return pc_error_set(error, pcclInvalidUsage, "a step of the group is open; end it first");
    /* A broken one is forgotten at the master already. */
    if (group->broken.code == pcclSuccess) {
        pc_member_tell_master(member, PC_MSG_LEAVE_GROUP, &(struct pc_msg_leave_group){number});
    }
    free_subset(group);
    return pcclSuccess;
}
