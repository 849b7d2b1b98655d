/*
 * All-reduces of a member: identity, eager part and credit, local completion, verdict, undo.
 *
 * Life of an operation here, named by what is expected next:
 *   HELD      frames of peers came before the call: what they carried waits here, within caps
 *   RUNNING   posted: segments to and from the neighbours
 *   DECIDED   complete here, DONE is out: the verdict
 * A verdict for an operation that was not posted yet is kept as a tombstone, which the later post consumes.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/member_state.h"
#include "proto/mutant.h"

#include <stdlib.h>
#include <string.h>

enum op_state { OP_HELD, OP_RUNNING, OP_DECIDED };

/* A segment that came before its call. */
struct held {
    struct pc_list node;
    struct pc_link *link;
    uint32_t round, segment, len_bytes;
    bool complete;
    uint8_t bytes[];
};

struct tombstone {
    struct pc_list node;
    uint64_t epoch, seq;
    pc_error error;
};

struct tag {
    struct pc_list node; /* in its bucket */
    uint64_t number;
    uint64_t next_seq;
    struct pc_list ops, tombstones;
};

struct pc_op {
    struct pc_list node; /* in its tag, or spare */
    struct tag *tag;
    struct pc_member *member;
    struct pc_op_key key;
    enum op_state state;
    struct pc_call *call;
    struct pc_ring ring;
    uint64_t next, prev; /* neighbours in the ring */
    struct pc_op_shape seen_shape; /* of the first frame of another peer */
    uint64_t seen_from; /* 0: none yet */
    bool ready; /* the next one takes all */
    bool ready_told; /* the previous one was told so */
    bool ready_wanted; /* the previous one waits to be told */
    bool asked, failed;
    uint32_t held_bytes;
    uint64_t eager_bytes; /* sent before READY */
    struct pc_list waiting; /* frames that wait for READY */
    struct pc_list held;
    uint64_t progress_ns;
};

/* Tags and operations ------------------------------------------------------------------------------------------- */

static struct pc_list *bucket_of(struct pc_member *member, uint64_t number) {
    return &member->tags[(number * 0x9e3779b97f4a7c15ull) >> 56];
}

static struct tag *find_tag(struct pc_member *member, uint64_t number, bool create) {
    struct pc_list *bucket = bucket_of(member, number);
    for (struct pc_list *node = bucket->next; node != bucket; node = node->next) {
        struct tag *tag = PC_LIST_ENTRY(node, struct tag, node);
        if (tag->number == number) return tag;
    }
    if (!create || member->tag_count >= PC_TAGS_MAX) return NULL;
    struct tag *tag = pc_calloc(1, sizeof *tag);
    if (tag == NULL) return NULL;
    tag->number = number;
    pc_list_init(&tag->ops);
    pc_list_init(&tag->tombstones);
    pc_list_append(bucket, &tag->node);
    member->tag_count++;
    return tag;
}

static struct pc_op *find_op(struct tag *tag, uint64_t epoch, uint64_t seq) {
    for (struct pc_list *node = tag->ops.next; node != &tag->ops; node = node->next) {
        struct pc_op *op = PC_LIST_ENTRY(node, struct pc_op, node);
        if (op->key.epoch == epoch && op->key.seq == seq) return op;
    }
    return NULL;
}

static struct pc_op *create_op(struct pc_member *member, struct tag *tag, const struct pc_op_key *key) {
    if (member->op_count >= 2 * PC_OPS_MAX) return NULL;
    struct pc_list *spare = pc_list_pop(&member->spare_ops);
    struct pc_op *op = spare != NULL ? PC_LIST_ENTRY(spare, struct pc_op, node) : malloc(sizeof *op);
    if (op == NULL) return NULL;
    memset(op, 0, sizeof *op);
    op->tag = tag;
    op->member = member;
    op->key = *key;
    pc_list_init(&op->waiting);
    pc_list_init(&op->held);
    pc_list_append(&tag->ops, &op->node);
    member->op_count++;
    return op;
}

static void free_held(struct pc_op *op, struct held *held) {
    pc_list_remove(&held->node);
    held->link->held_bytes -= held->len_bytes;
    op->held_bytes -= held->len_bytes;
    free(held);
}

