/*
 * Receives from anybody: parked, and known to nobody else, until somebody has sent; then receives from there like others.
 * Belong to the member's thread; member_ops.c starts and ends what has become of them.
 */
#include "proto/operation.h"

bool pc_op_from_anybody(const struct pc_call *call) {
    return call->shape.collective == PC_SEND_RECV && call->source == PC_RANK_NONE;
}

/* Whether what is sent with it goes to peer id alone. */
static bool is_for(const struct pc_tag *tag, uint64_t id) {
    return tag->channel != 0 && pc_channel_target(tag->channel) == id;
}

static uint32_t source_of(const struct pc_member_group *group, const struct pc_tag *tag) {
    for (uint32_t rank = 0; rank < group->n; rank++) {
        if (group->ids[rank] == pc_channel_source(tag->channel)) return rank;
    }
    return PC_RANK_NONE;
}

/* A send has failed before it was received: a receive from there has failed too. */
static bool has_failed(const struct pc_tag *tag) {
    return !pc_list_empty(&tag->tombstones);
}

static bool has_begun(const struct pc_member_group *group, struct pc_tag *tag) {
    const struct pc_op *op = pc_op_find(tag, group->epoch, tag->next_seq);
    return op != NULL && op->phase == PC_OP_HELD;
}

bool pc_op_find_source(struct pc_member_group *group, struct pc_call *call) {
    if (group->n < 2 || group->rank == PC_RANK_NONE) return true; /* refused for that */
    const struct pc_list *bucket = pc_op_tags(group, call->tag);
    uint32_t failed = PC_RANK_NONE, begun = PC_RANK_NONE;
    for (const struct pc_list *node = bucket->next; node != bucket; node = node->next) {
        struct pc_tag *tag = PC_LIST_ENTRY(node, struct pc_tag, node);
        if (tag->number != call->tag || !is_for(tag, group->ids[group->rank])) continue;
        if (failed == PC_RANK_NONE && has_failed(tag)) failed = source_of(group, tag);
        if (begun == PC_RANK_NONE && has_begun(group, tag)) begun = source_of(group, tag);
    }
    const uint32_t source = failed != PC_RANK_NONE ? failed : begun;
    if (source == PC_RANK_NONE) return false;
    call->source = source;
    return true;
}

bool pc_op_find_failed(struct pc_member_group *group, struct pc_call *call) {
    if (group->n < 2 || group->rank == PC_RANK_NONE) return false;
    const struct pc_list *bucket = pc_op_tags(group, call->tag);
    for (const struct pc_list *node = bucket->next; node != bucket; node = node->next) {
        const struct pc_tag *tag = PC_LIST_ENTRY(node, const struct pc_tag, node);
        const uint32_t source = source_of(group, tag);
        if (tag->number != call->tag || !is_for(tag, group->ids[group->rank]) || !has_failed(tag) || source == PC_RANK_NONE) continue;
        call->source = source;
        call->target = group->rank; /* which may be another one since the call */
        return true;
    }
    return false;
}

void pc_op_offer(struct pc_member *member, struct pc_tag *tag) {
    if (pc_list_empty(&member->parked) || pc_list_linked(&tag->offer) || !is_for(tag, member->id)) return;
    pc_list_append(&member->offers, &tag->offer);
}

void pc_member_end_parked(struct pc_member *member, const struct pc_member_group *group, enum pc_parked which,
                          const struct pc_call *call, const pc_error *error) {
    for (struct pc_list *node = member->parked.next, *next; node != &member->parked; node = next) {
        next = node->next;
        struct pc_call *parked = PC_LIST_ENTRY(node, struct pc_call, node);
        if (group != NULL && parked->group != group->subset) continue;
        if (which == PC_PARKED_ONE && parked != call) continue;
        if (which == PC_PARKED_STEP && parked->shape.consistency != PC_STEP) continue;
        member->posted_count--;
        pc_member_complete(member, parked, error);
    }
}

bool pc_op_fail_parked(struct pc_member *member, struct pc_call *call, const pc_error *error) {
    struct pc_member_group *group = pc_member_group(member, call->group);
    bool parked = false;
    for (struct pc_list *node = member->parked.next; node != &member->parked; node = node->next) parked |= node == &call->node;
    if (!parked) return false;
    const bool in_step = group != NULL && call->shape.consistency == PC_STEP;
    if (in_step && group->step_poison.code == pcclSuccess) pc_member_fail_step(member, group, call->tag, error);
    pc_member_end_parked(member, NULL, PC_PARKED_ONE, call, error);
    return true;
}

void pc_op_parked_verdict(struct pc_member *member, const struct pc_member_group *group, const struct pc_op_key *key,
                          const pc_error *error) {
    for (struct pc_list *node = member->parked.next; node != &member->parked; node = node->next) {
        const struct pc_call *call = PC_LIST_ENTRY(node, const struct pc_call, node);
        if (call->group != group->subset || call->tag != key->tag || call->posted_ns != key->seq) continue;
        pc_member_end_parked(member, group, PC_PARKED_ONE, call, error);
        return;
    }
}
