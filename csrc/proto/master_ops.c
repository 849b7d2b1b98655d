/*
 * Verdicts: COMMIT when every participant has reported DONE, ABORT on the first valid complaint. Decided here only, in
 * the order of arrival, and sent to all of the group at the end of the event.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/master_state.h"
#include "proto/mutant.h"

#include <stdlib.h>
#include <string.h>

static struct pc_list *bucket_of(struct pc_master *master, const struct pc_op_key *key) {
    return &master->ops[((key->tag ^ key->seq << 32 ^ key->group ^ (uint64_t)key->subset << 20 ^ key->channel) * 0x9e3779b97f4a7c15ull) >> 56];
}

static struct pc_pending_op *find_op(struct pc_master *master, const struct pc_op_key *key, bool create) {
    struct pc_list *bucket = bucket_of(master, key);
    for (struct pc_list *node = bucket->next; node != bucket; node = node->next) {
        struct pc_pending_op *op = PC_LIST_ENTRY(node, struct pc_pending_op, node);
        if (pc_op_key_equal(&op->key, key)) return op;
    }
    if (!create) return NULL;
    struct pc_list *spare = pc_list_pop(&master->spare_ops);
    struct pc_pending_op *op = spare != NULL ? PC_LIST_ENTRY(spare, struct pc_pending_op, node) : pc_calloc(1, sizeof *op);
    if (op == NULL) return NULL;
    op->key = *key;
    op->fingerprint = 0;
    op->done_count = 0;
    pc_list_append(bucket, &op->node);
    master->op_count++;
    return op;
}

static void drop_op(struct pc_master *master, struct pc_pending_op *op) {
    pc_list_remove(&op->node);
    pc_list_append(&master->spare_ops, &op->node);
    master->op_count--;
}

static bool was_aborted(const struct pc_master *master, const struct pc_op_key *key) {
    for (uint32_t i = 0; i < PC_ABORTED_MAX; i++) {
        if (pc_op_key_equal(&master->aborted[i], key)) return true;
    }
    return false;
}

static bool has_done(const struct pc_pending_op *op, uint64_t id) {
    for (size_t i = 0; i < op->done_count; i++) {
        if (op->done[i] == id) return true;
    }
    return false;
}

static void add_commit(struct pc_master *master, const struct pc_op_key *key) {
    void *items = master->commits;
    if (!pc_grow(&items, &master->commit_capacity, master->commit_count + 1, sizeof *master->commits)) return;
    master->commits = items;
    master->commits[master->commit_count++] = (struct pc_verdict){*key, 1};
}

void pc_master_send_commits(struct pc_master *master) {
    if (master->commit_count == 0) return;
    const struct pc_group **groups = pc_arena_alloc(&master->arena, master->commit_count, sizeof(const struct pc_group *));
    for (size_t i = 0; groups != NULL && i < master->commit_count; i++) {
        groups[i] = pc_master_group_of(master, &master->commits[i].key);
    }
    PC_EACH_PEER(master, peer) {
        struct pc_verdict *own = pc_arena_alloc(&master->arena, master->commit_count, sizeof *own);
        uint32_t count = 0;
        for (size_t i = 0; own != NULL && groups != NULL && i < master->commit_count; i++) {
            const struct pc_verdict *commit = &master->commits[i];
            if (groups[i] != NULL && pc_master_takes_part(peer, groups[i], &commit->key)) own[count++] = *commit;
        }
        if (count == 0) continue;
        peer->young = false;
        const struct pc_msg_verdict message = {.ops = {own, count}};
        pc_master_tell(master, peer, PC_MSG_VERDICT, &message);
    }
    master->commit_count = 0;
}

bool pc_master_takes_part(const struct pc_peer *peer, const struct pc_group *group, const struct pc_op_key *key) {
    if (!pc_master_in_group(peer, group)) return false;
    return key->channel == 0 || pc_channel_source(key->channel) == peer->id || pc_channel_target(key->channel) == peer->id;
}

void pc_master_abort_op(struct pc_master *master, const struct pc_op_key *key, const pc_error *error, bool in_step) {
    if (was_aborted(master, key)) return;
    struct pc_pending_op *op = find_op(master, key, false);
    if (op != NULL) drop_op(master, op);
    master->aborted[master->aborted_at++ % PC_ABORTED_MAX] = *key;
    PC_LOG(pcclLogInfo, "%s: abort of tag %llu seq %llu: %s", master->machine.name, (unsigned long long)key->tag,
           (unsigned long long)key->seq, error->message);
    struct pc_verdict verdict = {*key, 0};
    const struct pc_msg_verdict message = {{&verdict, 1}, in_step, pc_error_to_wire(error)};
    struct pc_group *group = pc_master_group_of(master, key);
    if (group != NULL && in_step) group->step_failed = true;
    PC_EACH_PEER(master, peer) {
        /* A poisoned step is poisoned for all of the group, whoever took part in what failed first. */
        const bool concerned = group != NULL && (in_step ? pc_master_in_group(peer, group)
                                                         : pc_master_takes_part(peer, group, key));
        if (!concerned) continue;
        pc_master_tell(master, peer, PC_MSG_VERDICT, &message);
        pc_master_unblock(peer);
    }
}

