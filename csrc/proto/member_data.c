/*
 * Frames of operations: what waits for READY and credit, what is held for a call to come, and where segments go.
 *
 * Before the other end has posted the operation it gets an eager part only, capped for each operation and link. READY
 * says that it has posted it, and how many elements it has room for: of partial values, and of final ones, which have their
 * place unless they are encoded and passed on. Values that are the sender's own leave one segment of room: where values go
 * round in a circle, those under way must always find a gap to move into. A long one leaves no gap where a short one goes
 * on, so in a circle of n those under way may exceed the credit by n - 1 segments: own values alone never fill it up to
 * there.
 */
#include "base/checked.h"
#include "bytes/dtype.h"
#include "proto/mutant.h"
#include "proto/operation.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EAGER_TELL_BYTES = PC_EAGER_LINK_BYTES / 4 /* taken, and not told */ };

/* Sending ------------------------------------------------------------------------------------------------------- */

/* What a frame counts for where it waits. */
static uint32_t frame_cost(uint32_t len_bytes) {
    return len_bytes + PC_EAGER_FRAME_BYTES;
}

/*
 * What may be sent of op to one member without READY: where that is far away, more, for READY is half a round trip late.
 * What all others send so is half of the staging memory at most. All members know it alike.
 */
static uint64_t eager_most(const struct pc_op *op) {
    if (op->group->rtt_us < PC_FAR_US) return PC_EAGER_OP_BYTES;
    const uint64_t share = op->member->config.staging_bytes / 2 / op->group->n;
    return pc_max_u64(PC_EAGER_OP_BYTES, pc_min_u64(share, PC_EAGER_FAR_BYTES));
}

/* With READY and the request for it, the other end holds no more than twice the eager part. */
static bool fits_eager(const struct pc_op *op, const struct pc_lane *lane, const struct pc_link *link, uint32_t len_bytes) {
    const uint64_t most = eager_most(op), frames = (lane->eager_frames + 3) * (uint64_t)PC_EAGER_FRAME_BYTES;
    return lane->eager_bytes + len_bytes <= most && frames <= most &&
           (link->eager_out_bytes + frame_cost(len_bytes) <= PC_EAGER_LINK_BYTES || PC_MUTANT(PC_MUTANT_EAGER_WITHOUT_END));
}

static bool has_credit(const struct pc_op *op, const struct pc_lane *lane, const struct pc_tx *tx) {
    if (PC_MUTANT(PC_MUTANT_NO_CREDIT)) return true;
    if (!lane->ready || tx->credit == 0) return lane->ready;
    const struct pc_outflow *out = &lane->out[tx->kind];
    if (!tx->forwarded) return out->sent + tx->credit < out->credit;
    return out->sent < op->excess_elems || out->sent - op->excess_elems < out->credit;
}

static void send_now(struct pc_op *op, struct pc_lane *lane, struct pc_link *link, struct pc_tx *tx) {
    lane->out[tx->kind].sent += tx->credit;
    pc_link_send(link, tx, tx->forwarded && tx->kind == PC_DATA_PARTIAL, &op->member->machine.actions);
}

static struct pc_msg_data data_message(const struct pc_op *op) {
    return (struct pc_msg_data){.key = op->key, .shape = op->call->shape};
}

/* Nobody grants READY unasked for an operation that fits into the eager part; this one found the link's used up. */
static void ask_for_ready(struct pc_op *op, struct pc_lane *lane, struct pc_link *link) {
    if (lane->asked) return;
    struct pc_msg_data message = data_message(op);
    message.kind = PC_DATA_WANT_READY;
    struct pc_tx *tx = pc_tx_create(&op->member->tx_pool, link->cookie, PC_MSG_DATA, &message, NULL, 0, false);
    if (tx == NULL) return;
    lane->asked = true;
    pc_link_send(link, tx, true, &op->member->machine.actions);
}

