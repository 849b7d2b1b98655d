/*
 * K3: one TCP connection seen as bytes. A stream cuts what arrives into frames and lines up what is to be sent; it does
 * no I/O. A driver asks where the next bytes go (rx_spans) or come from (tx_spans), moves them between kernel and that
 * memory in one call, and tells the machine how many it moved. Bulk parts go straight to and from the owner's buffers.
 *
 * From the question to the answer the memory is the driver's. A driver with several threads lets the machine hear of other
 * things in between; it gives recall, by which a stream takes the memory back before anything else is done with it.
 *
 * Owner: a machine, which creates streams and gives them up with a PC_ACTION_CLOSE; the driver then calls destroy.
 */
#ifndef PC_STREAM_H
#define PC_STREAM_H

#include "base/list.h"
#include "wire/frame.h"
#include "wire/message.h"

/* Memory for the driver to fill or to send; laid out like struct iovec. */
struct pc_span {
    void *data;
    size_t len_bytes;
};

enum { PC_RX_SPANS_MAX = 2, PC_TX_SPANS_MAX = 32 };

/* A frame to be sent: header and meta encoded, bulk by reference. Recycled by its pool, with the memory of head. */
struct pc_tx {
    struct pc_list node;
    struct pc_writer head;
    const uint8_t *bulk;
    uint32_t bulk_len;
    uint8_t *copy; /* bulk moved here because its owner needs the original back; freed when sent */
    void *owner; /* told when the frame has left, unless NULL */
    void *item; /* the owner's */
    struct pc_list *home; /* while it is offered: the queue that it was taken from */
    uint32_t credit; /* the owner's: what it counts against the receiver's credit */
    uint32_t eager_bytes; /* the link's: what it counts for in the eager part; 0: it is not of that */
    bool forwarded; /* the owner's */
    uint8_t kind; /* the owner's */
};

struct pc_tx_pool {
    struct pc_list idle;
};

void pc_tx_pool_init(struct pc_tx_pool *pool);
void pc_tx_pool_fini(struct pc_tx_pool *pool);
/* A frame of message type with meta encoded from message by the type's schema; NULL: no memory. */
struct pc_tx *pc_tx_create(struct pc_tx_pool *pool, uint32_t cookie, uint8_t type, const void *message,
                           const void *bulk, uint32_t bulk_len, bool bulk_digest);
void pc_tx_recycle(struct pc_tx_pool *pool, struct pc_tx *tx);
/* The frame is to go out under cookie: it may have waited since an earlier generation of its link. */
void pc_tx_set_cookie(struct pc_tx *tx, uint32_t cookie);

struct pc_stream;

/* Where a bulk part goes, and whom it is for. A NULL data discards it. */
struct pc_sink {
    uint8_t *data;
    void *owner; /* see pc_stream_forget */
    /* The machine's: */
    void *item;
    uint32_t chunk, segment;
    uint64_t weight;
    uint8_t kind;
    bool cold; /* see pc_stream_rx_cold */
};

/* How a stream tells its machine. Called only from within pc_stream_received and pc_stream_sent. */
struct pc_stream_owner {
    /*
     * A header with an intact meta part. If the frame has a bulk part, the owner sets stream->sink; left zero, it is
     * discarded. A status other than success breaks the stream: nothing more is read from it.
     */
    pc_status (*frame)(void *machine, struct pc_stream *stream, const struct pc_frame *frame, struct pc_cursor meta);
    /* The bulk part of the last frame is in stream->sink. Not called for one that was discarded. */
    pc_status (*bulk)(void *machine, struct pc_stream *stream);
    /* tx has left. The stream recycles it afterwards. */
    void (*sent)(void *machine, struct pc_stream *stream, struct pc_tx *tx);
};

enum pc_rx_state { PC_RX_HEAD, PC_RX_META, PC_RX_BULK, PC_RX_BROKEN };

