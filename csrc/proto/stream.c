/*
 * The byte side of a connection: cutting into frames, lining up frames. See stream.h for the contract.
 *
 * Receiving: header and meta pass through a small buffer of the stream; a bulk part goes straight to its sink, and in the
 * same read what follows it goes to the small buffer, so that a segment costs one system call. Bulk bytes that arrived
 * together with their header are copied out of the small buffer.
 * Sending: frames are taken from the stream's own queue, then from the queues of its link. A stripe keeps a frame only
 * when bytes of it have been accepted, so a faster stripe takes more.
 */
#include "proto/stream.h"

#include "base/checked.h"
#include "math/digest.h"
#include "proto/mutant.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    RX_INITIAL_BYTES = 16 << 10,
    RX_AHEAD_BYTES = 4 << 10, /* read behind a bulk part: what arrives here beyond a header is copied once more */
    TX_BATCH_BYTES = 512 << 10
};

void pc_tx_pool_init(struct pc_tx_pool *pool) {
    pc_list_init(&pool->idle);
}

void pc_tx_pool_fini(struct pc_tx_pool *pool) {
    if (pool->idle.next == NULL) return;
    struct pc_list *node;
    while ((node = pc_list_pop(&pool->idle)) != NULL) {
        struct pc_tx *tx = PC_LIST_ENTRY(node, struct pc_tx, node);
        pc_writer_fini(&tx->head);
        free(tx);
    }
}

void pc_tx_recycle(struct pc_tx_pool *pool, struct pc_tx *tx) {
    pc_list_remove(&tx->node);
    free(tx->copy);
    tx->copy = NULL;
    tx->owner = NULL;
    tx->eager_bytes = 0;
    /* A rare large message (a shared-state offer, an epoch of many members) does not stay in the pool. */
    if (tx->head.capacity > PC_META_MAX_LINK) pc_writer_fini(&tx->head);
    pc_list_append(&pool->idle, &tx->node);
}

struct pc_tx *pc_tx_create(struct pc_tx_pool *pool, uint32_t cookie, uint8_t type, const void *message,
                           const void *bulk, uint32_t bulk_len, bool bulk_digest) {
    const struct pc_message_info *info = pc_message_info(type);
    assert(info != NULL);
    struct pc_list *node = pc_list_pop(&pool->idle);
    struct pc_tx *tx = node != NULL ? PC_LIST_ENTRY(node, struct pc_tx, node) : pc_calloc(1, sizeof *tx);
    if (tx == NULL) return NULL;
    static const uint8_t blank[PC_FRAME_BYTES] = {0};
    tx->head.len = 0;
    pc_writer_bytes(&tx->head, blank, sizeof blank);
    pc_schema_encode(info->schema, message, &tx->head);
    if (tx->head.failed) {
        tx->head.failed = false;
        pc_tx_recycle(pool, tx);
        return NULL;
    }
    tx->bulk = bulk;
    tx->bulk_len = bulk_len;
    const bool digested = bulk_digest && bulk_len > 0;
    const struct pc_frame frame = {
        .cookie = cookie,
        .type = type,
        .flags = digested ? PC_FRAME_BULK_DIGEST : 0,
        .meta_len = (uint32_t)(tx->head.len - PC_FRAME_BYTES),
        .bulk_len = bulk_len,
        .bulk_digest = digested ? pc_digest64(bulk, bulk_len) : 0,
    };
    pc_frame_seal(&frame, tx->head.data);
    return tx;
}

void pc_tx_set_cookie(struct pc_tx *tx, uint32_t cookie) {
    struct pc_frame frame;
    if (pc_frame_open(tx->head.data, &frame) != pcclSuccess || frame.cookie == cookie) return;
    frame.cookie = cookie;
    pc_frame_seal(&frame, tx->head.data);
}