static pc_status emit(void *context, const struct pc_emission *emission) {
    struct pc_op *op = context;
    struct pc_member *member = op->member;
    struct pc_lane *lane = &op->lanes[emission->to];
    struct pc_link *link = pc_member_link(member, lane->peer);
    if (link == NULL) return pcclSuccess; /* that member has been removed: the fate of this operation is on its way */
    const bool eager = !lane->ready && pc_list_empty(&lane->waiting) && fits_eager(op, lane, link, emission->len_bytes);
    struct pc_msg_data message = data_message(op);
    message.eager = eager;
    message.weight = emission->weight;
    message.elems = emission->chunk_elems;
    message.chunk = emission->chunk;
    message.segment = emission->segment;
    message.kind = emission->kind;
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_DATA, &message, emission->bulk,
                                    emission->len_bytes, link->digest);
    if (tx == NULL) return pcclNoMemory;
    tx->owner = op;
    tx->item = emission->staged;
    tx->credit = emission->elems;
    tx->kind = emission->kind;
    tx->forwarded = emission->forwarded;
    if (eager) {
        lane->eager_bytes += emission->len_bytes;
        lane->eager_frames++;
        tx->eager_bytes = frame_cost(emission->len_bytes);
        link->eager_out_bytes += tx->eager_bytes;
    }
    if (eager || has_credit(op, lane, tx)) {
        send_now(op, lane, link, tx);
    } else {
        pc_list_append(&lane->waiting, &tx->node);
        if (!lane->ready) ask_for_ready(op, lane, link);
    }
    return pcclSuccess;
}

/* Credit -------------------------------------------------------------------------------------------------------- */

static void tell_ready(struct pc_op *op, struct pc_lane *lane) {
    struct pc_member *member = op->member;
    struct pc_link *link = pc_member_link(member, lane->peer);
    if (link == NULL) return;
    const struct pc_msg_ready message = {
        .key = op->key, .shape = op->call->shape, .weight = op->call->weight,
        .credit = lane->in[PC_DATA_PARTIAL].granted, .final_credit = lane->in[PC_DATA_FINAL].granted};
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_READY, &message, NULL, 0, false);
    if (tx == NULL) return;
    lane->ready_told = true;
    pc_link_send(link, tx, true, &member->machine.actions);
}

/* The first word. What came as an eager part may be gone already. */
static void grant(struct pc_op *op, struct pc_lane *lane) {
    if (lane->ready_told) return;
    for (int kind = 0; kind < PC_FLOWS; kind++) {
        struct pc_inflow *in = &lane->in[kind];
        if (in->staged) in->granted = pc_max_u64(in->granted, in->consumed + op->window_elems);
    }
    tell_ready(op, lane);
}

static uint64_t largest_segment(const struct pc_op *op) {
    uint64_t elems = 0;
    for (uint32_t i = 0; i < op->collective.plan.chunk_count; i++) {
        elems = pc_max_u64(elems, op->collective.plan.chunks[i].segment_elems);
    }
    return elems;
}

/*
 * In bundles of half a window, but at once if the sender may have come to the end of what it has: then every member of a
 * ring may be waiting for the one gap that another has just made.
 */
static void renew(struct pc_op *op, struct pc_lane *lane, struct pc_inflow *in) {
    const uint64_t enough = in->expected + PC_SEGMENT_MAX_BYTES; /* with the gap that own values leave */
    const uint64_t next = in->consumed + op->window_elems;
    if (!in->staged || !lane->ready_told || in->granted >= enough || next <= in->granted) return;
    const bool far_from_the_end = in->granted > in->arrived + 2 * op->segment_elems;
    if (next - in->granted < op->window_elems / 2 && far_from_the_end) return;
    in->granted = next;
    tell_ready(op, lane);
}

static void consumed(void *context, uint32_t rank, uint8_t kind, uint32_t elems) {
    struct pc_op *op = context;
    struct pc_lane *lane = &op->lanes[rank];
    lane->in[kind].consumed += elems;
    renew(op, lane, &lane->in[kind]);
}

/* What comes beyond the credit, and the gaps that a ring may fill (has_credit), would stay here without bound. */
static pc_status arriving(struct pc_op *op, const struct pc_arrival *arrival) {
    struct pc_lane *lane = &op->lanes[arrival->from];
    struct pc_inflow *in = &lane->in[arrival->kind];
    in->arrived += arrival->elems;
    if (in->staged && in->arrived > in->granted + op->excess_elems + op->segment_elems) return pcclProtocolError;
    renew(op, lane, in);
    return pcclSuccess;
}

