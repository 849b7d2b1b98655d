/*
 * Operations of a member: identity, posting, verdict, steps. operation.h has their life, member_data.c their frames.
 */
#include "base/checked.h"
#include "bytes/dtype.h"
#include "math/digest.h"
#include "proto/mutant.h"
#include "proto/operation.h"

#include <stdlib.h>
#include <string.h>

/* Tags and operations ------------------------------------------------------------------------------------------- */

/* By number alone: a receive from anybody finds all the channels of its tag in one of them. */
struct pc_list *pc_op_tags(struct pc_member_group *group, uint64_t number) {
    return &group->tags[number * 0x9e3779b97f4a7c15ull >> 32 & (group->tag_buckets - 1)];
}

/* Four times the buckets. Without memory for them chains just get longer. */
static void spread_tags(struct pc_member_group *group) {
    struct pc_list *few = group->tags;
    const uint32_t few_count = group->tag_buckets;
    struct pc_list *many = pc_calloc(4 * (size_t)few_count, sizeof *many);
    if (many == NULL) return;
    for (uint32_t i = 0; i < 4 * few_count; i++) pc_list_init(&many[i]);
    group->tags = many;
    group->tag_buckets = 4 * few_count;
    for (uint32_t i = 0; i < few_count; i++) {
        struct pc_list *node;
        while ((node = pc_list_pop(&few[i])) != NULL) {
            pc_list_append(pc_op_tags(group, PC_LIST_ENTRY(node, struct pc_tag, node)->number), node);
        }
    }
    if (few != group->few_tags) free(few);
}

/* When there are no tags any more. */
static void forget_buckets(struct pc_member_group *group) {
    if (group->tags != group->few_tags) free(group->tags);
    group->tags = group->few_tags;
    group->tag_buckets = PC_TAG_BUCKETS;
}

struct pc_tag *pc_op_tag(struct pc_member_group *group, uint64_t number, uint64_t channel, bool create) {
    struct pc_list *bucket = pc_op_tags(group, number);
    for (struct pc_list *node = bucket->next; node != bucket; node = node->next) {
        struct pc_tag *tag = PC_LIST_ENTRY(node, struct pc_tag, node);
        if (tag->number == number && tag->channel == channel) return tag;
    }
    if (!create || group->tag_count >= PC_TAGS_MAX) return NULL;
    struct pc_tag *tag = pc_calloc(1, sizeof *tag);
    if (tag == NULL) return NULL;
    tag->group = group;
    tag->number = number;
    tag->channel = channel;
    pc_list_init(&tag->ops);
    pc_list_init(&tag->tombstones);
    pc_list_init(&tag->offer);
    pc_list_append(bucket, &tag->node);
    if (++group->tag_count > 4 * group->tag_buckets) spread_tags(group);
    return tag;
}

/* Less than 0: node is earlier than that; 0: it is that one. */
static int compare(const struct pc_list *node, uint64_t epoch, uint64_t seq) {
    const struct pc_op_key *key = &PC_LIST_ENTRY(node, const struct pc_op, node)->key;
    if (key->epoch != epoch) return key->epoch < epoch ? -1 : 1;
    return (key->seq > seq) - (key->seq < seq);
}

/* The last one that is no later than that, or the list's head: mostly others go on where they were. */
static struct pc_list *last_until(struct pc_tag *tag, uint64_t epoch, uint64_t seq) {
    struct pc_list *node = tag->ops.prev;
    while (node != &tag->ops && compare(node, epoch, seq) > 0) node = node->prev;
    return node;
}

/* Mostly it is the one that is posted here, which is the first, or one that others have begun last, or are about to. */
struct pc_op *pc_op_find(struct pc_tag *tag, uint64_t epoch, uint64_t seq) {
    struct pc_list *node = tag->ops.next;
    if (node != &tag->ops && compare(node, epoch, seq) != 0) node = last_until(tag, epoch, seq);
    if (node == &tag->ops || compare(node, epoch, seq) != 0) return NULL;
    return PC_LIST_ENTRY(node, struct pc_op, node);
}

