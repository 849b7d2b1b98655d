/*
 * Transfer of shared state. The master has elected the content and told each member its role. A receiver fetches the
 * digests of the blocks of each tensor that differs, checks that they make the elected digest, then fetches the blocks
 * that differ from its own, a few at a time: it pulls, so nothing arrives that there is no room for. Blocks are staged
 * and verified; the caller's tensors change only when the master has heard from all receivers and says so.
 * A source only answers; its caller waits in the joint call, so its memory stands still.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/member_state.h"
#include "proto/mutant.h"

#include <stdlib.h>
#include <string.h>

enum { PC_EARLY_WANTS_MAX = 1024 };

/* A block on its way: its place is in the staging memory of its tensor. */
struct staged {
    struct pc_list node;
    uint32_t key, block, len_bytes;
    uint8_t *bytes;
};

/* Staging memory of one tensor, for the blocks of it that differ. */
struct pc_sync_region {
    struct pc_list node;
    uint8_t *data;
    size_t capacity, wanted, used;
};

static size_t block_len(const struct pc_tensor *tensor, uint32_t block) {
    return pc_min_size(tensor->len_bytes - (size_t)block * PC_STATE_BLOCK_BYTES, PC_STATE_BLOCK_BYTES);
}

/* Digests of a call ---------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct pc_tensor *)a)->name, ((const struct pc_tensor *)b)->name);
}

pc_status pc_call_prepare_sync(struct pc_call *call) {
    /* One order for all peers: an index then means the same tensor everywhere. */
    if (call->tensor_count > 0) qsort(call->tensors, call->tensor_count, sizeof *call->tensors, by_name);
    for (uint32_t i = 0; i < call->tensor_count; i++) {
        struct pc_tensor *tensor = &call->tensors[i];
        if (i > 0 && strcmp(tensor->name, tensor[-1].name) == 0) return pcclInvalidArgument;
        tensor->blocks = malloc(pc_digest_block_count(tensor->len_bytes) * PC_DIGEST_BYTES + 1);
        if (tensor->blocks == NULL) return pcclNoMemory;
        pc_digest_blocks(tensor->data, tensor->len_bytes, tensor->blocks, tensor->digest);
    }
    return pcclSuccess;
}

void pc_call_fini_sync(struct pc_call *call) {
    for (uint32_t i = 0; i < call->tensor_count; i++) {
        free(call->tensors[i].blocks);
        call->tensors[i].blocks = NULL;
    }
}

void pc_member_sync_offer(struct pc_member *member, struct pc_call *call) {
    struct pc_state_key *keys = pc_arena_alloc(&member->arena, call->tensor_count, sizeof *keys);
    if (keys == NULL) {
        const pc_error error = {.code = pcclNoMemory, .message = "no memory to describe the shared state"};
        pc_member_complete(member, call, &error);
        return;
    }
    for (uint32_t i = 0; i < call->tensor_count; i++) {
        const struct pc_tensor *tensor = &call->tensors[i];
        keys[i] = (struct pc_state_key){
            .name = pc_text_of(tensor->name),
            .dtype = (uint32_t)tensor->dtype,
            .count = tensor->count,
            .may_differ = tensor->may_differ,
        };
        memcpy(keys[i].digest, tensor->digest, sizeof keys[i].digest);
    }
    const struct pc_msg_sync_offer offer = {call->serial, call->revision, call->strategy, {keys, call->tensor_count}};
    pc_member_tell_master(member, PC_MSG_SYNC_OFFER, &offer);
}

/* Both roles ---------------------------------------------------------------------------------------------------- */

static struct pc_call *sync_call(const struct pc_member *member, uint64_t serial) {
    for (struct pc_list *node = member->calls.next; node != &member->calls; node = node->next) {
        struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (call->kind == PC_CALL_SYNC_STATE && call->serial == serial) return call;
    }
    return NULL;
}

static void send_ref(struct pc_member *member, struct pc_link *link, uint8_t type, uint32_t key, uint32_t block,
                     const void *bulk, size_t len_bytes) {
    const struct pc_msg_state_ref message = {member->sync.id, key, block};
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, link->cookie, type, &message, bulk, (uint32_t)len_bytes, link->digest);
    if (tx == NULL) return; /* the call's time limit ends it */
    tx->owner = &member->sync;
    pc_link_send(link, tx, false, &member->machine.actions);
}

static void report(struct pc_member *member, const pc_error *error) {
    struct pc_msg_sync_ready message = {.sync_id = member->sync.id};
    if (error != NULL) message.error = pc_error_to_wire(error);
    pc_member_tell_master(member, PC_MSG_SYNC_READY, &message);
}