/* As many as an eager part holds, in the form that takes the fewest bytes. */
static uint64_t eager_elems(const struct pc_op *op) {
    const struct pc_chunk_plan *plan = &op->collective.plan;
    const pcclDataType_t dtype = pc_dtype_accumulator((pcclDataType_t)op->call->shape.dtype);
    const uint64_t bytes = eager_most(op);
    if (plan->codec.kind == pcclQuantNone) return bytes / plan->elem_bytes;
    return pc_max_u64(bytes / plan->acc_bytes,
                      bytes * plan->codec.block / pc_codec_bytes(&plan->codec, dtype, plan->codec.block));
}

/* The own side of every lane: what the member there will send, and how much of it at a time. */
static void open_lanes(struct pc_op *op) {
    uint32_t staged = 0;
    for (uint32_t rank = 0; rank < op->collective.plan.n; rank++) {
        for (uint8_t kind = 0; kind < PC_FLOWS; kind++) {
            struct pc_inflow *in = &op->lanes[rank].in[kind];
            in->expected = pc_collective_elems_from(&op->collective, rank, kind, &in->staged);
            staged += in->staged;
        }
    }
    /* A share of the staging memory each, never under an eager part and two segments: one on its way, one as a gap. */
    const uint64_t acc_bytes = op->collective.plan.acc_bytes, segment = largest_segment(op);
    const uint64_t share = op->member->config.staging_bytes / acc_bytes / (staged == 0 ? 1 : staged);
    op->segment_elems = segment;
    op->window_elems = pc_max_u64(share, eager_elems(op) + 2 * segment);
    op->excess_elems = op->call->shape.algorithm == PC_ALGORITHM_RING ? (op->collective.plan.n - 1) * segment : 0;
    for (uint32_t rank = 0; rank < op->collective.plan.n; rank++) {
        struct pc_lane *lane = &op->lanes[rank];
        for (int kind = 0; kind < PC_FLOWS; kind++) {
            lane->in[kind].granted = lane->in[kind].staged ? op->window_elems : UINT64_MAX;
        }
        if (pc_collective_bytes_from(&op->collective, rank) > eager_most(op)) grant(op, lane);
    }
}

static void on_ready(struct pc_op *op, uint32_t rank, const uint64_t credit[PC_FLOWS], struct pc_link *link) {
    struct pc_lane *lane = &op->lanes[rank];
    lane->ready = true;
    for (int kind = 0; kind < PC_FLOWS; kind++) {
        lane->out[kind].credit = pc_max_u64(lane->out[kind].credit, credit[kind]);
    }
    for (struct pc_list *node = lane->waiting.next, *next; node != &lane->waiting; node = next) {
        next = node->next;
        struct pc_tx *tx = PC_LIST_ENTRY(node, struct pc_tx, node);
        if (!has_credit(op, lane, tx)) continue;
        pc_list_remove(node);
        send_now(op, lane, link, tx);
    }
}

/* Agreement ----------------------------------------------------------------------------------------------------- */

static void mismatch(struct pc_op *op, const char *theirs, uint64_t from) {
    char own[160];
    pc_op_shape_format(&op->call->shape, own, sizeof own);
    pc_error error = {.peer_id = from};
    pc_error_set(&error, pcclMismatch, "tag %llu: peer %llu called %s, peer %llu called %s",
                 (unsigned long long)op->key.tag, (unsigned long long)op->member->id, own,
                 (unsigned long long)from, theirs);
    pc_error_hint(&error, "all peers of a group must make the same call with a tag: collective, count, dtype, op, root");
    pc_op_fail(op, &error);
}

/* False: they do not agree, or the operation has failed. */
static bool agrees(struct pc_op *op, const struct pc_op_shape *theirs, uint64_t from) {
    if (op->failed) return false;
    if (pc_op_shape_equal(&op->call->shape, theirs)) return true;
    char text[160];
    pc_op_shape_format(theirs, text, sizeof text);
    mismatch(op, text, from);
    return false;
}

/*
 * What taking a frame came to. Wrong frames are the sender's fault and cost it the link (the status is returned); what
 * goes wrong here, or in the call itself, fails the operation.
 */