struct pc_op *pc_op_create(struct pc_member *member, struct pc_tag *tag, const struct pc_op_key *key) {
    struct pc_list *spare = pc_list_pop(&member->spare_ops);
    struct pc_op *op = spare != NULL ? PC_LIST_ENTRY(spare, struct pc_op, node) : malloc(sizeof *op);
    if (op == NULL) return NULL;
    memset(op, 0, sizeof *op);
    op->tag = tag;
    op->group = tag->group;
    op->member = member;
    op->key = *key;
    pc_list_init(&op->held);
    pc_list_append(last_until(tag, key->epoch, key->seq)->next, &op->node);
    return op;
}

void pc_op_each_in(struct pc_member_group *group, void (*fn)(struct pc_op *op, void *context), void *context) {
    for (uint32_t i = 0; i < group->tag_buckets; i++) {
        struct pc_list *bucket = &group->tags[i];
        for (struct pc_list *t = bucket->next; t != bucket; t = t->next) {
            struct pc_tag *tag = PC_LIST_ENTRY(t, struct pc_tag, node);
            for (struct pc_list *node = tag->ops.next, *next; node != &tag->ops; node = next) {
                next = node->next;
                fn(PC_LIST_ENTRY(node, struct pc_op, node), context);
            }
        }
    }
}

static void each_of(const struct pc_list *groups, void (*fn)(struct pc_op *op, void *context), void *context) {
    for (struct pc_list *node = groups->next; node != groups; node = node->next) {
        struct pc_member_group *group = PC_LIST_ENTRY(node, struct pc_member_group, node);
        if (group->tag_count > 0) pc_op_each_in(group, fn, context);
    }
}

void pc_op_each(struct pc_member *member, void (*fn)(struct pc_op *op, void *context), void *context) {
    each_of(&member->groups, fn, context);
    each_of(&member->forming, fn, context);
}

static void free_op(struct pc_op *op) {
    struct pc_member *member = op->member;
    pc_collective_fini(&op->collective);
    pc_list_remove(&op->node);
    pc_list_append(&member->spare_ops, &op->node);
}

void pc_op_drop(struct pc_op *op) {
    pc_op_release(op);
    free_op(op);
}

static void complete_op(struct pc_op *op, const pc_error *error) {
    struct pc_member *member = op->member;
    struct pc_call *call = op->call;
    const struct pc_collective *collective = &op->collective;
    const uint64_t bytes_total = pc_op_bytes_total(op);
    pc_op_release(op);
    if (error != NULL) {
        pc_collective_undo(&op->collective);
        member->stats.ops_aborted++;
    } else {
        pc_collective_commit(&op->collective);
        member->stats.ops_committed++;
        member->stats.tx_payload_bytes += collective->tx_bytes;
        member->stats.rx_payload_bytes += collective->rx_bytes;
        member->stats.last_committed_us = (op->progress_ns - call->posted_ns) / 1000;
    }
    call->outcome.reduce = (pcclReduceInfo_t){collective->plan.n, collective->tx_bytes, collective->rx_bytes};
    call->outcome.source = call->source;
    member->posted_count--;
    if (error != NULL) {
        pc_error record = *error;
        record.tag = op->key.tag;
        record.seq = op->key.seq;
        record.bytes_done = collective->rx_bytes;
        record.bytes_total = bytes_total;
        record.epoch = op->key.epoch;
        pc_member_complete(member, call, &record);
    } else {
        pc_member_complete(member, call, NULL);
    }
    free_op(op);
}

/* Local completion ---------------------------------------------------------------------------------------------- */

void pc_op_fail(struct pc_op *op, const pc_error *error) {
    if (op->failed) return;
    op->failed = true;
    pc_error record = *error;
    pc_text_copy(record.phase, sizeof record.phase, pc_text_of(pc_collective_name(op->call->shape.collective)));
    record.tag = op->key.tag;
    record.seq = op->key.seq;
    const bool in_step = pc_op_in_step(op);
    if (in_step && op->group->step_poison.code == pcclSuccess) op->group->step_poison = record;
    op->member->poisoned |= in_step;
    const struct pc_msg_op_fail message = {op->key, in_step, pc_error_to_wire(&record)};
    pc_member_tell_master(op->member, PC_MSG_OP_FAIL, &message);
}