static void done_mismatch(struct pc_master *master, const struct pc_op_key *key, uint64_t a, uint64_t b) {
    pc_error error = {.peer_id = a, .tag = key->tag, .seq = key->seq, .epoch = key->epoch};
    pc_error_set(&error, pcclMismatch, "tag %llu: peers %llu and %llu made different calls with it",
                 (unsigned long long)key->tag, (unsigned long long)a, (unsigned long long)b);
    pc_error_hint(&error, "all peers of a group must make the same call with a tag: collective, count, dtype, op, root");
    pc_master_abort_op(master, key, &error, false);
}

static void one_done(struct pc_master *master, struct pc_peer *peer, struct pc_group *group, const struct pc_done *done) {
    struct pc_pending_op *op = find_op(master, &done->key, false);
    if (op == NULL) {
        if (was_aborted(master, &done->key)) return;
        op = find_op(master, &done->key, true);
        if (op == NULL) return;
    }
    if (op->done_count == 0) op->fingerprint = done->fingerprint;
    if (op->fingerprint != done->fingerprint) {
        done_mismatch(master, &done->key, op->done[0], peer->id);
        return;
    }
    void *items = op->done;
    if (has_done(op, peer->id) || !pc_grow(&items, &op->done_capacity, op->done_count + 1, sizeof *op->done)) return;
    op->done = items;
    op->done[op->done_count++] = peer->id;
    const size_t all = done->key.channel == 0 ? group->n : 2;
    const size_t needed = PC_MUTANT(PC_MUTANT_COMMIT_WITHOUT_DONE) ? all - 1 : all;
    if (op->done_count < needed || group->flushing) return;
    add_commit(master, &done->key);
    drop_op(master, op);
    pc_master_moved(master, group, &done->key);
}

void pc_master_done(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_done *done, uint64_t now_ns) {
    (void)now_ns;
    const struct pc_done *items = done->ops.items;
    for (uint32_t i = 0; i < done->ops.count; i++) {
        struct pc_group *group = pc_master_group_of(master, &items[i].key);
        if (group != NULL && items[i].key.epoch == group->epoch && pc_master_takes_part(peer, group, &items[i].key)) {
            one_done(master, peer, group, &items[i]);
        }
    }
}

void pc_master_op_fail(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_op_fail *fail) {
    const struct pc_group *group = pc_master_group_of(master, &fail->key);
    if (group == NULL || fail->key.epoch != group->epoch || group->flushing) return;
    if (!pc_master_takes_part(peer, group, &fail->key)) return;
    pc_error error;
    pc_error_from_wire(&fail->error, &error);
    if (error.code == pcclSuccess) error.code = pcclInternalError;
    pc_master_abort_op(master, &fail->key, &error, fail->in_step != 0);
}

/* DONE of every survivor, whoever else took part. All of them are frozen, so the answer can't change any more. */
bool pc_master_fate(struct pc_master *master, const struct pc_group *group, const struct pc_op_key *key) {
    const struct pc_pending_op *op = find_op(master, key, false);
    if (op == NULL) return false;
    PC_EACH_PEER(master, peer) {
        if (pc_master_takes_part(peer, group, key) && !has_done(op, peer->id)) return false;
    }
    return true;
}

void pc_master_forget_ops(struct pc_master *master, const struct pc_group *group) {
    for (int i = 0; i < PC_OP_BUCKETS; i++) {
        for (struct pc_list *node = master->ops[i].next, *next; node != &master->ops[i]; node = next) {
            next = node->next;
            struct pc_pending_op *op = PC_LIST_ENTRY(node, struct pc_pending_op, node);
            if (op->key.group == group->number && op->key.subset == group->subset) drop_op(master, op);
        }
    }
}

void pc_master_ops_fini(struct pc_master *master) {
    for (int i = 0; i < PC_OP_BUCKETS; i++) {
        while (!pc_list_empty(&master->ops[i])) {
            drop_op(master, PC_LIST_ENTRY(master->ops[i].next, struct pc_pending_op, node));
        }
    }
    struct pc_list *node;
    while ((node = pc_list_pop(&master->spare_ops)) != NULL) {
        struct pc_pending_op *op = PC_LIST_ENTRY(node, struct pc_pending_op, node);
        free(op->done);
        free(op);
    }
    free(master->commits);
}