static pc_status judge(struct pc_op *op, pc_status status, const struct pc_arrival *arrival, uint64_t from) {
    if (status == pcclSuccess || status == pcclProtocolError) return status;
    if (status == pcclMismatch) {
        char text[160];
        const struct pc_chunk *own = pc_chunk_find(&op->collective.plan, arrival->chunk);
        (void)snprintf(text, sizeof text, "it with a block of %llu elements where peer %llu has %llu",
                       (unsigned long long)arrival->chunk_elems, (unsigned long long)op->member->id,
                       (unsigned long long)(own != NULL ? own->elems : 0));
        mismatch(op, text, from);
        return pcclSuccess;
    }
    pc_error error = {0};
    if (status == pcclInvalidArgument) {
        pc_error_set(&error, status, "%s with tag %llu: the weights of all peers are 0",
                     pc_collective_name(op->call->shape.collective), (unsigned long long)op->key.tag);
    } else {
        pc_error_set(&error, status, "%s with tag %llu cannot go on at peer %llu: %s",
                     pc_collective_name(op->call->shape.collective), (unsigned long long)op->key.tag,
                     (unsigned long long)op->member->id, pc_status_text(status));
    }
    pc_op_fail(op, &error);
    return pcclSuccess;
}

void pc_member_data_sent(struct pc_member *member, struct pc_tx *tx, uint64_t now_ns) {
    (void)member;
    struct pc_op *op = tx->owner;
    const pc_status status = pc_collective_sent(&op->collective, tx->item);
    if (status != pcclSuccess) (void)judge(op, status, NULL, 0);
    pc_op_check(op, now_ns);
}

/* Starting ------------------------------------------------------------------------------------------------------ */

static uint32_t rank_of(const struct pc_member_group *group, uint64_t id) {
    for (uint32_t rank = 0; rank < group->n; rank++) {
        if (group->ids[rank] == id) return rank;
    }
    return PC_RANK_NONE;
}

static pc_status take_arrival(struct pc_op *op, const struct pc_arrival *arrival, uint64_t from, uint64_t now_ns) {
    op->progress_ns = now_ns;
    return judge(op, pc_collective_received(&op->collective, arrival), arrival, from);
}

/* held is freed. */
static pc_status take_held(struct pc_op *op, struct pc_held *held, uint64_t now_ns) {
    struct pc_arrival arrival = held->arrival;
    const uint64_t from = held->link->peer;
    arrival.from = rank_of(op->group, from);
    pc_status status = arrival.from == PC_RANK_NONE ? pcclProtocolError : pcclSuccess;
    if (held->ready || arrival.kind == PC_DATA_WANT_READY) {
        if (status == pcclSuccess && held->ready) on_ready(op, arrival.from, held->credit, held->link);
        if (status == pcclSuccess && !held->ready) grant(op, &op->lanes[arrival.from]);
        pc_op_free_held(op->member, held);
        return status;
    }
    if (status == pcclSuccess) status = pc_collective_sink(&op->collective, &arrival);
    if (status == pcclSuccess && arrival.len_bytes > 0) memcpy(arrival.data, held->bytes, arrival.len_bytes);
    pc_op_free_held(op->member, held);
    if (status != pcclSuccess) return judge(op, status, &arrival, from);
    PC_TRY(arriving(op, &arrival));
    return take_arrival(op, &arrival, from, now_ns);
}

/* A wrong frame costs its sender the link, now as when it had come after the call. */
static pc_status take_complete(struct pc_op *op, struct pc_held *held, uint64_t now_ns) {
    struct pc_link *link = held->link;
    const pc_status status = take_held(op, held, now_ns);
    if (status != pcclProtocolError) return status;
    pc_error error = {.peer_id = link->peer};
    pc_error_set(&error, status, "peer %llu sent a frame that does not belong to its operation",
                 (unsigned long long)link->peer);
    pc_member_link_lost(op->member, link, &error, now_ns);
    return pcclSuccess;
}

static pc_status make_lanes(struct pc_op *op) {
    struct pc_member *member = op->member;
    const struct pc_member_group *group = op->group;
    const size_t bytes = group->n * sizeof *op->lanes;
    op->lanes = (struct pc_lane *)(void *)pc_pool_take_buffer(&member->pool, bytes, &op->lanes_capacity);
    if (op->lanes == NULL) return pcclNoMemory;
    memset(op->lanes, 0, bytes);
    for (size_t rank = 0; rank < group->n; rank++) {
        op->lanes[rank].peer = group->ids[rank];
        pc_list_init(&op->lanes[rank].waiting);
    }
    return pcclSuccess;
}