struct pc_stream *pc_stream_create(const struct pc_stream_owner *owner, void *machine, struct pc_tx_pool *pool,
                                   uint64_t now_ns) {
    struct pc_stream *stream = pc_calloc(1, sizeof *stream);
    if (stream == NULL) return NULL;
    stream->rx = malloc(RX_INITIAL_BYTES);
    if (stream->rx == NULL) {
        free(stream);
        return NULL;
    }
    stream->rx_capacity = RX_INITIAL_BYTES;
    stream->owner = owner;
    stream->machine = machine;
    stream->pool = pool;
    stream->opened_ns = stream->heard_ns = stream->progressed_ns = now_ns;
    stream->meta_max = PC_META_MAX_UNPROVED;
    stream->cookie_in = stream->cookie_out = PC_FRAME_MAGIC;
    pc_list_init(&stream->node);
    pc_list_init(&stream->queue);
    pc_list_init(&stream->flight);
    return stream;
}

static void free_frames(struct pc_list *list) {
    struct pc_list *node;
    while ((node = pc_list_pop(list)) != NULL) {
        struct pc_tx *tx = PC_LIST_ENTRY(node, struct pc_tx, node);
        pc_writer_fini(&tx->head);
        free(tx->copy);
        free(tx);
    }
}

void pc_stream_destroy(struct pc_stream *stream) {
    if (stream == NULL) return;
    pc_list_remove(&stream->node);
    /* The pool may be gone already: a stream can outlive its machine by one action. */
    free_frames(&stream->queue);
    free_frames(&stream->flight);
    free(stream->early);
    free(stream->rx);
    free(stream);
}

static void call_back(struct pc_stream *stream) {
    if (stream->recall != NULL && !PC_MUTANT(PC_MUTANT_NO_RECALL)) stream->recall(stream);
}

void pc_stream_leave(struct pc_stream *stream, bool flush) {
    call_back(stream);
    stream->sink = (struct pc_sink){0};
    stream->shared[0] = stream->shared[1] = NULL;
    if (flush) {
        for (struct pc_list *node = stream->flight.next; node != &stream->flight; node = node->next) {
            PC_LIST_ENTRY(node, struct pc_tx, node)->home = &stream->queue;
        }
        return;
    }
    stream->flight_sent = 0;
    free_frames(&stream->queue);
    free_frames(&stream->flight);
}

/* Receiving ----------------------------------------------------------------------------------------------------- */

static uint32_t bulk_left(const struct pc_stream *stream) {
    return stream->frame.bulk_len - stream->bulk_done;
}

static bool bulk_direct(const struct pc_stream *stream) {
    return stream->rx_state == PC_RX_BULK && stream->sink.data != NULL;
}

int pc_stream_rx_spans(struct pc_stream *stream, struct pc_span spans[PC_RX_SPANS_MAX]) {
    if (stream->rx_state == PC_RX_BROKEN) return 0;
    int count = 0;
    size_t room = stream->rx_capacity - stream->rx_len;
    stream->rx_direct = 0;
    if (bulk_direct(stream)) {
        assert(stream->rx_len == 0);
        stream->rx_direct = bulk_left(stream);
        spans[count++] = (struct pc_span){stream->sink.data + stream->bulk_done, stream->rx_direct};
        room = pc_min_size(room, RX_AHEAD_BYTES);
    }
    spans[count++] = (struct pc_span){stream->rx + stream->rx_len, room};
    return count;
}

bool pc_stream_rx_cold(const struct pc_stream *stream) {
    return bulk_direct(stream) && stream->sink.cold;
}

static pc_status broken(struct pc_stream *stream, pc_status status, const char *what) {
    stream->rx_state = PC_RX_BROKEN;
    char address[64];
    pc_address_format(&stream->remote, address, sizeof address);
    pc_error_set(&stream->error, status, "%s from %s", what, address);
    return stream->error.code;
}