void pc_op_check(struct pc_op *op, uint64_t now_ns) {
    struct pc_member *member = op->member;
    op->progress_ns = now_ns;
    if (op->phase != PC_OP_RUNNING || op->failed || !pc_collective_complete(&op->collective)) return;
    if (pc_op_in_step(op)) {
        complete_op(op, NULL);
        return;
    }
    if (op->group->frozen) return;
    op->phase = PC_OP_DECIDED;
    void *items = member->done;
    if (!pc_grow(&items, &member->done_capacity, member->done_count + 1, sizeof *member->done)) {
        const pc_error error = {.code = pcclNoMemory, .message = "no memory to report a finished operation"};
        pc_op_fail(op, &error);
        return;
    }
    member->done = items;
    member->done[member->done_count++] = (struct pc_done){op->key, pc_op_shape_fingerprint(&op->call->shape)};
    if (PC_MUTANT(PC_MUTANT_LOCAL_VERDICT)) complete_op(op, NULL);
}

void pc_member_flush_done(struct pc_member *member) {
    if (member->done_count == 0) return;
    const struct pc_msg_done message = {{member->done, (uint32_t)member->done_count}};
    pc_member_tell_master(member, PC_MSG_DONE, &message);
    member->done_count = 0;
}

/* Posting ------------------------------------------------------------------------------------------------------- */

static void fail_post(struct pc_member *member, struct pc_call *call, pc_error *error) {
    error->tag = call->tag;
    pc_text_copy(error->phase, sizeof error->phase, pc_text_of(pc_collective_name(call->shape.collective)));
    pc_member_complete(member, call, error);
}

static uint64_t channel_of(const struct pc_member_group *group, const struct pc_call *call) {
    if (call->shape.collective != PC_SEND_RECV) return 0;
    return pc_channel(group->ids[call->source], group->ids[call->target]);
}

/* Why a post fails at once; pcclSuccess: it doesn't. */
static pc_status refuse_shape(const struct pc_member *member, const struct pc_member_group *group,
                              const struct pc_call *call, pc_error *error) {
    const bool one_way = call->shape.collective == PC_SEND_RECV;
    if (group->n < 2 || group->rank == PC_RANK_NONE) {
        return pc_error_set(error, pcclTooFewPeers, "%s",
                            member->config.observer ? "an observer takes no part in collectives"
                                                    : "there is no other peer in this group to work with");
    }
    if (call->feedback.residual != NULL && group->ring_only) {
        return pc_error_set(error, pcclRankConnectionFailed,
                            "error feedback needs the link between each two peers, and one was lost twice");
    }
    if (call->shape.root >= group->n || (one_way && (call->source >= group->n || call->target >= group->n))) {
        return pc_error_set(error, pcclInvalidArgument, "there is no peer of this rank in the group");
    }
    return pcclSuccess;
}

static pc_status refuse_post(struct pc_member *member, struct pc_member_group *group, const struct pc_call *call,
                             pc_error *error) {
    if (member->posted_count >= PC_OPS_MAX) {
        return pc_error_set(error, pcclInvalidUsage, "too many operations in flight (%d): await some first", PC_OPS_MAX);
    }
    const struct pc_tag *tag = pc_op_tag(group, call->tag, channel_of(group, call), false);
    if (tag == NULL) {
        if (group->tag_count < PC_TAGS_MAX) return pcclSuccess;
        pc_error_hint(error, "use tags again once their operations are done, as with tag %% 1000");
        return pc_error_set(error, pcclInvalidUsage, "too many different tags in one epoch of the group (%d)",
                            PC_TAGS_MAX);
    }
    const bool posted = !pc_list_empty(&tag->ops) && PC_LIST_ENTRY(tag->ops.next, const struct pc_op, node)->phase != PC_OP_HELD;
    return posted ? pc_error_set(error, pcclInvalidUsage, "an operation with this tag is in flight already") : pcclSuccess;
}