/* Blocks between two members have no way round a link that was given up. */
static bool has_links(struct pc_op *op) {
    struct pc_member *member = op->member;
    if (!op->group->ring_only || op->call->shape.algorithm == PC_ALGORITHM_RING) return true;
    for (uint32_t rank = 0; rank < op->collective.plan.n; rank++) {
        const struct pc_link *link = pc_member_link(member, op->lanes[rank].peer);
        if (!pc_collective_talks_to(&op->collective, rank) || (link != NULL && link->state != PC_LINK_DOWN)) continue;
        pc_error error = {.peer_id = op->lanes[rank].peer};
        pc_error_set(&error, pcclRankConnectionFailed, "%s needs the link between peer %llu and peer %llu, which was lost twice",
                     pc_collective_name(op->call->shape.collective), (unsigned long long)member->id,
                     (unsigned long long)op->lanes[rank].peer);
        pc_error_hint(&error, "all_reduce, broadcast, reduce, all_gather and reduce_scatter find a way round it");
        pc_op_fail(op, &error);
        return false;
    }
    return true;
}

/* Other random bits in each operation and at each member. */
static uint32_t seed_of(const struct pc_op *op) {
    const uint64_t parts[] = {op->key.epoch, op->key.tag, op->key.seq, op->member->id};
    return (uint32_t)pc_digest64(parts, sizeof parts);
}

pc_status pc_op_start(struct pc_op *op, uint64_t now_ns) {
    struct pc_member *member = op->member;
    struct pc_call *call = op->call;
    const struct pc_collective_config config = {
        .request = {.shape = &call->shape, .n = (uint32_t)op->group->n, .rank = op->group->rank,
                    .ring = op->group->ring, .count = call->count, .counts = call->counts, .recv_counts = call->recv_counts,
                    .source = call->source, .target = call->target, .rtt_us = op->group->rtt_us,
                    .shares = op->group->cost == NULL ? NULL : pc_cost_shares(op->group->cost, &call->shape)},
        .send = call->send,
        .recv = call->recv,
        .undo = call->undo && call->shape.consistency == PC_STRICT,
        .weight = call->weight,
        .scale = call->scale,
        .feedback = call->feedback,
        .stochastic = call->stochastic,
        .finite_only = call->finite_only,
        .seed = seed_of(op),
        .pool = &member->pool,
        .user = {emit, consumed, op},
    };
    op->progress_ns = now_ns;
    PC_TRY(make_lanes(op));
    PC_TRY(pc_collective_init(&op->collective, &config));
    op->phase = PC_OP_RUNNING;
    for (int i = 0; i < 2; i++) {
        if (op->seen[i].from != 0 && !agrees(op, &op->seen[i].shape, op->seen[i].from)) return pcclSuccess;
    }
    if (!has_links(op)) return pcclSuccess;
    open_lanes(op);
    PC_TRY(pc_collective_start(&op->collective));
    while (!op->failed) {
        struct pc_held *held = NULL;
        for (struct pc_list *node = op->held.next; node != &op->held && held == NULL; node = node->next) {
            if (PC_LIST_ENTRY(node, struct pc_held, node)->complete) held = PC_LIST_ENTRY(node, struct pc_held, node);
        }
        if (held == NULL) break;
        PC_TRY(take_complete(op, held, now_ns));
    }
    return pcclSuccess;
}

/* Ending -------------------------------------------------------------------------------------------------------- */

/*
 * A part of the link's eager part is gone from here. Told in bundles: what is not told is never so much that the other end
 * would wait for it.
 */
static void taken(struct pc_member *member, struct pc_link *link, uint32_t generation, uint32_t bytes) {
    if (bytes == 0 || generation != link->generation) return;
    link->eager_taken_bytes += bytes;
    if (link->eager_taken_bytes < EAGER_TELL_BYTES || link->state != PC_LINK_UP) return;
    const struct pc_msg_eager_taken message = {link->generation, (uint32_t)pc_min_u64(link->eager_taken_bytes, UINT32_MAX)};
    struct pc_tx *tx = pc_tx_create(&member->tx_pool, link->cookie, PC_MSG_EAGER_TAKEN, &message, NULL, 0, false);
    if (tx == NULL) return;
    link->eager_taken_bytes -= message.bytes;
    pc_link_send(link, tx, true, &member->machine.actions);
}