/* From here on nobody touches the caller's buffers, and no frame of the operation is left anywhere. */
static void release(struct pc_op *op) {
    struct pc_member *member = op->member;
    for (struct pc_list *node = member->links.next, *next; node != &member->links; node = next) {
        next = node->next;
        struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        if (pc_link_forget(link, &member->tx_pool, op) == pcclSuccess) continue;
        /* No memory to finish a frame from a copy: the link ends, whose loss the peers will see. */
        const pc_error error = {.code = pcclNoMemory, .message = "no memory to end an operation in order"};
        pc_member_link_lost(member, link, &error, op->progress_ns);
    }
    pc_tx_queue_forget(&op->waiting, &member->tx_pool, op);
    while (!pc_list_empty(&op->held)) free_held(op, PC_LIST_ENTRY(op->held.next, struct held, node));
    struct pc_link *link = pc_member_link(member, op->next);
    if (link != NULL && !op->ready) link->eager_out_bytes -= pc_min_u64(op->eager_bytes, link->eager_out_bytes);
}

static void free_op(struct pc_op *op) {
    struct pc_member *member = op->member;
    pc_ring_fini(&op->ring);
    pc_list_remove(&op->node);
    member->op_count--;
    pc_list_append(&member->spare_ops, &op->node);
}

static void complete_op(struct pc_op *op, const pc_error *error) {
    struct pc_member *member = op->member;
    struct pc_call *call = op->call;
    release(op);
    if (error != NULL) {
        pc_ring_undo(&op->ring);
        member->stats.ops_aborted++;
    } else {
        member->stats.ops_committed++;
        member->stats.tx_payload_bytes += op->ring.tx_bytes;
        member->stats.rx_payload_bytes += op->ring.rx_bytes;
        member->stats.last_committed_us = (op->progress_ns - call->posted_ns) / 1000;
    }
    call->outcome.reduce = (pcclReduceInfo_t){op->ring.plan.n, op->ring.tx_bytes, op->ring.rx_bytes};
    member->posted_count--;
    if (error != NULL) {
        pc_error record = *error;
        record.tag = op->key.tag;
        record.seq = op->key.seq;
        record.bytes_done = op->ring.rx_bytes;
        record.bytes_total = pc_ring_plan_link_bytes(&op->ring.plan);
        record.epoch = op->key.epoch;
        pc_member_complete(member, call, &record);
    } else {
        pc_member_complete(member, call, NULL);
    }
    free_op(op);
}

/* Sending ------------------------------------------------------------------------------------------------------- */

static struct pc_msg_data data_message(const struct pc_op *op) {
    return (struct pc_msg_data){.key = op->key, .shape = op->call->shape, .weight = 1};
}

static void send_now(struct pc_op *op, struct pc_link *link, struct pc_tx *tx) {
    pc_link_send(link, tx, tx->round > 0, &op->member->machine.actions);
}

/* Whether the eager part has room for len_bytes more. */
static bool fits_eager(const struct pc_op *op, const struct pc_link *link, uint32_t len_bytes) {
    return op->eager_bytes + len_bytes <= PC_EAGER_OP_BYTES && link->eager_out_bytes + len_bytes <= PC_EAGER_LINK_BYTES;
}

/*
 * The first segments are cut to fit the eager part only by chance; what does not fit waits for READY. A receiver sends
 * it unasked for large operations only, so for a small one that found the link's eager part used up, ask.
 */
static void ask_for_ready(struct pc_op *op, struct pc_link *link) {
    if (op->asked || pc_ring_plan_link_bytes(&op->ring.plan) > PC_EAGER_OP_BYTES) return;
    struct pc_msg_data message = data_message(op);
    message.want_ready = 1;
    struct pc_tx *tx = pc_tx_create(&op->member->tx_pool, link->cookie, PC_MSG_DATA, &message, NULL, 0, false);
    if (tx == NULL) return;
    op->asked = true;
    pc_link_send(link, tx, true, &op->member->machine.actions);
}