/* A step's first failure is that of all its operations. */
static bool refuse_poisoned(struct pc_member *member, struct pc_member_group *group, struct pc_call *call) {
    if (call->shape.consistency != PC_STEP) return false;
    group->step_open = true;
    if (group->step_poison.code == pcclSuccess) return false;
    member->stats.ops_aborted++;
    pc_member_complete(member, call, &group->step_poison);
    return true;
}

void pc_member_fail_step(struct pc_member *member, struct pc_member_group *group, uint64_t number, const pc_error *error) {
    /* The operation has no place in the order of its tag; what had the next one may have been aborted already. */
    const struct pc_op_key key = {.epoch = group->epoch, .tag = number, .seq = UINT64_MAX, .group = group->number,
                                  .subset = group->subset};
    const struct pc_msg_op_fail message = {key, true, pc_error_to_wire(error)};
    group->step_poison = *error;
    member->poisoned = true;
    pc_member_tell_master(member, PC_MSG_OP_FAIL, &message);
}

/* The verdict came before the post: the post gets it, and the operation is behind this peer. */
static bool consume_tombstone(struct pc_member *member, struct pc_member_group *group, struct pc_call *call) {
    struct pc_tag *tag = pc_op_tag(group, call->tag, channel_of(group, call), false);
    if (tag == NULL || pc_list_empty(&tag->tombstones)) return false;
    struct pc_tombstone *tombstone = PC_LIST_ENTRY(tag->tombstones.next, struct pc_tombstone, node);
    if (tombstone->epoch == group->epoch) tag->next_seq = pc_max_u64(tag->next_seq, tombstone->seq + 1);
    pc_error error = tombstone->error;
    error.tag = call->tag;
    error.seq = tombstone->seq;
    error.epoch = tombstone->epoch;
    if (tombstone->seq++ == tombstone->last_seq) {
        pc_list_remove(&tombstone->node);
        free(tombstone);
    }
    pc_op_offer(member, tag);
    member->stats.ops_aborted++;
    if (call->shape.consistency == PC_STEP) pc_member_fail_step(member, group, call->tag, &error);
    pc_member_complete(member, call, &error);
    return true;
}

static struct pc_op *new_op(struct pc_member *member, struct pc_member_group *group, struct pc_call *call) {
    struct pc_tag *tag = pc_op_tag(group, call->tag, channel_of(group, call), true);
    if (tag == NULL) return NULL;
    const struct pc_op_key key = {.epoch = group->epoch, .tag = call->tag, .seq = tag->next_seq,
                                  .channel = channel_of(group, call), .group = group->number,
                                  .subset = group->subset};
    struct pc_op *op = pc_op_find(tag, key.epoch, key.seq);
    if (op == NULL) op = pc_op_create(member, tag, &key);
    if (op == NULL) return NULL;
    pc_list_remove(&op->node);
    pc_list_append(tag->ops.next, &op->node);
    tag->next_seq++;
    pc_op_offer(member, tag);
    return op;
}

/* Calls of an older epoch --------------------------------------------------------------------------------------- */

/* The ranks and the sizes in it are those of an older epoch. */
static bool is_stale(const struct pc_member_group *group, const struct pc_call *call) {
    return call->group_epoch != 0 && call->group_epoch != group->members_epoch && group->n > 1;
}

/*
 * It cannot be done any more. Where all of the group take part it is the next operation of its tag for all of them, and
 * fails for all; else those that have called already would do it with a later call of this peer. Which two members a send
 * or receive meant is not known any more: nobody but this peer hears of it.
 */