void pc_member_eager_taken(struct pc_link *link, const struct pc_msg_eager_taken *message) {
    if (message->generation != link->generation) return;
    link->eager_out_bytes -= pc_min_u64(message->bytes, link->eager_out_bytes);
}

void pc_op_free_held(struct pc_member *member, struct pc_held *held) {
    pc_list_remove(&held->node);
    held->link->held_bytes -= held->cost_bytes;
    taken(member, held->link, held->generation, held->eager_bytes);
    free(held);
}

/* All its frames have come and gone: no queue and no connection has one. */
static bool is_nowhere(const struct pc_op *op) {
    return op->phase != PC_OP_HELD && pc_collective_complete(&op->collective) && pc_list_empty(&op->held);
}

static void forget_frames(struct pc_op *op) {
    struct pc_member *member = op->member;
    for (struct pc_list *node = member->links.next, *next; node != &member->links; node = next) {
        next = node->next;
        struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        if (pc_link_forget(link, &member->tx_pool, op) == pcclSuccess) continue;
        /* No memory to finish a frame from a copy: the link ends, whose loss the peers will see. */
        const pc_error error = {.code = pcclNoMemory, .message = "no memory to end an operation in order"};
        pc_member_link_lost(member, link, &error, op->progress_ns);
    }
}

void pc_op_release(struct pc_op *op) {
    struct pc_member *member = op->member;
    if (!is_nowhere(op)) forget_frames(op);
    while (!pc_list_empty(&op->held)) pc_op_free_held(member, PC_LIST_ENTRY(op->held.next, struct pc_held, node));
    for (uint32_t rank = 0; op->lanes != NULL && rank < op->collective.plan.n; rank++) {
        struct pc_lane *lane = &op->lanes[rank];
        pc_tx_queue_forget(&lane->waiting, &member->tx_pool, op);
    }
    pc_pool_give_buffer(&member->pool, (uint8_t *)op->lanes, op->lanes_capacity);
    op->lanes = NULL;
}

uint64_t pc_op_bytes_total(const struct pc_op *op) {
    uint64_t bytes = 0;
    for (uint32_t rank = 0; rank < op->collective.plan.n; rank++) {
        bytes += pc_collective_bytes_from(&op->collective, rank);
    }
    return bytes;
}

static void unhold(struct pc_op *op, void *context) {
    for (struct pc_list *node = op->held.next, *next; node != &op->held; node = next) {
        next = node->next;
        struct pc_held *held = PC_LIST_ENTRY(node, struct pc_held, node);
        if (held->link == context) pc_op_free_held(op->member, held);
    }
    if (op->phase == PC_OP_HELD && pc_list_empty(&op->held)) pc_op_drop(op);
}

void pc_member_ops_unhold(struct pc_member *member, const struct pc_link *link) {
    pc_op_each(member, unhold, (void *)(uintptr_t)link);
}

/* Receiving ----------------------------------------------------------------------------------------------------- */

/*
 * The operation that a frame belongs to. *op NULL: the frame is of an older epoch or of a decided operation, and changes
 * nothing. One of a newer epoch is held until that epoch is here.
 */