void pc_member_sync_end(struct pc_member *member, bool commit) {
    struct pc_member_sync *sync = &member->sync;
    if (sync->id == 0) return;
    for (struct pc_list *node = member->links.next; node != &member->links; node = node->next) {
        struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        (void)pc_link_forget(link, &member->tx_pool, sync);
    }
    struct pc_list *node;
    while ((node = pc_list_pop(&sync->staged)) != NULL) {
        struct staged *staged = PC_LIST_ENTRY(node, struct staged, node);
        if (commit && sync->verified) {
            uint8_t *data = sync->call->tensors[staged->key].data;
            memcpy(data + (size_t)staged->block * PC_STATE_BLOCK_BYTES, staged->bytes, staged->len_bytes);
        }
        free(staged);
    }
    while ((node = pc_list_pop(&sync->regions)) != NULL) {
        struct pc_sync_region *region = PC_LIST_ENTRY(node, struct pc_sync_region, node);
        pc_pool_give_buffer(&member->pool, region->data, region->capacity);
        free(region);
    }
    sync->call->outcome.sync = (pcclSharedStateSyncInfo_t){sync->tx_bytes, sync->rx_bytes};
    free(sync->source_blocks);
    pc_arena_reset(&sync->arena);
    *sync = (struct pc_member_sync){0};
    pc_list_init(&sync->staged);
    pc_list_init(&sync->regions);
}

/* Source -------------------------------------------------------------------------------------------------------- */

static pc_status serve(struct pc_member *member, struct pc_link *link, uint8_t type, const struct pc_msg_state_ref *ref) {
    struct pc_member_sync *sync = &member->sync;
    if (ref->key >= sync->call->tensor_count) return pcclProtocolError;
    const struct pc_tensor *tensor = &sync->call->tensors[ref->key];
    const size_t blocks = pc_digest_block_count(tensor->len_bytes);
    if (type == PC_MSG_DIGESTS_WANT) {
        if (blocks == 0 || blocks * PC_DIGEST_BYTES > PC_BULK_MAX) return pcclProtocolError;
        send_ref(member, link, PC_MSG_DIGESTS, ref->key, 0, tensor->blocks, blocks * PC_DIGEST_BYTES);
        return pcclSuccess;
    }
    if (ref->block >= blocks) return pcclProtocolError;
    const size_t len_bytes = block_len(tensor, ref->block);
    sync->tx_bytes += len_bytes;
    send_ref(member, link, PC_MSG_BLOCK, ref->key, ref->block,
             tensor->data + (size_t)ref->block * PC_STATE_BLOCK_BYTES, len_bytes);
    return pcclSuccess;
}

static pc_status serve_early(struct pc_member *member) {
    const size_t count = member->early_count;
    member->early_count = 0;
    for (size_t i = 0; i < count; i++) {
        const struct pc_early_want *want = &member->early_wants[i];
        struct pc_link *link = pc_member_link(member, want->peer);
        if (link == NULL || want->ref.sync_id != member->sync.id) continue;
        PC_TRY(serve(member, link, PC_MSG_DIGESTS_WANT, &want->ref));
    }
    return pcclSuccess;
}

/* Receiver ------------------------------------------------------------------------------------------------------ */

static uint32_t current_key(const struct pc_member_sync *sync) {
    return ((const struct pc_index_item *)sync->keys.items)[sync->key_at].index;
}

static const struct pc_tensor *current_tensor(const struct pc_member_sync *sync) {
    return &sync->call->tensors[current_key(sync)];
}

static void give_up(struct pc_member *member, pc_status code, const char *what) {
    struct pc_member_sync *sync = &member->sync;
    pc_error error = {.peer_id = code == pcclNoMemory ? member->id : sync->source};
    pc_error_set(&error, code, "tensor '%s', from peer %llu to peer %llu: %s; the old revision is untouched",
                 current_tensor(sync)->name, (unsigned long long)sync->source, (unsigned long long)member->id, what);
    PC_LOG(pcclLogWarn, "%s: %s", member->machine.name, error.message);
    sync->key_at = sync->keys.count; /* nothing more is asked for */
    report(member, &error);
}