static pc_status emit(void *context, uint32_t round, uint32_t segment, uint64_t first_elem, const uint8_t *bulk,
                      uint32_t len_bytes) {
    struct pc_op *op = context;
    struct pc_member *member = op->member;
    struct pc_link *link = pc_member_link(member, op->next);
    if (link == NULL) return pcclSuccess; /* that neighbour has been removed: the fate of this operation is on its way */
    struct pc_msg_data message = data_message(op);
    message.round = round;
    message.segment = segment;
    message.offset = first_elem;
    struct pc_tx *tx =
        pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_DATA, &message, bulk, len_bytes, link->digest);
    if (tx == NULL) return pcclNoMemory;
    tx->owner = op;
    tx->round = round;
    tx->segment = segment;
    if (op->ready || PC_MUTANT(PC_MUTANT_NO_CREDIT)) {
        send_now(op, link, tx);
    } else if (pc_list_empty(&op->waiting) && fits_eager(op, link, len_bytes)) {
        op->eager_bytes += len_bytes;
        link->eager_out_bytes += len_bytes;
        send_now(op, link, tx);
    } else {
        pc_list_append(&op->waiting, &tx->node);
        ask_for_ready(op, link);
    }
    return pcclSuccess;
}

static void tell_ready(struct pc_op *op) {
    struct pc_member *member = op->member;
    struct pc_link *link = pc_member_link(member, op->prev);
    if (op->ready_told || link == NULL) return;
    if (!op->ready_wanted && pc_ring_plan_link_bytes(&op->ring.plan) <= PC_EAGER_OP_BYTES) return;
    const struct pc_msg_ready message = {
        .key = op->key, .shape = op->call->shape, .weight = 1, .credit = pc_ring_plan_link_bytes(&op->ring.plan)};
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_READY, &message, NULL, 0, false);
    if (tx == NULL) return;
    op->ready_told = true;
    pc_link_send(link, tx, true, &member->machine.actions);
}

static void fail_for_all(struct pc_op *op, const pc_error *error) {
    if (op->failed) return;
    op->failed = true;
    pc_error record = *error;
    pc_text_copy(record.phase, sizeof record.phase, pc_text_of("all_reduce"));
    record.tag = op->key.tag;
    record.seq = op->key.seq;
    const struct pc_msg_op_fail message = {op->key, pc_error_to_wire(&record)};
    pc_member_tell_master(op->member, PC_MSG_OP_FAIL, &message);
}

static void mismatch(struct pc_op *op, const struct pc_op_shape *theirs, uint64_t from) {
    char own_text[96], their_text[96];
    pc_op_shape_format(&op->call->shape, own_text, sizeof own_text);
    pc_op_shape_format(theirs, their_text, sizeof their_text);
    pc_error error = {.peer_id = from};
    pc_error_set(&error, pcclMismatch, "all_reduce with tag %llu: peer %llu called it with %s, peer %llu with %s",
                 (unsigned long long)op->key.tag, (unsigned long long)op->member->id, own_text,
                 (unsigned long long)from, their_text);
    pc_error_hint(&error, "all peers of a group must call an operation with the same count, dtype and op");
    fail_for_all(op, &error);
}

static bool agrees(struct pc_op *op, const struct pc_op_shape *theirs, uint64_t from) {
    if (op->failed) return false;
    if (pc_op_shape_equal(&op->call->shape, theirs)) return true;
    mismatch(op, theirs, from);
    return false;
}

/* Local completion ---------------------------------------------------------------------------------------------- */