static pc_status operation_of(struct pc_member *member, const struct pc_op_key *wire_key, struct pc_stream *stream,
                              struct pc_op **op) {
    const uint64_t from = ((const struct pc_link *)stream->subject)->peer;
    struct pc_op_key key = *wire_key;
    struct pc_member_group *group = NULL;
    *op = NULL;
    const bool ours = key.channel == pc_channel(from, member->id) || key.channel == pc_channel(member->id, from);
    if (key.group != member->group.number || (key.channel != 0 && !ours)) return pcclProtocolError;
    PC_TRY(pc_member_group_of(member, &key, from, &group));
    if (group == NULL) return pcclSuccess;
    const uint64_t epoch = group->epoch;
    if (PC_MUTANT(PC_MUTANT_OLD_EPOCH) && key.epoch < epoch) key.epoch = epoch;
    if (key.epoch < epoch) return pcclSuccess;
    struct pc_tag *tag = pc_op_tag(group, key.tag, key.channel, true);
    if (tag == NULL) {
        const bool full = group->tag_count >= PC_TAGS_MAX;
        return pc_error_set(&stream->error, pcclNoMemory, full ? "too many different tags in one epoch of the group"
                                                               : "no memory for another tag");
    }
    *op = pc_op_find(tag, key.epoch, key.seq);
    if (*op != NULL) return pcclSuccess;
    if (key.epoch == epoch) {
        uint64_t undecided = tag->next_seq;
        for (struct pc_list *node = tag->tombstones.next; node != &tag->tombstones; node = node->next) {
            const struct pc_tombstone *tombstone = PC_LIST_ENTRY(node, struct pc_tombstone, node);
            if (tombstone->epoch == key.epoch) undecided = pc_max_u64(undecided, tombstone->last_seq + 1);
        }
        if (key.seq < undecided) return pcclSuccess;
    }
    *op = pc_op_create(member, tag, &key);
    if (*op == NULL) return pcclNoMemory;
    pc_op_offer(member, tag);
    return pcclSuccess;
}

/* Of other members' descriptors the first is kept, and the first that differs from it. */
static void note_shape(struct pc_op *op, const struct pc_op_shape *shape, uint64_t from) {
    if (op->seen[0].from == 0) {
        op->seen[0].shape = *shape;
        op->seen[0].from = from;
    } else if (op->seen[1].from == 0 && !pc_op_shape_equal(&op->seen[0].shape, shape)) {
        op->seen[1].shape = *shape;
        op->seen[1].from = from;
    }
}

/* Whether a frame that costs so much may wait; a peer that sends more than the eager part breaks the rules. */
static bool may_hold(const struct pc_op *op, const struct pc_link *link, uint32_t cost_bytes) {
    uint64_t bytes = cost_bytes;
    for (struct pc_list *node = op->held.next; node != &op->held; node = node->next) {
        const struct pc_held *held = PC_LIST_ENTRY(node, struct pc_held, node);
        if (held->link == link) bytes += held->cost_bytes;
    }
    return bytes <= 2 * PC_EAGER_FAR_BYTES && link->held_bytes + cost_bytes <= PC_HELD_LINK_BYTES;
}

static pc_status hold(struct pc_op *op, struct pc_link *link, const struct pc_held *frame, pc_error *error,
                      struct pc_held **kept) {
    const uint32_t len_bytes = frame->arrival.len_bytes, cost_bytes = frame_cost(len_bytes);
    if (!may_hold(op, link, cost_bytes)) {
        return pc_error_set(error, pcclProtocolError, "peer %llu sent more than the eager part before READY",
                            (unsigned long long)link->peer);
    }
    struct pc_held *held = malloc(sizeof *held + len_bytes);
    if (held == NULL) return pcclNoMemory;
    *held = *frame;
    held->link = link;
    held->cost_bytes = cost_bytes;
    pc_list_append(&op->held, &held->node);
    link->held_bytes += cost_bytes;
    *kept = held;
    return pcclSuccess;
}

static pc_status hold_segment(struct pc_op *op, struct pc_stream *stream, const struct pc_arrival *arrival, uint32_t eager_bytes) {
    struct pc_link *link = stream->subject;
    struct pc_held *held = NULL;
    const struct pc_held frame = {.arrival = *arrival, .complete = arrival->len_bytes == 0, .eager_bytes = eager_bytes,
                                  .generation = link->generation};
    PC_TRY(hold(op, link, &frame, &stream->error, &held));
    if (arrival->len_bytes > 0) stream->sink = (struct pc_sink){.data = held->bytes, .owner = op, .item = held};
    return pcclSuccess;
}

