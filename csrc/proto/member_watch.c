/*
 * What the master is told of operations: which are started when it freezes a group, which are blocked, which have run
 * out of time or are given up.
 */
#include "base/checked.h"
#include "proto/operation.h"

#include <stdio.h>
#include <string.h>

struct state_list {
    const struct pc_member_group *group; /* NULL: of all groups */
    struct pc_op_state *items; /* those that wait for a verdict */
    struct pc_op_key *keys; /* all */
    uint32_t item_count, key_count;
};

static void add_state(struct pc_op *op, void *context) {
    struct state_list *list = context;
    if (op->phase == PC_OP_HELD || (list->group != NULL && op->group != list->group)) return;
    list->keys[list->key_count++] = op->key;
    if (pc_op_in_step(op)) return;
    list->items[list->item_count++] =
        (struct pc_op_state){op->key, pc_op_shape_fingerprint(&op->call->shape), op->phase == PC_OP_DECIDED};
}

static bool posted_ops(struct pc_member *member, const struct pc_member_group *group, struct state_list *list) {
    *list = (struct state_list){
        .group = group,
        .items = pc_arena_alloc(&member->arena, member->posted_count, sizeof(struct pc_op_state)),
        .keys = pc_arena_alloc(&member->arena, member->posted_count, sizeof(struct pc_op_key)),
    };
    if (list->items == NULL || list->keys == NULL) {
        pc_member_no_memory(member, "no memory to report the operations in flight");
        return false;
    }
    pc_op_each(member, add_state, list);
    return true;
}

void pc_member_report_state(struct pc_member *member, struct pc_member_group *group, const struct pc_msg_freeze *freeze) {
    struct pc_msg_state message = {.epoch = freeze->epoch, .subset = freeze->subset};
    pc_member_flush_done(member);
    if (group != NULL) {
        struct state_list list;
        if (!posted_ops(member, group, &list)) return;
        bool voting = false;
        for (struct pc_list *node = member->calls.next; node != &member->calls; node = node->next) {
            const struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
            voting |= call->kind == PC_CALL_END_STEP && call->group == group->subset;
        }
        message.step_open = group->step_open && !voting;
        message.ops = (struct pc_array){list.items, list.item_count};
    }
    pc_member_tell_master(member, PC_MSG_STATE, &message);
}

struct stall_scan {
    struct pc_stall *stalls;
    uint32_t count;
    bool idle; /* something has not moved for a while, though perhaps nobody waits for it */
    uint64_t now_ns;
};

enum { STALL_NS = 1000000000, STALLS_MAX = 64 };

static void add_stall(struct pc_op *op, void *context) {
    struct stall_scan *scan = context;
    const bool idle = op->phase != PC_OP_HELD && scan->now_ns - op->progress_ns >= STALL_NS;
    const bool waiting = idle && op->call->blocking;
    scan->idle |= idle;
    if (!waiting || scan->count == STALLS_MAX) return;
    const uint64_t blocked_ms = (scan->now_ns - op->progress_ns) / PC_NS_PER_MS;
    scan->stalls[scan->count++] =
        (struct pc_stall){PC_CALL_COLLECTIVE, op->call->shape.collective, pc_op_in_step(op), op->key, blocked_ms};
}

static void add_parked(struct pc_member *member, struct stall_scan *scan) {
    for (struct pc_list *node = member->parked.next; node != &member->parked; node = node->next) {
        const struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        const struct pc_member_group *group = pc_member_group(member, call->group);
        const bool waiting = group != NULL && call->blocking && scan->now_ns - call->posted_ns >= STALL_NS;
        if (!waiting || scan->count == STALLS_MAX) continue;
        const struct pc_op_key key = {.epoch = group->epoch, .tag = call->tag, .seq = call->posted_ns,
                                      .channel = pc_channel_to(member->id), .group = group->number, .subset = group->subset};
        const uint64_t blocked_ms = (scan->now_ns - call->posted_ns) / PC_NS_PER_MS;
        scan->stalls[scan->count++] = (struct pc_stall){PC_CALL_COLLECTIVE, call->shape.collective,
                                                        call->shape.consistency == PC_STEP, key, blocked_ms};
    }
}