static pc_status open_head(struct pc_stream *stream) {
    const uint8_t *head = stream->rx + stream->rx_at;
    if (pc_frame_open(head, &stream->frame) != pcclSuccess) {
        return broken(stream, pcclProtocolError, "a frame with unknown flags");
    }
    const struct pc_message_info *info = pc_message_info(stream->frame.type);
    if (info == NULL) return broken(stream, pcclProtocolError, "a message of unknown type");
    if (stream->frame.meta_len > stream->meta_max || stream->frame.bulk_len > PC_BULK_MAX) {
        return broken(stream, pcclProtocolError, "an oversized frame");
    }
    if (stream->frame.bulk_len > 0 && !info->bulk) {
        return broken(stream, pcclProtocolError, "a payload on a message that has none");
    }
    stream->rx_state = PC_RX_META;
    return pcclSuccess;
}

static pc_status take_meta(struct pc_stream *stream) {
    uint8_t *head = stream->rx + stream->rx_at;
    if (!pc_frame_intact(head, stream->frame.meta_len)) {
        return broken(stream, pcclProtocolError, "a frame with a wrong digest");
    }
    stream->rx_at += PC_FRAME_BYTES + stream->frame.meta_len;
    stream->sink = (struct pc_sink){0};
    stream->bulk_done = 0;
    stream->rx_state = stream->frame.bulk_len > 0 ? PC_RX_BULK : PC_RX_HEAD;
    const struct pc_cursor meta = pc_cursor_of(head + PC_FRAME_BYTES, stream->frame.meta_len);
    const pc_status status = stream->owner->frame(stream->machine, stream, &stream->frame, meta);
    return status == pcclSuccess ? pcclSuccess : broken(stream, status, "an unacceptable message");
}

static pc_status finish_bulk(struct pc_stream *stream) {
    stream->rx_state = PC_RX_HEAD;
    if (stream->sink.data == NULL) return pcclSuccess;
    const struct pc_frame *frame = &stream->frame;
    if ((frame->flags & PC_FRAME_BULK_DIGEST) != 0 &&
        pc_digest64(stream->sink.data, frame->bulk_len) != frame->bulk_digest) {
        return broken(stream, pcclProtocolError, "a payload with a wrong digest");
    }
    const pc_status status = stream->owner->bulk(stream->machine, stream);
    return status == pcclSuccess ? pcclSuccess : broken(stream, status, "an unacceptable payload");
}

/* One step of the parser over what the small buffer holds; *more is false when it needs more bytes. */
static pc_status parse(struct pc_stream *stream, bool *more) {
    const size_t have = stream->rx_len - stream->rx_at;
    *more = true;
    switch (stream->rx_state) {
    case PC_RX_HEAD:
        /* A stranger is recognized by its first four bytes, and not waited for. */
        if (have >= 4 && pc_bytes_get(stream->rx + stream->rx_at, 4) != stream->cookie_in) {
            return broken(stream, pcclProtocolError, "bytes that are not this protocol");
        }
        if (have >= PC_FRAME_BYTES) return open_head(stream);
        break;
    case PC_RX_META:
        if (have >= PC_FRAME_BYTES + stream->frame.meta_len) return take_meta(stream);
        break;
    case PC_RX_BULK: {
        const size_t len = pc_min_size(have, bulk_left(stream));
        if (len > 0 && stream->sink.data != NULL) {
            memcpy(stream->sink.data + stream->bulk_done, stream->rx + stream->rx_at, len);
        }
        stream->rx_at += len;
        stream->bulk_done += (uint32_t)len;
        if (bulk_left(stream) == 0) return finish_bulk(stream);
        break;
    }
    case PC_RX_BROKEN: break;
    }
    *more = false;
    return pcclSuccess;
}