static pc_status take_segment(struct pc_op *op, struct pc_stream *stream, struct pc_arrival *arrival,
                              uint64_t now_ns) {
    const struct pc_link *link = stream->subject;
    arrival->from = rank_of(op->group, link->peer);
    if (arrival->from == PC_RANK_NONE) return pcclProtocolError;
    if (arrival->kind == PC_DATA_WANT_READY) {
        grant(op, &op->lanes[arrival->from]);
        return pcclSuccess;
    }
    const pc_status status = pc_collective_sink(&op->collective, arrival);
    if (status != pcclSuccess) return judge(op, status, arrival, link->peer);
    if (arriving(op, arrival) != pcclSuccess) {
        return pc_error_set(&stream->error, pcclProtocolError, "peer %llu sent more than it had credit for",
                            (unsigned long long)link->peer);
    }
    if (arrival->len_bytes > 0) {
        stream->sink = (struct pc_sink){arrival->data, op, NULL, arrival->chunk, arrival->segment, arrival->weight,
                                        arrival->kind, arrival->cold};
        return pcclSuccess;
    }
    PC_TRY(take_arrival(op, arrival, link->peer, now_ns));
    pc_op_check(op, now_ns);
    return pcclSuccess;
}

pc_status pc_member_data(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_data *data,
                         uint32_t bulk_len, uint64_t now_ns) {
    struct pc_link *link = stream->subject;
    struct pc_op *op = NULL;
    if (data->kind > PC_DATA_WANT_READY || (data->kind == PC_DATA_WANT_READY && bulk_len > 0)) return pcclProtocolError;
    PC_TRY(operation_of(member, &data->key, stream, &op));
    const uint32_t eager_bytes = data->eager != 0 ? frame_cost(bulk_len) : 0;
    if (op == NULL || op->phase != PC_OP_HELD) taken(member, link, link->generation, eager_bytes);
    if (op == NULL) {
        member->stats.frames_dropped++;
        return pcclSuccess;
    }
    op->progress_ns = now_ns;
    note_shape(op, &data->shape, link->peer);
    struct pc_arrival arrival = {.chunk = data->chunk, .segment = data->segment, .kind = data->kind,
                                 .chunk_elems = data->elems, .weight = data->weight, .len_bytes = bulk_len};
    if (op->phase == PC_OP_HELD) return hold_segment(op, stream, &arrival, eager_bytes);
    if (!agrees(op, &data->shape, link->peer)) return pcclSuccess;
    return take_segment(op, stream, &arrival, now_ns);
}

pc_status pc_member_data_arrived(struct pc_stream *stream, uint64_t now_ns) {
    const struct pc_sink sink = stream->sink;
    const struct pc_link *link = stream->subject;
    struct pc_op *op = sink.owner;
    struct pc_held *held = sink.item;
    stream->sink = (struct pc_sink){0};
    if (held != NULL) {
        held->complete = true;
        if (op->phase == PC_OP_HELD || op->failed) return pcclSuccess;
        PC_TRY(take_held(op, held, now_ns));
    } else {
        const struct pc_arrival arrival = {.from = rank_of(op->group, link->peer), .chunk = sink.chunk,
                                           .segment = sink.segment, .kind = sink.kind, .weight = sink.weight,
                                           .len_bytes = stream->frame.bulk_len, .data = sink.data};
        PC_TRY(take_arrival(op, &arrival, link->peer, now_ns));
    }
    pc_op_check(op, now_ns);
    return pcclSuccess;
}

pc_status pc_member_ready(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_ready *ready,
                          uint64_t now_ns) {
    struct pc_link *link = stream->subject;
    struct pc_op *op = NULL;
    PC_TRY(operation_of(member, &ready->key, stream, &op));
    if (op == NULL) return pcclSuccess;
    const uint64_t credit[PC_FLOWS] = {ready->credit, ready->final_credit};
    op->progress_ns = now_ns;
    note_shape(op, &ready->shape, link->peer);
    if (op->phase != PC_OP_HELD) {
        const uint32_t rank = rank_of(op->group, link->peer);
        if (!agrees(op, &ready->shape, link->peer)) return pcclSuccess;
        if (rank == PC_RANK_NONE) return pcclProtocolError;
        on_ready(op, rank, credit, link);
        return pcclSuccess;
    }
    for (struct pc_list *node = op->held.next; node != &op->held; node = node->next) {
        struct pc_held *held = PC_LIST_ENTRY(node, struct pc_held, node);
        if (!held->ready || held->link != link) continue;
        memcpy(held->credit, credit, sizeof credit);
        return pcclSuccess;
    }
    pc_error error = {0};
    struct pc_held *held = NULL;
    return hold(op, link, &(struct pc_held){.complete = true, .ready = true, .credit = {credit[0], credit[1]}}, &error, &held);
}
