/*
 * K3: a link, all connections between this peer and one other. Frames wait in two queues that all stripes serve; the
 * link is up when every stripe is proved, and lost with the first stripe that is lost.
 */
#ifndef PC_LINK_H
#define PC_LINK_H

#include "math/auth.h"
#include "proto/machine.h"

enum pc_link_state {
    PC_LINK_EXPECTED, /* the other end dials */
    PC_LINK_DIALING,
    PC_LINK_UP,
    PC_LINK_DOWN /* lost, reported; a new generation may follow */
};

struct pc_link {
    struct pc_list node; /* in the member's list */
    uint64_t peer;
    uint32_t generation, stripes, stripes_up;
    enum pc_link_state state;
    bool dialer;
    bool digest; /* payload digests on: not on loopback */
    uint8_t token[16];
    uint32_t cookie;
    struct pc_stream *streams[PC_STRIPES_MAX];
    struct pc_list urgent, normal;
    struct pc_address addresses[PC_ADDRESSES_MAX];
    uint32_t address_count;
    uint64_t retry_ns; /* when to dial again; 0: not at all */
    uint64_t beat_ns; /* when a heartbeat is due */
    uint64_t eager_out_bytes; /* queued or sent without READY, and not known to have left the other end's memory */
    uint64_t eager_taken_bytes; /* of the other end's, gone from here, which it has not been told */
    uint64_t held_bytes; /* what waits here for its call */
};

struct pc_link *pc_link_create(uint64_t peer);
/* Frees the link; its streams have been closed. */
void pc_link_destroy(struct pc_link *link, struct pc_tx_pool *pool);
/* A new generation begins: token, cookie, addresses and role from intro. Frames that wait stay. */
void pc_link_renew(struct pc_link *link, const struct pc_peer_intro *intro, uint32_t own_stripes);

/* Proof of the token for a stripe, by the end that dials or the one that answers. */
void pc_link_proof(const struct pc_link *link, bool by_dialer, uint64_t dialer, uint64_t answerer, uint32_t stripe,
                   uint8_t proof[PC_PROOF_BYTES]);
/* stream has proved itself: it serves the link from now on. */
void pc_link_attach(struct pc_link *link, struct pc_stream *stream, uint32_t stripe, uint64_t now_ns);

/* Queues tx and asks for idle stripes to be written. */
void pc_link_send(struct pc_link *link, struct pc_tx *tx, bool urgent, struct pc_actions *actions);
void pc_link_wake(struct pc_link *link, struct pc_actions *actions);
/* See pc_stream_forget. */
pc_status pc_link_forget(struct pc_link *link, struct pc_tx_pool *pool, const void *owner);
/* A heartbeat on every stripe: a stripe that dies silently would hold its bytes for ever while the others live. */
void pc_link_beat(struct pc_link *link, struct pc_tx_pool *pool, struct pc_actions *actions);
/* Last sign of life on the stripe that has been silent longest. */
uint64_t pc_link_heard_ns(const struct pc_link *link);
/* Bytes per ms over all stripes, which share the work; 0: unknown. */
uint32_t pc_link_rate(const struct pc_link *link);
/* Whether some stripe has had bytes to send and got none accepted since before. */
bool pc_link_stuck_since(const struct pc_link *link, uint64_t before_ns);

/* Emits WRITE for a stream with bytes to send, unless one is out already. */
void pc_stream_wake(struct pc_stream *stream, struct pc_actions *actions);
/* Emits CLOSE once. With flush, what waits is offered to the socket first; else it is dropped. */
void pc_stream_close(struct pc_stream *stream, bool flush, struct pc_actions *actions);

#endif