static void start_stale(struct pc_member *member, struct pc_member_group *group, struct pc_call *call, uint64_t now_ns) {
    pc_error error = {.code = pcclRankConnectionLost, .tag = call->tag, .epoch = group->epoch,
                      .message = "the group has changed since its ranks and its size were read"};
    pc_text_copy(error.phase, sizeof error.phase, pc_text_of(pc_collective_name(call->shape.collective)));
    if (refuse_poisoned(member, group, call)) return;
    if (call->shape.consistency == PC_STEP) {
        pc_member_fail_step(member, group, call->tag, &error);
        pc_member_complete(member, call, &error);
        return;
    }
    if (call->shape.collective == PC_SEND_RECV) {
        pc_member_complete(member, call, &error);
        return;
    }
    if (consume_tombstone(member, group, call)) return;
    pc_error refusal = {0};
    struct pc_op *op = refuse_post(member, group, call, &refusal) == pcclSuccess ? new_op(member, group, call) : NULL;
    if (op == NULL) {
        pc_error_set(&refusal, pcclNoMemory, "no memory for another operation");
        fail_post(member, call, &refusal);
        return;
    }
    op->call = call;
    op->phase = PC_OP_RUNNING;
    op->progress_ns = now_ns;
    member->posted_count++;
    member->stats.ops_started++;
    pc_op_fail(op, &error);
}

/* Starting ------------------------------------------------------------------------------------------------------ */

/* From what all members know alike: the descriptor and the epoch. */
static void choose_algorithm(struct pc_member *member, const struct pc_member_group *group, struct pc_op_shape *shape) {
    const uint8_t asked = shape->algorithm;
    if (group->ring_only && pc_algorithm_fits(shape, PC_ALGORITHM_RING)) {
        shape->algorithm = PC_ALGORITHM_RING;
    } else if (!pc_algorithm_fits(shape, shape->algorithm)) {
        shape->algorithm = pc_algorithm_choose(shape, (uint32_t)group->n, group->rtt_us, group->cost);
    }
    member->stats.last_algorithm = (pcclAlgorithm_t)shape->algorithm;
    member->stats.last_chosen = shape->algorithm != asked;
    member->stats.last_peers = (uint32_t)group->n;
    member->stats.last_bytes = shape->count * pc_dtype_bytes((pcclDataType_t)shape->dtype);
}

/* The order of tags among each other is free, that of a tag's operations is in their seqs. */
static void add_to_step(struct pc_step_sum *step, const struct pc_op *op) {
    const struct pc_op_key *key = &op->key;
    const uint64_t parts[] = {key->tag, key->seq, key->channel, pc_op_shape_fingerprint(&op->call->shape)};
    const uint64_t digest = pc_digest64(parts, sizeof parts);
    if (key->channel == 0) {
        step->ops++;
        step->digest += digest;
    } else if (pc_channel_source(key->channel) == op->member->id) {
        step->sends++;
        step->channels += digest;
    } else {
        step->receives++;
        step->channels -= digest;
    }
}

static void start_call(struct pc_member *member, struct pc_member_group *group, struct pc_call *call, uint64_t now_ns) {
    if (group->broken.code != pcclSuccess) {
        if (call->shape.consistency == PC_STEP) group->step_open = true;
        pc_member_complete(member, call, &group->broken);
        return;
    }
    if (is_stale(group, call)) {
        start_stale(member, group, call, now_ns);
        return;
    }
    if (pc_op_from_anybody(call) && !pc_op_find_source(group, call)) {
        member->posted_count++;
        member->ops_due_ns = pc_min_u64(member->ops_due_ns, call->deadline_ns);
        pc_list_append(&member->parked, &call->node);
        member->poisoned |= call->shape.consistency == PC_STEP && group->step_poison.code != pcclSuccess;
        return;
    }
    pc_error refusal = {0};
    if (refuse_shape(member, group, call, &refusal) == pcclSuccess) {
        if (refuse_poisoned(member, group, call) || consume_tombstone(member, group, call)) return;
        (void)refuse_post(member, group, call, &refusal);
    }
    if (refusal.code != pcclSuccess) {
        fail_post(member, call, &refusal);
        return;
    }
    choose_algorithm(member, group, &call->shape);
    struct pc_op *op = new_op(member, group, call);
    if (op == NULL) {
        pc_error_set(&refusal, pcclNoMemory, "no memory for another operation");
        fail_post(member, call, &refusal);
        return;
    }
    op->call = call;
    if (pc_op_in_step(op)) add_to_step(&group->step, op);
    member->posted_count++;
    member->stats.ops_started++;
    member->ops_due_ns = pc_min_u64(member->ops_due_ns, call->deadline_ns);
    const pc_status status = pc_op_start(op, now_ns);
    op->phase = PC_OP_RUNNING;
    if (status != pcclSuccess) {
        pc_error error = {.peer_id = member->id};
        pc_error_set(&error, status, "%s could not start at peer %llu: %s", pc_collective_name(call->shape.collective),
                     (unsigned long long)member->id, pc_status_text(status));
        pc_op_fail(op, &error);
        return;
    }
    pc_op_check(op, now_ns);
}