/* Asks for what comes next: blocks that differ, within the window; then the next tensor; then reports. */
static void advance(struct pc_member *member) {
    struct pc_member_sync *sync = &member->sync;
    struct pc_link *link = pc_member_link(member, sync->source);
    if (link == NULL) return; /* the master ends the call: the source is being removed */
    while (sync->key_at < sync->keys.count) {
        if (sync->source_blocks == NULL) {
            send_ref(member, link, PC_MSG_DIGESTS_WANT, current_key(sync), 0, NULL, 0);
            return;
        }
        const struct pc_tensor *tensor = current_tensor(sync);
        const uint32_t blocks = (uint32_t)pc_digest_block_count(tensor->len_bytes);
        for (; sync->block_at < blocks && sync->blocks_out < PC_SYNC_WINDOW; sync->block_at++) {
            const size_t at = (size_t)sync->block_at * PC_DIGEST_BYTES;
            if (memcmp(tensor->blocks + at, sync->source_blocks + at, PC_DIGEST_BYTES) == 0) continue;
            send_ref(member, link, PC_MSG_BLOCK_WANT, current_key(sync), sync->block_at, NULL, 0);
            sync->blocks_out++;
        }
        if (sync->blocks_out > 0) return;
        free(sync->source_blocks);
        sync->source_blocks = NULL;
        sync->block_at = 0;
        sync->key_at++;
    }
    sync->verified = true;
    report(member, NULL);
}

pc_status pc_member_sync_plan(struct pc_member *member, const struct pc_msg_sync_plan *plan) {
    struct pc_call *call = sync_call(member, plan->serial);
    if (call == NULL || member->sync.id != 0) return pcclSuccess; /* cancelled meanwhile */
    struct pc_member_sync *sync = &member->sync;
    sync->id = plan->sync_id;
    sync->call = call;
    sync->role = (enum pc_sync_role)plan->role;
    sync->source = plan->source;
    sync->revision = plan->revision;
    if (plan->role == PC_SYNC_SERVE) return serve_early(member);
    if (plan->role != PC_SYNC_RECEIVE) return pcclSuccess;
    if (plan->keys.count != plan->digests.count) return pcclProtocolError;
    sync->keys.items = pc_arena_alloc(&sync->arena, plan->keys.count, sizeof(struct pc_index_item));
    sync->digests.items = pc_arena_alloc(&sync->arena, plan->keys.count, sizeof(struct pc_digest_item));
    if (sync->keys.items == NULL || sync->digests.items == NULL) return pcclNoMemory;
    if (plan->keys.count > 0) {
        memcpy(sync->keys.items, plan->keys.items, plan->keys.count * sizeof(struct pc_index_item));
        memcpy(sync->digests.items, plan->digests.items, plan->keys.count * sizeof(struct pc_digest_item));
    }
    sync->keys.count = sync->digests.count = plan->keys.count;
    for (uint32_t i = 0; i < sync->keys.count; i++) {
        if (((struct pc_index_item *)sync->keys.items)[i].index >= call->tensor_count) return pcclProtocolError;
    }
    advance(member);
    return pcclSuccess;
}

static pc_status expect_digests(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_state_ref *ref,
                                uint32_t bulk_len) {
    struct pc_member_sync *sync = &member->sync;
    const size_t want = pc_digest_block_count(current_tensor(sync)->len_bytes) * PC_DIGEST_BYTES;
    if (ref->key != current_key(sync) || sync->source_blocks != NULL || bulk_len != want) return pcclProtocolError;
    sync->source_blocks = malloc(want);
    if (sync->source_blocks == NULL) return pcclNoMemory;
    stream->sink = (struct pc_sink){.data = sync->source_blocks, .owner = sync};
    return pcclSuccess;
}

static pc_status expect_block(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_state_ref *ref,
                              uint32_t bulk_len) {
    struct pc_member_sync *sync = &member->sync;
    const struct pc_tensor *tensor = current_tensor(sync);
    const bool asked = ref->key == current_key(sync) && ref->block < sync->block_at && sync->blocks_out > 0;
    if (!asked || bulk_len != block_len(tensor, ref->block)) return pcclProtocolError;
    struct pc_sync_region *region = PC_LIST_ENTRY(sync->regions.prev, struct pc_sync_region, node);
    if (bulk_len > region->wanted - region->used) return pcclProtocolError; /* a block came twice */
    struct staged *staged = malloc(sizeof *staged);
    if (staged == NULL) return pcclNoMemory;
    *staged = (struct staged){.key = ref->key, .block = ref->block, .len_bytes = bulk_len,
                              .bytes = region->data + region->used};
    region->used += bulk_len;
    pc_list_append(&sync->staged, &staged->node);
    stream->sink = (struct pc_sink){.data = staged->bytes, .owner = sync, .item = staged};
    return pcclSuccess;
}