static void check_complete(struct pc_op *op, uint64_t now_ns) {
    struct pc_member *member = op->member;
    op->progress_ns = now_ns;
    if (op->state != OP_RUNNING || op->failed || member->frozen || !pc_ring_complete(&op->ring)) return;
    op->state = OP_DECIDED;
    void *items = member->done;
    if (!pc_grow(&items, &member->done_capacity, member->done_count + 1, sizeof *member->done)) {
        const pc_error error = {.code = pcclNoMemory, .message = "no memory to report a finished operation"};
        fail_for_all(op, &error);
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

void pc_member_data_sent(struct pc_member *member, struct pc_tx *tx, uint64_t now_ns) {
    (void)member;
    struct pc_op *op = tx->owner;
    pc_ring_sent(&op->ring, tx->bulk);
    check_complete(op, now_ns);
}

/* Posting ------------------------------------------------------------------------------------------------------- */

static void fail_post(struct pc_member *member, struct pc_call *call, pc_status code, const char *message) {
    pc_error error = {.tag = call->tag};
    pc_error_set(&error, code, "%s", message);
    pc_member_complete(member, call, &error);
}

static pc_status take_held(struct pc_op *op, struct held *held, uint64_t now_ns) {
    uint8_t *data = NULL;
    if (held->link->peer != op->prev) {
        free_held(op, held);
        return pcclSuccess;
    }
    PC_TRY(pc_ring_sink(&op->ring, held->round, held->segment, held->len_bytes, &data));
    memcpy(data, held->bytes, held->len_bytes);
    const uint32_t round = held->round, segment = held->segment;
    free_held(op, held);
    PC_TRY(pc_ring_received(&op->ring, round, segment, data));
    op->progress_ns = now_ns;
    return pcclSuccess;
}

static pc_status start(struct pc_op *op, uint64_t now_ns) {
    struct pc_member *member = op->member;
    const struct pc_member_epoch *epoch = &member->epoch;
    const uint32_t n = (uint32_t)epoch->ring_count;
    op->next = epoch->ring[(epoch->position + 1) % n];
    op->prev = epoch->ring[(epoch->position + n - 1) % n];
    const struct pc_ring_config config = {
        .shape = &op->call->shape,
        .n = n,
        .position = epoch->position,
        .send = op->call->send,
        .recv = op->call->recv,
        .pool = &member->pool,
        .emit = emit,
        .emit_context = op,
    };
    PC_TRY(pc_ring_init(&op->ring, &config));
    op->state = OP_RUNNING;
    op->progress_ns = now_ns;
    if (op->seen_from != 0 && !agrees(op, &op->seen_shape, op->seen_from)) return pcclSuccess;
    tell_ready(op);
    PC_TRY(pc_ring_start(&op->ring));
    for (struct pc_list *node = op->held.next, *next; node != &op->held; node = next) {
        next = node->next;
        struct held *held = PC_LIST_ENTRY(node, struct held, node);
        if (held->complete) PC_TRY(take_held(op, held, now_ns));
    }
    return pcclSuccess;
}

/* Why a post fails at once; pcclSuccess: it doesn't. */
static pc_status refuse_post(struct pc_member *member, const struct pc_call *call, const char **why) {
    if (member->epoch.ring_count < 2 || member->epoch.position == UINT32_MAX) {
        *why = member->config.observer ? "an observer takes no part in collectives"
                                       : "there is no other peer in this group to reduce with";
        return pcclTooFewPeers;
    }
    if (member->posted_count >= PC_OPS_MAX) {
        *why = "too many operations in flight (4096): await some first";
        return pcclInvalidUsage;
    }
    const struct tag *tag = find_tag(member, call->tag, false);
    if (tag == NULL) return pcclSuccess;
    for (const struct pc_list *node = tag->ops.next; node != &tag->ops; node = node->next) {
        if (PC_LIST_ENTRY(node, const struct pc_op, node)->state == OP_HELD) continue;
        *why = "an operation with this tag is in flight already";
        return pcclInvalidUsage;
    }
    return pcclSuccess;
}

/* The verdict came before the post: the post gets it, and the operation is behind this peer. */
static bool consume_tombstone(struct pc_member *member, struct pc_call *call) {
    struct tag *tag = find_tag(member, call->tag, false);
    if (tag == NULL || pc_list_empty(&tag->tombstones)) return false;
    struct tombstone *tombstone = PC_LIST_ENTRY(pc_list_pop(&tag->tombstones), struct tombstone, node);
    if (tombstone->epoch == member->epoch.group_epoch) tag->next_seq = tombstone->seq + 1;
    pc_error error = tombstone->error;
    error.tag = call->tag;
    error.seq = tombstone->seq;
    error.epoch = tombstone->epoch;
    free(tombstone);
    member->stats.ops_aborted++;
    pc_member_complete(member, call, &error);
    return true;
}

static void start_call(struct pc_member *member, struct pc_call *call, uint64_t now_ns) {
    if (consume_tombstone(member, call)) return;
    const char *why = "";
    const pc_status refusal = refuse_post(member, call, &why);
    if (refusal != pcclSuccess) {
        fail_post(member, call, refusal, why);
        return;
    }
    struct tag *tag = find_tag(member, call->tag, true);
    const struct pc_op_key key = {
        member->epoch.group_epoch, call->tag, tag == NULL ? 0 : tag->next_seq, member->config.group};
    struct pc_op *op = tag == NULL ? NULL : find_op(tag, key.epoch, key.seq);
    if (op == NULL && tag != NULL) op = create_op(member, tag, &key);
    if (op == NULL) {
        fail_post(member, call, pcclNoMemory, "no memory for another operation or another tag");
        return;
    }
    tag->next_seq++;
    op->call = call;
    member->posted_count++;
    member->stats.ops_started++;
    const pc_status status = start(op, now_ns);
    if (status != pcclSuccess) {
        pc_error error = {0};
        pc_error_set(&error, status, "all_reduce could not start: %s", pc_status_text(status));
        op->state = OP_RUNNING;
        fail_for_all(op, &error);
        return;
    }
    check_complete(op, now_ns);
}

void pc_member_post_reduce(struct pc_member *member, struct pc_call *call, uint64_t now_ns) {
    if (member->frozen || member->topology_call) {
        pc_list_append(&member->queued, &call->node);
        return;
    }
    start_call(member, call, now_ns);
}

void pc_member_start_queued(struct pc_member *member, uint64_t now_ns) {
    struct pc_list ready;
    pc_list_init(&ready);
    struct pc_list *node;
    while (!member->frozen && !member->topology_call && (node = pc_list_pop(&member->queued)) != NULL) {
        pc_list_append(&ready, node);
    }
    while ((node = pc_list_pop(&ready)) != NULL) {
        start_call(member, PC_LIST_ENTRY(node, struct pc_call, node), now_ns);
    }
}

/* Receiving ----------------------------------------------------------------------------------------------------- */

/*
 * The operation that a frame belongs to. *op NULL: the frame is of an older epoch or of a decided operation, and changes
 * nothing. One of a newer epoch is held until that epoch is here.
 */
static pc_status operation_of(struct pc_member *member, const struct pc_op_key *wire_key, struct pc_op **op) {
    struct pc_op_key key = *wire_key;
    *op = NULL;
    if (key.group != member->config.group) return pcclProtocolError;
    if (PC_MUTANT(PC_MUTANT_OLD_EPOCH) && key.epoch < member->epoch.group_epoch) key.epoch = member->epoch.group_epoch;
    if (key.epoch < member->epoch.group_epoch) return pcclSuccess;
    struct tag *tag = find_tag(member, key.tag, true);
    if (tag == NULL) return pcclNoMemory;
    *op = find_op(tag, key.epoch, key.seq);
    if (*op != NULL) return pcclSuccess;
    if (key.epoch == member->epoch.group_epoch) {
        uint64_t undecided = tag->next_seq;
        for (struct pc_list *node = tag->tombstones.next; node != &tag->tombstones; node = node->next) {
            const struct tombstone *tombstone = PC_LIST_ENTRY(node, struct tombstone, node);
            if (tombstone->epoch == key.epoch) undecided = pc_max_u64(undecided, tombstone->seq + 1);
        }
        if (key.seq < undecided) return pcclSuccess;
    }
    *op = create_op(member, tag, &key);
    return *op == NULL ? pcclNoMemory : pcclSuccess;
}

static void note_shape(struct pc_op *op, const struct pc_op_shape *shape, uint64_t from) {
    if (op->seen_from != 0) return;
    op->seen_shape = *shape;
    op->seen_from = from;
}

/* Payload without a call: it waits, and a peer that sends more than the eager part without READY breaks the rules. */
static pc_status hold(struct pc_op *op, struct pc_stream *stream, const struct pc_msg_data *data, uint32_t len_bytes) {
    struct pc_link *link = stream->subject;
    if (op->held_bytes + len_bytes > PC_EAGER_OP_BYTES || link->held_bytes + len_bytes > PC_HELD_LINK_BYTES) {
        return pc_error_set(&stream->error, pcclProtocolError, "peer %llu sent more than the eager part before READY",
                            (unsigned long long)link->peer);
    }
    struct held *held = malloc(sizeof *held + len_bytes);
    if (held == NULL) return pcclNoMemory;
    *held = (struct held){.link = link, .round = data->round, .segment = data->segment, .len_bytes = len_bytes};
    pc_list_append(&op->held, &held->node);
    op->held_bytes += len_bytes;
    link->held_bytes += len_bytes;
    stream->sink = (struct pc_sink){held->bytes, op, held, data->round, data->segment};
    return pcclSuccess;
}

pc_status pc_member_data(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_data *data,
                         uint32_t bulk_len, uint64_t now_ns) {
    const struct pc_link *link = stream->subject;
    struct pc_op *op = NULL;
    if ((bulk_len == 0) != (data->want_ready != 0)) return pcclProtocolError;
    PC_TRY(operation_of(member, &data->key, &op));
    if (op == NULL) {
        member->stats.frames_dropped++;
        return pcclSuccess;
    }
    op->progress_ns = now_ns;
    note_shape(op, &data->shape, link->peer);
    if (data->want_ready) op->ready_wanted = true;
    if (op->state == OP_HELD) return bulk_len == 0 ? pcclSuccess : hold(op, stream, data, bulk_len);
    if (!agrees(op, &data->shape, link->peer)) return pcclSuccess;
    if (link->peer != op->prev) return pcclProtocolError;
    if (data->want_ready) {
        tell_ready(op);
        return pcclSuccess;
    }
    uint8_t *sink = NULL;
    PC_TRY(pc_ring_sink(&op->ring, data->round, data->segment, bulk_len, &sink));
    stream->sink = (struct pc_sink){sink, op, NULL, data->round, data->segment};
    return pcclSuccess;
}

pc_status pc_member_data_arrived(struct pc_member *member, struct pc_stream *stream, uint64_t now_ns) {
    (void)member;
    const struct pc_sink sink = stream->sink;
    struct pc_op *op = sink.owner;
    struct held *held = sink.item;
    stream->sink = (struct pc_sink){0};
    if (held != NULL) {
        held->complete = true;
        if (op->state == OP_HELD || op->failed) return pcclSuccess;
        PC_TRY(take_held(op, held, now_ns));
    } else {
        PC_TRY(pc_ring_received(&op->ring, sink.round, sink.segment, sink.data));
    }
    check_complete(op, now_ns);
    return pcclSuccess;
}

pc_status pc_member_ready(struct pc_member *member, struct pc_link *link, const struct pc_msg_ready *ready,
                          uint64_t now_ns) {
    struct pc_op *op = NULL;
    PC_TRY(operation_of(member, &ready->key, &op));
    if (op == NULL) return pcclSuccess;
    op->progress_ns = now_ns;
    note_shape(op, &ready->shape, link->peer);
    if (op->state != OP_HELD && !agrees(op, &ready->shape, link->peer)) return pcclSuccess;
    if (op->state != OP_HELD && link->peer != op->next) return pcclProtocolError;
    if (op->ready) return pcclSuccess;
    op->ready = true;
    link->eager_out_bytes -= pc_min_u64(op->eager_bytes, link->eager_out_bytes);
    struct pc_list *node;
    while ((node = pc_list_pop(&op->waiting)) != NULL) send_now(op, link, PC_LIST_ENTRY(node, struct pc_tx, node));
    return pcclSuccess;
}

/* Verdicts ------------------------------------------------------------------------------------------------------ */

static void bury(struct pc_member *member, struct tag *tag, const struct pc_op_key *key, const pc_error *error) {
    if (PC_MUTANT(PC_MUTANT_SEQ_KEPT)) return;
    struct tombstone *tombstone = pc_calloc(1, sizeof *tombstone);
    if (tombstone == NULL) {
        const pc_error lost = {.code = pcclNoMemory, .message = "no memory to remember a verdict"};
        pc_member_lose(member, &lost, true);
        return;
    }
    tombstone->epoch = key->epoch;
    tombstone->seq = key->seq;
    tombstone->error = *error;
    pc_list_append(&tag->tombstones, &tombstone->node);
}

void pc_member_verdict(struct pc_member *member, const struct pc_verdict *verdict, const pc_error *error,
                       uint64_t now_ns) {
    const struct pc_op_key *key = &verdict->key;
    if (key->group != member->config.group || key->epoch != member->epoch.group_epoch) return;
    struct tag *tag = find_tag(member, key->tag, true);
    if (tag == NULL) return;
    struct pc_op *op = find_op(tag, key->epoch, key->seq);
    pc_error cause = *error;
    if (cause.code == pcclSuccess) pc_error_set(&cause, pcclInternalError, "aborted by the master without a reason");
    if (op != NULL && op->state != OP_HELD) {
        op->progress_ns = now_ns;
        complete_op(op, verdict->commit ? NULL : &cause);
        return;
    }
    if (op != NULL) {
        release(op);
        free_op(op);
    }
    if (!verdict->commit && key->seq >= tag->next_seq) bury(member, tag, key, &cause);
}

/* Calls fn for each operation; fn may free it, and complete calls. */
static void each_op(struct pc_member *member, void (*fn)(struct pc_op *op, const void *context), const void *context) {
    for (int i = 0; i < PC_TAG_BUCKETS; i++) {
        for (struct pc_list *t = member->tags[i].next; t != &member->tags[i]; t = t->next) {
            struct tag *tag = PC_LIST_ENTRY(t, struct tag, node);
            for (struct pc_list *node = tag->ops.next, *next; node != &tag->ops; node = next) {
                next = node->next;
                fn(PC_LIST_ENTRY(node, struct pc_op, node), context);
            }
        }
    }
}

static void lose_op(struct pc_op *op, const void *context) {
    pc_error error = *(const pc_error *)context;
    if (op->state == OP_HELD) {
        release(op);
        free_op(op);
        return;
    }
    /* The others have all that they need from here: they may have it committed, and this peer cannot know. */
    if (op->ring.sends_left == 0 && error.code != pcclCancelled) error.code = pcclOutcomeUnknown;
    complete_op(op, &error);
}

static void unhold_op(struct pc_op *op, const void *context) {
    for (struct pc_list *node = op->held.next, *next; node != &op->held; node = next) {
        next = node->next;
        struct held *held = PC_LIST_ENTRY(node, struct held, node);
        if (held->link == context) free_held(op, held);
    }
}

void pc_member_ops_unhold(struct pc_member *member, const struct pc_link *link) {
    if (link->held_bytes > 0) each_op(member, unhold_op, link);
}

static void free_idle_tags(struct pc_member *member, bool all) {
    for (int i = 0; i < PC_TAG_BUCKETS; i++) {
        for (struct pc_list *node = member->tags[i].next, *next; node != &member->tags[i]; node = next) {
            next = node->next;
            struct tag *tag = PC_LIST_ENTRY(node, struct tag, node);
            struct pc_list *t;
            while (all && (t = pc_list_pop(&tag->tombstones)) != NULL) free(PC_LIST_ENTRY(t, struct tombstone, node));
            tag->next_seq = 0;
            if (!pc_list_empty(&tag->ops) || !pc_list_empty(&tag->tombstones)) continue;
            pc_list_remove(&tag->node);
            free(tag);
            member->tag_count--;
        }
    }
}

void pc_member_ops_lose(struct pc_member *member, const pc_error *error) {
    each_op(member, lose_op, error);
    free_idle_tags(member, true);
    member->done_count = 0;
    struct pc_list *node;
    while ((node = pc_list_pop(&member->queued)) != NULL) {
        pc_member_complete(member, PC_LIST_ENTRY(node, struct pc_call, node), error);
    }
}

static void flip_op(struct pc_op *op, const void *context) {
    const struct pc_member *member = context;
    if (op->key.epoch >= member->epoch.group_epoch) return;
    if (op->state == OP_HELD) {
        release(op);
        free_op(op);
        return;
    }
    /* The master knows all that was posted (STATE) or sees to it that nothing is (joint calls). */
    const pc_error error = {.code = pcclRankConnectionLost, .message = "the group changed under the operation"};
    complete_op(op, &error);
}

void pc_member_ops_flip(struct pc_member *member, uint64_t now_ns) {
    (void)now_ns;
    each_op(member, flip_op, member);
    free_idle_tags(member, false);
}

void pc_member_ops_fini(struct pc_member *member) {
    static const pc_error gone = {.code = pcclCancelled, .message = "the communicator was destroyed"};
    pc_member_ops_lose(member, &gone);
    struct pc_list *node;
    while ((node = pc_list_pop(&member->spare_ops)) != NULL) free(PC_LIST_ENTRY(node, struct pc_op, node));
}

/* Reports to the master ----------------------------------------------------------------------------------------- */

struct state_list {
    struct pc_op_state *items;
    struct pc_op_key *keys;
    uint32_t count;
};

static void add_state(struct pc_op *op, const void *context) {
    if (op->state == OP_HELD) return;
    struct state_list *list;
    memcpy(&list, context, sizeof list);
    list->items[list->count] =
        (struct pc_op_state){op->key, pc_op_shape_fingerprint(&op->call->shape), op->state == OP_DECIDED};
    list->keys[list->count++] = op->key;
}

static bool posted_ops(struct pc_member *member, struct state_list *list) {
    *list = (struct state_list){
        .items = pc_arena_alloc(&member->arena, member->posted_count, sizeof(struct pc_op_state)),
        .keys = pc_arena_alloc(&member->arena, member->posted_count, sizeof(struct pc_op_key)),
    };
    if (list->items == NULL || list->keys == NULL) {
        const pc_error error = {.code = pcclNoMemory, .message = "no memory to report the operations in flight"};
        pc_member_lose(member, &error, true);
        return false;
    }
    struct state_list *pointer = list;
    each_op(member, add_state, &pointer);
    return true;
}

void pc_member_report_state(struct pc_member *member, uint64_t epoch) {
    pc_member_flush_done(member);
    struct state_list list;
    if (!posted_ops(member, &list)) return;
    const struct pc_msg_state message = {epoch, {list.items, list.count}};
    pc_member_tell_master(member, PC_MSG_STATE, &message);
}

struct stall_scan {
    struct pc_stall *stalls;
    uint32_t count;
    uint64_t now_ns;
};

enum { STALL_NS = 1000000000, STALLS_MAX = 64 };

static void add_stall(struct pc_op *op, const void *context) {
    struct stall_scan *scan;
    memcpy(&scan, context, sizeof scan);
    const bool waiting = op->state != OP_HELD && op->call->blocking && scan->now_ns - op->progress_ns >= STALL_NS;
    if (!waiting || scan->count == STALLS_MAX) return;
    const uint64_t blocked_ms = (scan->now_ns - op->progress_ns) / PC_NS_PER_MS;
    scan->stalls[scan->count++] = (struct pc_stall){PC_CALL_ALL_REDUCE, op->key, blocked_ms};
}

void pc_member_report_stalls(struct pc_member *member, uint64_t now_ns) {
    member->stall_ns = now_ns + STALL_NS;
    struct pc_stall stalls[STALLS_MAX];
    struct stall_scan scan = {stalls, 0, now_ns}, *pointer = &scan;
    each_op(member, add_stall, &pointer);
    for (struct pc_list *node = member->calls.next; node != &member->calls && scan.count < STALLS_MAX;
         node = node->next) {
        const struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (now_ns - call->posted_ns < STALL_NS) continue;
        stalls[scan.count++] =
            (struct pc_stall){(uint8_t)call->kind, {0}, (now_ns - call->posted_ns) / PC_NS_PER_MS};
    }
    if (scan.count == 0 && !member->stalled) return;
    member->stalled = scan.count > 0;
    struct state_list list;
    if (!posted_ops(member, &list)) return;
    const struct pc_msg_stalled message = {{stalls, scan.count}, {list.keys, list.count}};
    pc_member_tell_master(member, PC_MSG_STALLED, &message);
}

/* Time limits and cancellation ---------------------------------------------------------------------------------- */

static void tick_op(struct pc_op *op, const void *context) {
    const uint64_t now_ns = *(const uint64_t *)context;
    if (op->state != OP_RUNNING || op->failed || op->call->deadline_ns > now_ns) return;
    pc_error error = {0};
    pc_error_set(&error, pcclTimeout, "all_reduce with tag %llu was not finished within %llu ms at peer %llu",
                 (unsigned long long)op->key.tag,
                 (unsigned long long)((now_ns - op->call->posted_ns) / PC_NS_PER_MS),
                 (unsigned long long)op->member->id);
    pc_error_hint(&error, "a peer that is alive has not called it; `pccl status` names it");
    fail_for_all(op, &error);
}

void pc_member_ops_tick(struct pc_member *member, uint64_t now_ns) {
    if (member->posted_count > 0) each_op(member, tick_op, &now_ns);
}

struct cancel_search {
    struct pc_call *call;
    pc_error error;
};

static void cancel_op(struct pc_op *op, const void *context) {
    const struct cancel_search *search = context;
    if (op->call == search->call && op->state != OP_HELD) fail_for_all(op, &search->error);
}

void pc_member_cancel_reduce(struct pc_member *member, struct pc_call *call, pc_status code, const char *why) {
    struct cancel_search search = {.call = call};
    pc_error_set(&search.error, code, "all_reduce with tag %llu was %s at peer %llu", (unsigned long long)call->tag, why,
                 (unsigned long long)member->id);
    if (pc_list_linked(&call->node)) { /* queued: no other peer knows of it */
        pc_member_complete(member, call, &search.error);
        return;
    }
    each_op(member, cancel_op, &search);
}