void pc_member_post_collective(struct pc_member *member, struct pc_call *call, uint64_t now_ns) {
    struct pc_member_group *group = pc_member_group(member, call->group);
    if (group == NULL) {
        pc_error error = {.code = pcclInvalidUsage,
                          .message = "there is no such group: it was destroyed, or made before this connection"};
        fail_post(member, call, &error);
    } else if (group->frozen || member->topology_call) {
        member->ops_due_ns = pc_min_u64(member->ops_due_ns, call->deadline_ns);
        pc_list_append(&member->queued, &call->node);
    } else {
        start_call(member, group, call, now_ns);
    }
}

void pc_member_start_queued(struct pc_member *member, uint64_t now_ns) {
    struct pc_list ready;
    pc_list_init(&ready);
    struct pc_list *node;
    while (!member->topology_call && (node = pc_list_pop(&member->queued)) != NULL) pc_list_append(&ready, node);
    while ((node = pc_list_pop(&ready)) != NULL) {
        pc_member_post_collective(member, PC_LIST_ENTRY(node, struct pc_call, node), now_ns);
    }
}

static void match_tag(struct pc_member *member, struct pc_member_group *group, uint64_t number, uint64_t now_ns) {
    for (struct pc_list *node = member->parked.next, *next; node != &member->parked; node = next) {
        next = node->next;
        struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (call->tag != number || call->group != group->subset || !pc_op_find_source(group, call)) continue;
        pc_list_remove(node);
        member->posted_count--;
        start_call(member, group, call, now_ns);
    }
}

void pc_member_match_parked(struct pc_member *member, uint64_t now_ns) {
    struct pc_list frozen;
    pc_list_init(&frozen);
    struct pc_list *node;
    while ((node = pc_list_pop(&member->offers)) != NULL) {
        struct pc_tag *tag = PC_LIST_ENTRY(node, struct pc_tag, offer);
        if (tag->group->frozen) pc_list_append(&frozen, node);
        else match_tag(member, tag->group, tag->number, now_ns);
    }
    while ((node = pc_list_pop(&frozen)) != NULL) pc_list_append(&member->offers, node);
}

/* Steps --------------------------------------------------------------------------------------------------------- */

static void end_in_step(struct pc_op *op, void *context) {
    if (op->phase != PC_OP_HELD && pc_op_in_step(op)) complete_op(op, context);
}

void pc_member_poison_step(struct pc_member *member, struct pc_member_group *group, const pc_error *error) {
    member->poisoned = true;
    if (group->step_poison.code == pcclSuccess) group->step_poison = *error;
    if (member->posted_count == 0) return;
    pc_op_each_in(group, end_in_step, &group->step_poison);
    pc_member_end_parked(member, group, PC_PARKED_STEP, NULL, &group->step_poison);
}

void pc_member_end_step(struct pc_member_group *group) {
    group->step_open = false;
    group->step = (struct pc_step_sum){0};
    group->step_poison = (pc_error){0};
}

/* Verdicts ------------------------------------------------------------------------------------------------------ */