struct pc_stream {
    struct pc_list node; /* in the machine's list */
    const struct pc_stream_owner *owner;
    void *machine;
    void *subject; /* the machine's: a link, a peer, ... */
    void *driver; /* the driver's: a socket */
    /* The driver's: returns when no thread touches memory of spans of this stream; NULL: none does while the machine runs. */
    void (*recall)(struct pc_stream *stream);
    int role; /* the machine's own enum */
    void *early; /* the machine's: a message that came too early; freed with the stream */
    uint32_t stripe;
    struct pc_address remote;
    /* The driver's: what its network has measured; 0: unknown. */
    uint32_t rtt_us; /* round trip */
    uint32_t bytes_per_ms; /* sent, when there was enough to send */
    bool shared_memory; /* the driver's: the other end is on this host, and no network in between */
    uint64_t opened_ns, heard_ns, progressed_ns;
    bool open; /* connected */
    bool closing; /* PC_ACTION_CLOSE is out, or will be when drained */
    bool write_wanted; /* a PC_ACTION_WRITE is out and not yet used up */

    enum pc_rx_state rx_state;
    uint8_t *rx;
    size_t rx_at, rx_len, rx_capacity;
    struct pc_frame frame;
    uint32_t meta_max; /* limits in force */
    uint32_t cookie_in, cookie_out;
    struct pc_sink sink; /* of the current bulk part */
    uint32_t bulk_done;
    size_t rx_direct; /* how much of what rx_spans gave last lies in the sink */
    pc_error error; /* why it broke */

    struct pc_tx_pool *pool;
    struct pc_list queue; /* frames of this stream alone */
    struct pc_list *shared[2]; /* queues of its link that it also serves, in this order; or NULL */
    struct pc_list flight; /* the frame that is partly sent, and those offered with it */
    size_t flight_sent; /* bytes of it that are gone */
    size_t offered_bytes; /* by the last tx_spans, and not accepted since */
    uint64_t rx_bytes, tx_bytes;
};

struct pc_stream *pc_stream_create(const struct pc_stream_owner *owner, void *machine, struct pc_tx_pool *pool,
                                   uint64_t now_ns);
void pc_stream_destroy(struct pc_stream *stream);

/* Where the next bytes go: at least one span of at least one byte, at most PC_RX_SPANS_MAX; 0 when broken. */
int pc_stream_rx_spans(struct pc_stream *stream, struct pc_span spans[PC_RX_SPANS_MAX]);
/* Whether the first of these spans is memory that nobody reads again soon, so that it need not pass the cache. */
bool pc_stream_rx_cold(const struct pc_stream *stream);
/* len_bytes have been put there. Calls the owner. Returns the reason if the stream broke now. */
pc_status pc_stream_received(struct pc_stream *stream, size_t len_bytes, uint64_t now_ns);

/*
 * What to send next, in order; 0: nothing. Else pc_stream_sent follows, if need be with 0: frames of which nothing was
 * accepted return to their queues then, where a faster stripe of the link can take them.
 */
int pc_stream_tx_spans(struct pc_stream *stream, struct pc_span spans[PC_TX_SPANS_MAX], uint64_t now_ns);
/* Returns whether frames have gone back to their queues: others may take them now. */
bool pc_stream_sent(struct pc_stream *stream, size_t len_bytes, uint64_t now_ns);
bool pc_stream_tx_pending(const struct pc_stream *stream);

/*
 * From now on nobody touches memory of frames that belong to owner: an incoming bulk part is discarded, outgoing frames
 * are dropped, one that is partly sent is finished from a copy. Returns pcclNoMemory if there is none for that copy; the
 * stream must then be closed.
 */
pc_status pc_stream_forget(struct pc_stream *stream, const void *owner);
/* Before a stream is closed. flush: what it has to send itself stays, to be offered once more; else nothing does. */
void pc_stream_leave(struct pc_stream *stream, bool flush);
/* Drops owner's frames that wait in a queue. */
void pc_tx_queue_forget(struct pc_list *queue, struct pc_tx_pool *pool, const void *owner);

#endif