void pc_member_report_stalls(struct pc_member *member, uint64_t now_ns) {
    member->stall_ns = now_ns + STALL_NS;
    struct pc_stall stalls[STALLS_MAX];
    struct stall_scan scan = {.stalls = stalls, .now_ns = now_ns};
    pc_op_each(member, add_stall, &scan);
    add_parked(member, &scan);
    for (struct pc_list *node = member->calls.next; node != &member->calls && scan.count < STALLS_MAX;
         node = node->next) {
        const struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (!call->blocking || now_ns - call->posted_ns < STALL_NS) continue;
        stalls[scan.count++] = (struct pc_stall){.kind = (uint8_t)call->kind,
                                                 .key = {.group = member->group.number, .subset = call->group},
                                                 .blocked_ms = (now_ns - call->posted_ns) / PC_NS_PER_MS};
    }
    /* Others may ask who has posted what they wait for. */
    const bool any = scan.count > 0 || scan.idle;
    if (!any && !member->stalled) return;
    member->stalled = any;
    struct state_list list;
    if (!posted_ops(member, NULL, &list)) return;
    const struct pc_msg_stalled message = {member->heard, member->threads_free, {stalls, scan.count}, {list.keys, list.key_count}};
    pc_member_tell_master(member, PC_MSG_STALLED, &message);
}

/* How many have been posted with that key's tag. What is of another epoch is over anyway. */
static uint64_t posted_with(struct pc_member *member, const struct pc_op_key *key) {
    struct pc_member_group *group = pc_member_group(member, key->subset);
    if (group == NULL || group->number != key->group || group->epoch != key->epoch) return UINT64_MAX;
    const struct pc_tag *tag = pc_op_tag(group, key->tag, key->channel, false);
    return tag != NULL ? tag->next_seq : 0;
}

pc_status pc_member_report_posted(struct pc_member *member, const struct pc_msg_posted *asked) {
    struct pc_op_key *keys = pc_arena_alloc(&member->arena, asked->keys.count, sizeof *keys);
    if (keys == NULL) return pcclNoMemory;
    for (uint32_t i = 0; i < asked->keys.count; i++) {
        keys[i] = ((const struct pc_op_key *)asked->keys.items)[i];
        keys[i].seq = posted_with(member, &keys[i]);
    }
    pc_member_tell_master(member, PC_MSG_POSTED, &(struct pc_msg_posted){{keys, asked->keys.count}});
    return pcclSuccess;
}

/* Time limits and cancellation ---------------------------------------------------------------------------------- */

/* Those that values are still to come from, or that have not made room for what is to go to them. */
static void name_awaited(const struct pc_op *op, char *out, size_t out_bytes) {
    size_t used = (size_t)snprintf(out, out_bytes, "the others to finish it");
    for (uint32_t rank = 0, count = 0; rank < op->collective.plan.n && used + 24 < out_bytes; rank++) {
        const struct pc_lane *lane = &op->lanes[rank];
        bool awaited = !pc_list_empty(&lane->waiting);
        for (uint8_t kind = 0; kind < PC_FLOWS; kind++) awaited |= lane->in[kind].arrived < lane->in[kind].expected;
        if (!awaited) continue;
        used = (count++ > 0 ? used : 0);
        used += (size_t)snprintf(out + used, out_bytes - used, "%s%llu", count > 1 ? ", " : "peer ", (unsigned long long)lane->peer);
    }
}