static void bury(struct pc_member *member, struct pc_tag *tag, const struct pc_op_key *key, const pc_error *error) {
    if (PC_MUTANT(PC_MUTANT_SEQ_KEPT)) return;
    /* Who tries again and again, while this peer never calls, costs it no more than once. */
    struct pc_tombstone *last = PC_LIST_ENTRY(tag->tombstones.prev, struct pc_tombstone, node);
    const bool any = !pc_list_empty(&tag->tombstones);
    if (any && last->epoch == key->epoch && last->last_seq + 1 == key->seq && last->error.code == error->code) {
        last->last_seq = key->seq;
        return;
    }
    struct pc_tombstone *tombstone = pc_calloc(1, sizeof *tombstone);
    if (tombstone == NULL) {
        pc_member_no_memory(member, "no memory to remember a verdict");
        return;
    }
    tombstone->epoch = key->epoch;
    tombstone->seq = tombstone->last_seq = key->seq;
    tombstone->error = *error;
    pc_list_append(&tag->tombstones, &tombstone->node);
}

void pc_member_verdict(struct pc_member *member, const struct pc_verdict *verdict, const pc_error *error, bool in_step,
                       uint64_t now_ns) {
    const struct pc_op_key *key = &verdict->key;
    struct pc_member_group *group = pc_member_group(member, key->subset);
    if (group == NULL || key->group != group->number || key->epoch != group->epoch) return;
    pc_error cause = *error;
    if (cause.code == pcclSuccess) pc_error_set(&cause, pcclInternalError, "aborted by the master without a reason");
    if (in_step && !verdict->commit) {
        pc_member_poison_step(member, group, &cause); /* the epoch flips with the vote, and seqs start again */
        /* What was posted here as that operation of a step, but not in one, ends too: nobody else will do it. */
        struct pc_tag *tag = pc_op_tag(group, key->tag, key->channel, false);
        struct pc_op *strict = tag != NULL ? pc_op_find(tag, key->epoch, key->seq) : NULL;
        if (strict != NULL && strict->phase != PC_OP_HELD) complete_op(strict, &cause);
        return;
    }
    if (key->channel == pc_channel_to(member->id)) {
        pc_op_parked_verdict(member, group, key, &cause);
        return;
    }
    struct pc_tag *tag = pc_op_tag(group, key->tag, key->channel, true);
    if (tag == NULL) return;
    struct pc_op *op = pc_op_find(tag, key->epoch, key->seq);
    if (op != NULL && op->phase != PC_OP_HELD) {
        op->progress_ns = now_ns;
        complete_op(op, verdict->commit ? NULL : &cause);
        return;
    }
    if (op != NULL) pc_op_drop(op);
    if (verdict->commit || key->seq < tag->next_seq) return;
    /* A deadlock ends a call of everybody: this peer hears of it by its own, and its next operation meets the others'. */
    if (cause.code == pcclDeadlock) tag->next_seq = key->seq + 1;
    else bury(member, tag, key, &cause);
    pc_op_offer(member, tag);
}

static void lose_op(struct pc_op *op, void *context) {
    pc_error error = *(const pc_error *)context;
    if (op->phase == PC_OP_HELD) {
        pc_op_drop(op);
        return;
    }
    /* The others have all that they need from here: they may have it committed, and this peer cannot know. */
    if (op->collective.sends_left == 0 && error.code != pcclCancelled) error.code = pcclOutcomeUnknown;
    complete_op(op, &error);
}

static void free_idle_tags(struct pc_member_group *group, bool all) {
    for (uint32_t i = 0; i < group->tag_buckets && group->tag_count > 0; i++) {
        struct pc_list *bucket = &group->tags[i];
        for (struct pc_list *node = bucket->next, *next; node != bucket; node = next) {
            next = node->next;
            struct pc_tag *tag = PC_LIST_ENTRY(node, struct pc_tag, node);
            struct pc_list *t;
            while (all && (t = pc_list_pop(&tag->tombstones)) != NULL) {
                free(PC_LIST_ENTRY(t, struct pc_tombstone, node));
            }
            tag->next_seq = 0;
            if (!pc_list_empty(&tag->ops) || !pc_list_empty(&tag->tombstones)) continue;
            pc_list_remove(&tag->node);
            pc_list_remove(&tag->offer);
            free(tag);
            group->tag_count--;
        }
    }
    if (group->tag_count == 0) forget_buckets(group);
}