/* Moves what is left to the front, and makes room for the whole of a long meta part. */
static pc_status make_room(struct pc_stream *stream) {
    const size_t have = stream->rx_len - stream->rx_at;
    if (stream->rx_at > 0 && have > 0) memmove(stream->rx, stream->rx + stream->rx_at, have);
    stream->rx_at = 0;
    stream->rx_len = have;
    if (stream->rx_state != PC_RX_META) return pcclSuccess;
    const size_t want = (size_t)PC_FRAME_BYTES + stream->frame.meta_len;
    if (want <= stream->rx_capacity) return pcclSuccess;
    uint8_t *grown = realloc(stream->rx, want);
    if (grown == NULL) return broken(stream, pcclNoMemory, "no memory for a message");
    stream->rx = grown;
    stream->rx_capacity = want;
    return pcclSuccess;
}

pc_status pc_stream_received(struct pc_stream *stream, size_t len_bytes, uint64_t now_ns) {
    stream->heard_ns = now_ns;
    stream->rx_bytes += len_bytes;
    /* The sink may have gone in the meantime; the bytes are there all the same. */
    const size_t direct = pc_min_size(len_bytes, stream->rx_direct);
    stream->bulk_done += (uint32_t)direct;
    stream->rx_len += len_bytes - direct;
    bool more = true;
    while (more && !stream->closing) PC_TRY(parse(stream, &more));
    return make_room(stream);
}

/* Sending ------------------------------------------------------------------------------------------------------- */

bool pc_stream_tx_pending(const struct pc_stream *stream) {
    if (!pc_list_empty(&stream->flight) || !pc_list_empty(&stream->queue)) return true;
    return (stream->shared[0] != NULL && !pc_list_empty(stream->shared[0])) ||
           (stream->shared[1] != NULL && !pc_list_empty(stream->shared[1]));
}

static size_t tx_len(const struct pc_tx *tx) {
    return tx->head.len + tx->bulk_len;
}

static int add_spans(struct pc_tx *tx, size_t skip, struct pc_span *spans) {
    int count = 0;
    if (skip < tx->head.len) spans[count++] = (struct pc_span){tx->head.data + skip, tx->head.len - skip};
    const size_t bulk_skip = skip > tx->head.len ? skip - tx->head.len : 0;
    /* Spans are laid out like struct iovec, whose base is not const even for writing. */
    union {
        const uint8_t *in;
        void *out;
    } bulk = {.in = tx->bulk + bulk_skip};
    if (tx->bulk_len > bulk_skip) spans[count++] = (struct pc_span){bulk.out, tx->bulk_len - bulk_skip};
    return count;
}

/* As many frames as one call can offer. */
static void take_frames(struct pc_stream *stream) {
    struct pc_list *queues[] = {&stream->queue, stream->shared[0], stream->shared[1]};
    size_t bytes = 0;
    int count = 0;
    for (struct pc_list *node = stream->flight.next; node != &stream->flight; node = node->next, count += 2) {
        bytes += tx_len(PC_LIST_ENTRY(node, struct pc_tx, node));
    }
    bytes -= stream->flight_sent;
    for (size_t i = 0; i < sizeof queues / sizeof *queues; i++) {
        while (queues[i] != NULL && !pc_list_empty(queues[i])) {
            if (count + 2 > PC_TX_SPANS_MAX || bytes >= TX_BATCH_BYTES) return;
            struct pc_tx *tx = PC_LIST_ENTRY(pc_list_pop(queues[i]), struct pc_tx, node);
            tx->home = queues[i];
            pc_list_append(&stream->flight, &tx->node);
            bytes += tx_len(tx);
            count += 2;
        }
    }
}

int pc_stream_tx_spans(struct pc_stream *stream, struct pc_span spans[PC_TX_SPANS_MAX], uint64_t now_ns) {
    if (stream->offered_bytes == 0) stream->progressed_ns = now_ns;
    take_frames(stream);
    int count = 0;
    size_t bytes = 0, skip = stream->flight_sent;
    for (struct pc_list *node = stream->flight.next; node != &stream->flight; node = node->next) {
        struct pc_tx *tx = PC_LIST_ENTRY(node, struct pc_tx, node);
        count += add_spans(tx, skip, spans + count);
        bytes += tx_len(tx) - skip;
        skip = 0;
    }
    stream->offered_bytes = bytes;
    return count;
}