static void tick_op(struct pc_op *op, void *context) {
    const uint64_t now_ns = *(const uint64_t *)context;
    struct pc_member *member = op->member;
    /* One that is DECIDED may have been committed meanwhile: then the others take the abort for an old one. */
    if (op->phase == PC_OP_HELD || op->failed) return;
    if (op->call->deadline_ns > now_ns) {
        member->ops_due_ns = pc_min_u64(member->ops_due_ns, op->call->deadline_ns);
        return;
    }
    pc_error error = {0};
    char awaited[160];
    name_awaited(op, awaited, sizeof awaited);
    pc_error_set(&error, pcclTimeout, "%s with tag %llu was not finished within %llu ms at peer %llu, which waited for %s",
                 pc_collective_name(op->call->shape.collective), (unsigned long long)op->key.tag,
                 (unsigned long long)((now_ns - op->call->posted_ns) / PC_NS_PER_MS), (unsigned long long)member->id, awaited);
    pc_error_hint(&error, "a peer that is alive has not called it in time: while calls wait, `pccl why` names it");
    pc_op_fail(op, &error);
}

/* No other peer knows of it yet. */
static void end_queued(struct pc_member *member, struct pc_call *call, uint64_t waited_ms) {
    pc_error error = {.tag = call->tag};
    pc_error_set(&error, pcclTimeout, "%s with tag %llu could not begin at peer %llu within %llu ms",
                 pc_collective_name(call->shape.collective), (unsigned long long)call->tag,
                 (unsigned long long)member->id, (unsigned long long)waited_ms);
    pc_error_hint(&error, "it waited for a topology call of another thread, or for the removal of a peer; nobody else knows of it: make it again");
    pc_list_remove(&call->node);
    pc_member_complete(member, call, &error);
}

static void end_parked(struct pc_member *member, struct pc_call *call, uint64_t waited_ms) {
    pc_error error = {.tag = call->tag};
    pc_error_set(&error, pcclTimeout, "nobody has sent anything with tag %llu to peer %llu within %llu ms",
                 (unsigned long long)call->tag, (unsigned long long)member->id, (unsigned long long)waited_ms);
    (void)pc_op_fail_parked(member, call, &error);
}

static void tick_calls(struct pc_member *member, struct pc_list *list, uint64_t now_ns,
                       void (*end)(struct pc_member *member, struct pc_call *call, uint64_t waited_ms)) {
    for (struct pc_list *node = list->next, *next; node != list; node = next) {
        next = node->next;
        struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (call->deadline_ns > now_ns) member->ops_due_ns = pc_min_u64(member->ops_due_ns, call->deadline_ns);
        else end(member, call, (now_ns - call->posted_ns) / PC_NS_PER_MS);
    }
}

void pc_member_ops_tick(struct pc_member *member, uint64_t now_ns) {
    if (member->ops_due_ns > now_ns) return;
    member->ops_due_ns = UINT64_MAX;
    pc_op_each(member, tick_op, &now_ns);
    tick_calls(member, &member->queued, now_ns, end_queued);
    tick_calls(member, &member->parked, now_ns, end_parked);
}

struct cancel_search {
    struct pc_call *call;
    pc_error error;
};

static void cancel_op(struct pc_op *op, void *context) {
    const struct cancel_search *search = context;
    if (op->phase != PC_OP_HELD && op->call == search->call) pc_op_fail(op, &search->error);
}

void pc_member_cancel_collective(struct pc_member *member, struct pc_call *call, pc_status code, const char *why) {
    struct cancel_search search = {.call = call};
    pc_error_set(&search.error, code, "%s with tag %llu was %s at peer %llu",
                 pc_collective_name(call->shape.collective), (unsigned long long)call->tag, why,
                 (unsigned long long)member->id);
    if (pc_op_fail_parked(member, call, &search.error)) return;
    if (pc_list_linked(&call->node)) { /* queued: no other peer knows of it */
        pc_member_complete(member, call, &search.error);
        return;
    }
    pc_op_each(member, cancel_op, &search);
}