void pc_member_ops_lose(struct pc_member *member, const pc_error *error) {
    pc_error copy = *error;
    pc_op_each(member, lose_op, &copy);
    pc_member_end_parked(member, NULL, PC_PARKED_ALL, NULL, error);
    for (struct pc_list *node = member->groups.next; node != &member->groups; node = node->next) {
        struct pc_member_group *group = PC_LIST_ENTRY(node, struct pc_member_group, node);
        free_idle_tags(group, true);
        pc_member_end_step(group);
    }
    member->done_count = 0;
    struct pc_list *node;
    while ((node = pc_list_pop(&member->queued)) != NULL) {
        pc_member_complete(member, PC_LIST_ENTRY(node, struct pc_call, node), error);
    }
}

static void fail_parked(struct pc_member *member, struct pc_member_group *group) {
    for (struct pc_list *node = member->parked.next, *next; node != &member->parked; node = next) {
        next = node->next;
        struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (call->group != group->subset || !pc_op_find_failed(group, call)) continue;
        pc_list_remove(node);
        member->posted_count--;
        (void)consume_tombstone(member, group, call);
    }
}

static void flip_op(struct pc_op *op, void *context) {
    if (op->key.epoch >= op->group->epoch) return;
    if (op->phase == PC_OP_HELD) {
        pc_op_drop(op);
        return;
    }
    complete_op(op, context);
}

void pc_member_ops_flip(struct pc_member *member, struct pc_member_group *group, const pc_error *cause) {
    /*
     * The master knows all that was posted (STATE), sees to it that nothing is (joint calls), or breaks the group. It does
     * not know of receives from anybody that nobody has sent to: what it has told is why they end.
     */
    pc_error error = {.code = pcclRankConnectionLost, .message = "the group changed under the operation"};
    if (cause->code != pcclSuccess) error = *cause;
    pc_op_each_in(group, flip_op, &error);
    /* A send that fails with the epoch, and its receive, fail together. Others go on if their members are the same. */
    fail_parked(member, group);
    const bool same_members = group->members_epoch != group->epoch && group->broken.code == pcclSuccess;
    if (!same_members) pc_member_end_parked(member, group, PC_PARKED_ALL, NULL, &error);
    free_idle_tags(group, false);
}

static void count_posted(struct pc_op *op, void *context) {
    *(uint32_t *)context += op->phase != PC_OP_HELD;
}

uint32_t pc_member_ops_posted(struct pc_member *member, struct pc_member_group *group) {
    uint32_t count = 0;
    pc_op_each_in(group, count_posted, &count);
    for (struct pc_list *node = member->parked.next; node != &member->parked; node = node->next) {
        count += PC_LIST_ENTRY(node, struct pc_call, node)->group == group->subset;
    }
    for (struct pc_list *node = member->queued.next; node != &member->queued; node = node->next) {
        count += PC_LIST_ENTRY(node, struct pc_call, node)->group == group->subset;
    }
    return count;
}

static void forget_op(struct pc_op *op, void *context) {
    (void)context;
    if (op->phase == PC_OP_HELD) pc_op_drop(op);
}

void pc_member_ops_forget(struct pc_member_group *group) {
    pc_op_each_in(group, forget_op, NULL);
    free_idle_tags(group, true);
}

void pc_member_ops_fini(struct pc_member *member) {
    static const pc_error gone = {.code = pcclCancelled, .message = "the communicator was destroyed"};
    pc_member_ops_lose(member, &gone);
    struct pc_list *node;
    while ((node = pc_list_pop(&member->spare_ops)) != NULL) free(PC_LIST_ENTRY(node, struct pc_op, node));
}
