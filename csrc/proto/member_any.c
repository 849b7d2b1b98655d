/*
 * Receives from anybody: parked, and known to nobody else, until somebody has sent; then receives from there like others.
 * Belong to the member's thread; member_ops.c starts and ends what has become of them.
 */
#include "proto/operation.h"

bool pc_op_from_anybody(const struct pc_call *call) {
    return call->shape.collective == PC_SEND_RECV && call->source == PC_RANK_NONE;
}

struct source_search {
    const struct pc_call *call;
    uint32_t rank;
};

static void consider_source(struct pc_op *op, void *context) {
    struct source_search *search = context;
    const struct pc_member_group *group = op->group;
    const bool fits = op->phase == PC_OP_HELD && op->key.channel != 0 && op->key.tag == search->call->tag &&
                      op->key.epoch == group->epoch && op->key.seq == op->tag->next_seq &&
                      pc_channel_target(op->key.channel) == op->member->id;
    if (!fits || search->rank != PC_RANK_NONE) return;
    for (uint32_t rank = 0; rank < group->n; rank++) {
        if (group->ids[rank] == pc_channel_source(op->key.channel)) search->rank = rank;
    }
}

/* Sends that have failed before they were received: a receive from there has failed too. */
static void consider_failed(const struct pc_member_group *group, struct source_search *search) {
    for (int i = 0; i < PC_TAG_BUCKETS; i++) {
        const struct pc_list *bucket = &group->tags[i];
        for (const struct pc_list *node = bucket->next; node != bucket; node = node->next) {
            const struct pc_tag *tag = PC_LIST_ENTRY(node, const struct pc_tag, node);
            if (tag->channel == 0 || tag->number != search->call->tag || pc_list_empty(&tag->tombstones)) continue;
            const struct pc_tombstone *first = PC_LIST_ENTRY(tag->tombstones.next, const struct pc_tombstone, node);
            if (first->epoch != group->epoch || pc_channel_target(tag->channel) != group->ids[group->rank]) continue;
            for (uint32_t rank = 0; rank < group->n; rank++) {
                if (group->ids[rank] == pc_channel_source(tag->channel)) search->rank = rank;
            }
        }
    }
}

bool pc_op_find_source(struct pc_member_group *group, struct pc_call *call) {
    if (group->n < 2 || group->rank == PC_RANK_NONE) return true; /* refused for that */
    struct source_search search = {call, PC_RANK_NONE};
    consider_failed(group, &search);
    if (search.rank == PC_RANK_NONE) pc_op_each_in(group, consider_source, &search);
    if (search.rank == PC_RANK_NONE) return false;
    call->source = search.rank;
    return true;
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