/*
 * Held back by a slow stripe, a frame of which nothing was accepted would hold back the whole operation. Before the owner
 * is told of any that has left, who may queue more.
 */
static bool return_frames(struct pc_stream *stream) {
    struct pc_list *node = stream->flight.next;
    for (size_t bytes = 0; node != &stream->flight && bytes < stream->flight_sent; node = node->next) {
        bytes += tx_len(PC_LIST_ENTRY(node, struct pc_tx, node));
    }
    const struct pc_list *begun = node->prev;
    const bool any = stream->flight.prev != begun;
    while (stream->flight.prev != begun) {
        struct pc_tx *tx = PC_LIST_ENTRY(stream->flight.prev, struct pc_tx, node);
        pc_list_remove(&tx->node);
        pc_list_prepend(tx->home, &tx->node);
    }
    return any;
}

bool pc_stream_sent(struct pc_stream *stream, size_t len_bytes, uint64_t now_ns) {
    if (pc_list_empty(&stream->flight)) return false; /* given up in the meantime */
    assert(len_bytes <= stream->offered_bytes);
    if (len_bytes > 0) stream->progressed_ns = now_ns;
    stream->offered_bytes -= len_bytes;
    stream->tx_bytes += len_bytes;
    stream->flight_sent += len_bytes;
    const bool returned = return_frames(stream);
    while (!pc_list_empty(&stream->flight)) {
        struct pc_tx *tx = PC_LIST_ENTRY(stream->flight.next, struct pc_tx, node);
        if (stream->flight_sent < tx_len(tx)) break;
        stream->flight_sent -= tx_len(tx);
        pc_list_remove(&tx->node);
        if (tx->owner != NULL) stream->owner->sent(stream->machine, stream, tx);
        pc_tx_recycle(stream->pool, tx);
    }
    return returned;
}

void pc_tx_queue_forget(struct pc_list *queue, struct pc_tx_pool *pool, const void *owner) {
    for (struct pc_list *node = queue->next, *next; node != queue; node = next) {
        next = node->next;
        struct pc_tx *tx = PC_LIST_ENTRY(node, struct pc_tx, node);
        if (tx->owner == owner) pc_tx_recycle(pool, tx);
    }
}

/* What the other end may have begun to read must be finished, from a copy. */
static pc_status detach(struct pc_tx *tx) {
    tx->owner = NULL;
    if (tx->bulk_len == 0) return pcclSuccess;
    tx->copy = malloc(tx->bulk_len);
    if (tx->copy == NULL) return pcclNoMemory;
    memcpy(tx->copy, tx->bulk, tx->bulk_len);
    tx->bulk = tx->copy;
    return pcclSuccess;
}

static bool in_flight(const struct pc_stream *stream, const void *owner) {
    for (const struct pc_list *node = stream->flight.next; node != &stream->flight; node = node->next) {
        if (PC_LIST_ENTRY(node, const struct pc_tx, node)->owner == owner) return true;
    }
    return false;
}

pc_status pc_stream_forget(struct pc_stream *stream, const void *owner) {
    const bool arriving = stream->rx_state == PC_RX_BULK && stream->sink.owner == owner, leaving = in_flight(stream, owner);
    pc_status worst = pcclSuccess;
    if (arriving || leaving) call_back(stream);
    if (arriving) stream->sink = (struct pc_sink){0};
    pc_tx_queue_forget(&stream->queue, stream->pool, owner);
    for (struct pc_list *node = stream->flight.next; leaving && node != &stream->flight; node = node->next) {
        struct pc_tx *tx = PC_LIST_ENTRY(node, struct pc_tx, node);
        if (tx->owner == owner && detach(tx) != pcclSuccess) worst = pcclNoMemory;
    }
    return worst;
}