/* Room for the blocks of the current tensor that differ from the source's. */
static pc_status make_region(struct pc_member *member) {
    struct pc_member_sync *sync = &member->sync;
    const struct pc_tensor *tensor = current_tensor(sync);
    size_t bytes = 0;
    for (uint32_t block = 0; block < pc_digest_block_count(tensor->len_bytes); block++) {
        const size_t at = (size_t)block * PC_DIGEST_BYTES;
        if (memcmp(tensor->blocks + at, sync->source_blocks + at, PC_DIGEST_BYTES) != 0) bytes += block_len(tensor, block);
    }
    struct pc_sync_region *region = pc_calloc(1, sizeof *region);
    if (region == NULL) return pcclNoMemory;
    region->data = pc_pool_take_buffer(&member->pool, bytes, &region->capacity);
    if (region->data == NULL) {
        free(region);
        return pcclNoMemory;
    }
    region->wanted = bytes;
    pc_list_append(&sync->regions, &region->node);
    return pcclSuccess;
}

static void digests_arrived(struct pc_member *member) {
    struct pc_member_sync *sync = &member->sync;
    const size_t len_bytes = pc_digest_block_count(current_tensor(sync)->len_bytes) * PC_DIGEST_BYTES;
    uint8_t digest[PC_DIGEST_BYTES];
    pc_digest128(sync->source_blocks, len_bytes, digest);
    const struct pc_digest_item *wanted = (const struct pc_digest_item *)sync->digests.items + sync->key_at;
    if (memcmp(digest, wanted->digest, sizeof digest) != 0) {
        give_up(member, pcclProtocolError, "the digests of its blocks do not make the elected digest");
        return;
    }
    if (make_region(member) != pcclSuccess) {
        give_up(member, pcclNoMemory, "the receiver has no memory to stage it");
        return;
    }
    advance(member);
}

static void block_arrived(struct pc_member *member, const struct staged *staged) {
    struct pc_member_sync *sync = &member->sync;
    uint8_t digest[PC_DIGEST_BYTES];
    pc_digest128(staged->bytes, staged->len_bytes, digest);
    const uint8_t *wanted = sync->source_blocks + (size_t)staged->block * PC_DIGEST_BYTES;
    if (memcmp(digest, wanted, sizeof digest) != 0 && !PC_MUTANT(PC_MUTANT_NO_BLOCK_DIGEST)) {
        give_up(member, pcclProtocolError, "a block does not have its digest");
        return;
    }
    sync->blocks_out--;
    sync->rx_bytes += staged->len_bytes;
    advance(member);
}

pc_status pc_member_sync_arrived(struct pc_member *member, struct pc_stream *stream) {
    struct pc_member_sync *sync = &member->sync;
    const struct staged *staged = stream->sink.item;
    stream->sink = (struct pc_sink){0};
    if (sync->key_at >= sync->keys.count) return pcclSuccess; /* given up */
    if (staged == NULL) {
        digests_arrived(member);
    } else {
        block_arrived(member, staged);
    }
    return pcclSuccess;
}

/* Dispatch ------------------------------------------------------------------------------------------------------ */

static pc_status keep_early(struct pc_member *member, uint64_t peer, const struct pc_msg_state_ref *ref) {
    void *items = member->early_wants;
    if (member->early_count >= PC_EARLY_WANTS_MAX) return pcclProtocolError;
    if (!pc_grow(&items, &member->early_capacity, member->early_count + 1, sizeof *member->early_wants)) {
        return pcclNoMemory;
    }
    member->early_wants = items;
    member->early_wants[member->early_count++] = (struct pc_early_want){peer, *ref};
    return pcclSuccess;
}

pc_status pc_member_sync_frame(struct pc_member *member, struct pc_stream *stream, const struct pc_frame *frame,
                               const struct pc_msg_state_ref *ref) {
    struct pc_member_sync *sync = &member->sync;
    struct pc_link *link = stream->subject;
    if (sync->id == 0 && frame->type == PC_MSG_DIGESTS_WANT) return keep_early(member, link->peer, ref);
    if (ref->sync_id != sync->id) { /* of a call that has ended here */
        member->stats.frames_dropped++;
        return pcclSuccess;
    }
    const bool wanted = frame->type == PC_MSG_DIGESTS_WANT || frame->type == PC_MSG_BLOCK_WANT;
    if (wanted) return sync->role == PC_SYNC_SERVE ? serve(member, link, frame->type, ref) : pcclProtocolError;
    const bool receiving = sync->role == PC_SYNC_RECEIVE && link->peer == sync->source;
    if (!receiving) return pcclProtocolError;
    if (sync->key_at >= sync->keys.count) return pcclSuccess; /* given up */
    return frame->type == PC_MSG_DIGESTS ? expect_digests(member, stream, ref, frame->bulk_len)
                                         : expect_block(member, stream, ref, frame->bulk_len);
}
