/*
 * K2: every message of the protocol, as structures and their schemas. docs/protocol.md says who sends what when.
 * Limits on what a receiver takes are here too, so that no length is trusted before it is checked.
 */
#ifndef PC_MESSAGE_H
#define PC_MESSAGE_H

#include "wire/schema.h"

#define PC_PROTOCOL_VERSION 1u
#define PC_WEIGHT_MAX (1ull << 48) /* of one member: the sum over all of a group does not overflow */

enum pc_limits {
    PC_META_MAX_UNPROVED = 4096, /* before the other end has proved itself */
    PC_META_MAX_LINK = 4096,
    PC_META_MAX_CONTROL = 16 << 20,
    PC_BULK_MAX = 4 << 20, /* one state block; segments are smaller */
    PC_ADDRESSES_MAX = 16,
    PC_STRIPES_MAX = 64,
    PC_OPS_MAX = 4096, /* operations posted at a peer at a time */
    PC_EAGER_OP_BYTES = 64 << 10, /* payload a peer may send of one op before READY */
    PC_EAGER_FAR_BYTES = 512 << 10, /* the same at most, where READY takes long */
    PC_EAGER_LINK_BYTES = 1 << 20, /* and of all ops of a link, until the receiver has told that they have left it */
    PC_EAGER_FRAME_BYTES = 256 /* what each frame counts for beside its payload: it takes memory where it waits */
};

enum pc_message_type {
    /* control connection: either side */
    PC_MSG_HEARTBEAT = 1,
    PC_MSG_REFUSE = 2,
    /* control connection: towards the master */
    PC_MSG_HELLO = 3,
    PC_MSG_AUTH = 4,
    PC_MSG_LINK_UP = 5,
    PC_MSG_LINK_DOWN = 6,
    PC_MSG_CALL = 7,
    PC_MSG_CALL_CANCEL = 8,
    PC_MSG_DONE = 9,
    PC_MSG_OP_FAIL = 10,
    PC_MSG_STATE = 11,
    PC_MSG_GOODBYE = 12,
    PC_MSG_STALLED = 13,
    PC_MSG_SYNC_OFFER = 14,
    PC_MSG_SYNC_READY = 15,
    PC_MSG_STATUS = 16,
    PC_MSG_LEAVE_GROUP = 17,
    PC_MSG_PROBED = 18,
    PC_MSG_POSTED = 19,
    /* control connection: from the master */
    PC_MSG_CHALLENGE = 32,
    PC_MSG_WELCOME = 33,
    PC_MSG_PEERS = 34,
    PC_MSG_CALL_RESULT = 35,
    PC_MSG_VERDICT = 36,
    PC_MSG_FREEZE = 37,
    PC_MSG_EPOCH = 38,
    PC_MSG_EVICT = 39,
    PC_MSG_SYNC_PLAN = 40,
    PC_MSG_STATUS_REPLY = 41,
    PC_MSG_PROBE = 42,
    PC_MSG_ASK_POSTED = 43,
    /* links */
    PC_MSG_LINK_HELLO = 64,
    PC_MSG_LINK_ACK = 65,
    PC_MSG_DATA = 66, /* bulk: a segment */
    PC_MSG_READY = 67,
    PC_MSG_DIGESTS_WANT = 68,
    PC_MSG_DIGESTS = 69, /* bulk: 16 bytes a block */
    PC_MSG_BLOCK_WANT = 70,
    PC_MSG_BLOCK = 71, /* bulk: the block */
    PC_MSG_PROBE_DATA = 72, /* bulk: what nobody reads */
    PC_MSG_PROBE_ACK = 73,
    PC_MSG_EAGER_TAKEN = 74
};

/* Shared parts ------------------------------------------------------------------------------------------------- */

/* IPv4 (family 4, first 4 bytes of ip) or IPv6 (family 6); port in host order. */
struct pc_address {
    uint8_t family;
    uint16_t port;
    uint8_t ip[16];
    uint32_t scope; /* IPv6 link-local interface index on the host that wrote it; else 0 */
};

struct pc_wire_error {
    uint32_t code, sys_errno;
    uint64_t peer_id, epoch, tag, seq, bytes_done, bytes_total, last_heard_ms;
    struct pc_text peer_address, phase, message, hint;
};

/* Identity of an operation. epoch: that in which its group's member list last changed (see docs/protocol.md). */
struct pc_op_key {
    uint64_t epoch, tag, seq;
    uint64_t channel; /* 0: all of the group take part; else two, see pc_channel */
    uint32_t group; /* as the peers gave it when they joined */
    uint32_t subset; /* 0: all of it; else the number of a group of some of its members */
};

enum pc_collective_kind {
    PC_ALL_REDUCE = 0,
    PC_BROADCAST,
    PC_REDUCE,
    PC_ALL_GATHER,
    PC_REDUCE_SCATTER,
    PC_GATHER,
    PC_SCATTER,
    PC_ALL_TO_ALL,
    PC_SEND_RECV,
    PC_BARRIER = 10, /* as in pccl.h; an all-reduce of one byte */
    PC_COLLECTIVE_COUNT
};

enum pc_algorithm {
    PC_ALGORITHM_AUTO = 0, /* never on the wire: replaced by the choice */
    PC_ALGORITHM_RING,
    PC_ALGORITHM_TREE,
    PC_ALGORITHM_DIRECT, /* each member owns a share: two hops */
    PC_ALGORITHM_EXCHANGE, /* everything to everybody: one hop */
    PC_ALGORITHM_COUNT
};

enum pc_consistency { PC_STRICT = 0, PC_STEP = 1 };

/* What all participants must agree on. */
struct pc_op_shape {
    uint64_t count; /* elements of the buffer, or of an average block; 0 where only two members know how many */
    uint64_t layout; /* digest of the block sizes where they differ and all know them; else 0 */
    uint32_t root; /* rank; 0 where there is none */
    uint8_t collective, dtype, redop, consistency, algorithm;
    uint8_t codec, codec_bits; /* see pc_codec; codec 0: the payload travels as it is */
    uint32_t codec_block;
};

/* Control ------------------------------------------------------------------------------------------------------ */

enum pc_purpose { PC_PURPOSE_PEER = 0, PC_PURPOSE_STATUS = 1 };

struct pc_msg_empty {
    uint8_t reserved;
};
struct pc_msg_refuse {
    struct pc_wire_error error;
};
struct pc_msg_hello {
    uint16_t version_min, version_max;
    uint64_t features;
    uint8_t nonce[16];
    uint8_t purpose;
    struct pc_text build;
};
struct pc_msg_challenge {
    uint16_t version;
    uint64_t features;
    uint8_t nonce[16], proof[16];
    uint8_t keyed; /* the master has a run key */
};
struct pc_msg_auth {
    uint8_t proof[16], incarnation[16];
    uint32_t group, stripes;
    uint8_t observer;
    uint64_t pid;
    struct pc_text host;
    struct pc_array addresses; /* struct pc_address: where its links are accepted */
};
struct pc_msg_welcome {
    uint64_t id, incarnation;
    uint8_t run[16];
    uint32_t dead_timeout_ms, heartbeat_ms;
};
/* Peers to link with. The receiver dials those with dial set and expects the others. */
struct pc_peer_intro {
    uint64_t id;
    uint32_t group, generation, stripes;
    uint8_t dial, token[16];
    struct pc_array addresses;
};
struct pc_msg_peers {
    struct pc_array peers; /* struct pc_peer_intro */
};
struct pc_msg_link_up {
    uint64_t id;
    uint32_t generation;
    uint32_t rtt_us; /* shortest round trip so far; 0: unknown */
    uint32_t bytes_per_ms; /* to that peer, as its traffic has shown; 0: unknown */
};
struct pc_msg_link_down {
    uint64_t id;
    uint32_t generation;
    struct pc_wire_error error;
};

enum pc_call_kind {
    PC_CALL_NONE = 0,
    PC_CALL_CONNECT = 1,
    PC_CALL_UPDATE_TOPOLOGY = 2,
    PC_CALL_PEERS_PENDING = 3,
    PC_CALL_OPTIMIZE_TOPOLOGY = 4,
    PC_CALL_SYNC_STATE = 5,
    PC_CALL_COLLECTIVE = 6,
    PC_CALL_LEAVE = 7,
    PC_CALL_END_STEP = 8,
    PC_CALL_CREATE_GROUP = 9
};
const char *pc_call_name(uint32_t kind);
const char *pc_collective_name(uint32_t collective);
bool pc_collective_has_root(uint32_t collective);
/* Whether contributions are combined; the others only move blocks. */
bool pc_collective_reduces(uint32_t collective);

/* What a member has posted in a step: all of the group the same operations, and for each send somebody the receive. */
struct pc_step_sum {
    uint64_t ops, digest; /* that all take part in: sum of the digests of their tags, seqs and descriptors */
    uint64_t sends, receives, channels; /* sum of the digests of the sends' tags, channels and seqs, less the receives' */
};
enum pc_step_vote {
    PC_VOTE_AGAINST = 0, /* something has failed, and the others know */
    PC_VOTE_FOR = 1,
    PC_VOTE_GIVE_UP = 2 /* against, and this peer waits for nobody: it has its own reason, or has waited long enough */
};
struct pc_msg_call {
    uint8_t kind;
    uint64_t serial; /* counts this peer's joint calls; results name it */
    uint32_t subset; /* PC_CALL_END_STEP: of which group; 0: the whole */
    uint64_t value; /* PC_CALL_END_STEP: enum pc_step_vote */
    struct pc_step_sum step; /* PC_CALL_END_STEP */
    struct pc_array ids; /* PC_CALL_CREATE_GROUP: struct pc_id_item, by rank */
};
struct pc_msg_call_cancel {
    uint64_t serial;
};
struct pc_msg_call_result {
    uint64_t serial;
    uint64_t value; /* of the call; PC_CALL_END_STEP: whether the next step has failed already */
    struct pc_wire_error error; /* code 0: success */
};
struct pc_done {
    struct pc_op_key key;
    uint64_t fingerprint;
};
struct pc_msg_done {
    struct pc_array ops; /* struct pc_done */
};
/* The sender wants this operation failed for all: mismatch, time limit, cancellation, no memory. */
struct pc_msg_op_fail {
    struct pc_op_key key;
    uint8_t in_step; /* it is part of a step, which fails with it */
    struct pc_wire_error error;
};
struct pc_verdict {
    struct pc_op_key key;
    uint8_t commit;
};
struct pc_msg_verdict {
    struct pc_array ops; /* struct pc_verdict */
    uint8_t in_step; /* the aborts among them poison the step */
    struct pc_wire_error error; /* cause of the aborts among them */
};
struct pc_msg_freeze {
    uint64_t epoch;
    uint32_t subset;
};
struct pc_op_state {
    struct pc_op_key key;
    uint64_t fingerprint;
    uint8_t done;
};
struct pc_msg_state {
    uint64_t epoch; /* that of the FREEZE it answers */
    uint32_t subset; /* likewise */
    uint8_t step_open; /* operations of a step that has not been voted on were posted here */
    struct pc_array ops; /* struct pc_op_state: started here and without verdict */
};
struct pc_member_record {
    uint64_t id;
    uint32_t group;
    uint8_t observer, incarnation[16];
    struct pc_address address;
};
struct pc_id_item {
    uint64_t id;
};
struct pc_index_item {
    uint32_t index;
};
/* Of two members, in the codes of pc_log16_of. */
struct pc_link_item {
    uint16_t rtt_us;
    uint16_t up, down; /* bytes per ms from the lower rank to the higher, and back */
};
struct pc_group_record {
    uint32_t group, subset;
    uint64_t epoch; /* in which its member list or a link in use last changed: the epoch of its operations */
    struct pc_array members; /* struct pc_id_item, by rank */
    struct pc_array ring; /* struct pc_index_item: ranks in ring order */
    struct pc_array links; /* struct pc_link_item, by lower rank, then by higher; empty: not known of all pairs */
    uint32_t rtt_us; /* longest of its links; 0: unknown */
    uint8_t ring_only; /* some pair has no link: only the ring is sure to have all that it needs */
    uint8_t step_poisoned; /* a step was open somewhere when a member was removed */
    struct pc_wire_error cause; /* of the end of its operations; code 0: none was lost */
    uint8_t broken; /* the subset is no more, for that reason */
};
struct pc_msg_epoch {
    uint64_t incarnation, number;
    uint64_t topology_serial; /* not 0: the receiver's joint call that this epoch answers */
    struct pc_array members; /* struct pc_member_record, by id */
    struct pc_array groups; /* struct pc_group_record: the receiver's peer group, and subsets that have changed */
    struct pc_array fates; /* struct pc_verdict: of these */
};
/* The sender has destroyed its end of the group: it takes no part in anything of it any more. */
struct pc_msg_leave_group {
    uint32_t subset;
};
/* The receiver is to measure how fast its link to that peer is, with at most so many bytes. */
struct pc_msg_probe {
    uint64_t serial, id;
    uint32_t most_bytes;
};
struct pc_msg_probed {
    uint64_t serial, id;
    uint32_t bytes_per_ms; /* 0: it could not be measured */
};
struct pc_msg_goodbye {
    struct pc_text reason;
};
struct pc_stall {
    uint8_t kind; /* enum pc_call_kind */
    uint8_t collective, in_step; /* of an operation, and its key; of other calls the key names the subset */
    struct pc_op_key key;
    uint64_t blocked_ms;
};
/* All that this peer's threads are blocked in; empty: no longer blocked. */
struct pc_msg_stalled {
    uint64_t heard; /* messages of the master that this peer has taken: it knows of no more */
    uint8_t threads_free; /* others of its threads may go on */
    struct pc_array calls; /* struct pc_stall */
    struct pc_array started; /* struct pc_op_key: all ops posted here and undecided */
};
/* How far the sender has come with tags. Asked by the master with the same keys; their seqs say nothing there. */
struct pc_msg_posted {
    struct pc_array keys; /* struct pc_op_key, seq: of the next operation that would be posted */
};
struct pc_state_key {
    struct pc_text name;
    uint32_t dtype;
    uint64_t count;
    uint8_t may_differ; /* allow_content_inequality */
    uint8_t digest[16];
};
struct pc_msg_sync_offer {
    uint64_t serial, revision;
    uint32_t strategy;
    struct pc_array keys; /* struct pc_state_key */
};
enum pc_sync_role { PC_SYNC_KEEP = 0, PC_SYNC_RECEIVE = 1, PC_SYNC_SERVE = 2 };
struct pc_msg_sync_plan {
    uint64_t serial, sync_id, revision;
    uint8_t role;
    uint64_t source; /* peer to receive from */
    struct pc_array keys; /* struct pc_index_item: indices into the offer of the receiver */
    struct pc_array digests; /* struct pc_digest_item: wanted digest of each of these keys */
};
struct pc_digest_item {
    uint8_t digest[16];
};
struct pc_msg_sync_ready {
    uint64_t sync_id;
    struct pc_wire_error error; /* code 0: all blocks staged and verified */
};
struct pc_msg_status_reply {
    struct pc_text json;
};

/* Links -------------------------------------------------------------------------------------------------------- */

struct pc_msg_link_hello {
    uint16_t version;
    uint64_t from, to;
    uint32_t generation;
    uint16_t stripe, stripes;
    uint8_t proof[16];
};
struct pc_msg_link_ack {
    uint8_t proof[16];
};
enum pc_data_kind {
    PC_DATA_PARTIAL = 0, /* to be combined: a contribution, or a combination of some */
    PC_DATA_FINAL = 1,
    PC_DATA_WANT_READY = 2 /* no payload: the sender waits for READY */
};
/* A segment. elems: of the whole chunk, as the sender knows it. */
struct pc_msg_data {
    struct pc_op_key key;
    struct pc_op_shape shape;
    uint64_t step;
    uint64_t weight; /* sum over the contributions in it; 0: there are none, and no payload */
    uint64_t elems;
    uint32_t chunk, segment;
    uint8_t kind; /* enum pc_data_kind */
    uint8_t eager; /* 1: of the eager part, sent without READY */
};
/* The sender has posted the operation: the receiver may send it so many elements of partial and of final values in all. */
struct pc_msg_ready {
    struct pc_op_key key;
    struct pc_op_shape shape;
    uint64_t step, weight, credit, final_credit;
};
/* So much more of the eager part, payload and PC_EAGER_FRAME_BYTES for each frame, waits at the receiver no more. */
struct pc_msg_eager_taken {
    uint32_t generation; /* of the link that it came over */
    uint32_t bytes;
};
/* A part of a burst of so many bytes. */
struct pc_msg_probe_data {
    uint64_t serial;
    uint32_t burst_bytes;
};
/* The burst is complete: so much of it came in that time, after its first frame. */
struct pc_msg_probe_ack {
    uint64_t serial, elapsed_ns;
    uint32_t burst_bytes, timed_bytes;
};
struct pc_msg_state_ref {
    uint64_t sync_id;
    uint32_t key, block; /* key: index in the offer of the source's group content */
};

struct pc_message_info {
    uint8_t type;
    bool bulk; /* may carry a bulk part */
    const struct pc_schema *schema;
};
/* All messages; a NULL schema ends the table. */
extern const struct pc_message_info pc_messages[];
/* NULL for an unknown type. */
const struct pc_message_info *pc_message_info(uint8_t type);

/* Largest structure above, for a decode buffer on the stack. */
#define PC_MESSAGE_STRUCT_MAX 512

/* Error record to wire form and back; the wire form points into the record. */
struct pc_wire_error pc_error_to_wire(const pc_error *error);
void pc_error_from_wire(const struct pc_wire_error *wire, pc_error *error);

/* "1.2.3.4:5", "[::1]:5". */
void pc_address_format(const struct pc_address *address, char *out, size_t out_bytes);
/* 127.0.0.0/8, ::1, and the first as IPv4-mapped. */
bool pc_address_is_loopback(const struct pc_address *address);

/* Operations between two members have identities of their own for each direction. Ids count from 1 and fit. */
static inline uint64_t pc_channel(uint64_t source_id, uint64_t target_id) {
    return source_id << 32 | (target_id & UINT32_MAX);
}
/* Of a receive from anybody that nobody has sent to: no operation yet, and its seq is when it was called. */
static inline uint64_t pc_channel_to(uint64_t target_id) {
    return pc_channel(0, target_id);
}
static inline uint64_t pc_channel_source(uint64_t channel) {
    return channel >> 32;
}
static inline uint64_t pc_channel_target(uint64_t channel) {
    return channel & UINT32_MAX;
}

bool pc_op_key_equal(const struct pc_op_key *a, const struct pc_op_key *b);
bool pc_op_shape_equal(const struct pc_op_shape *a, const struct pc_op_shape *b);
/* "all_reduce: sum of 1000 x float32" */
void pc_op_shape_format(const struct pc_op_shape *shape, char *out, size_t out_bytes);
/* Never 0. */
uint64_t pc_op_shape_fingerprint(const struct pc_op_shape *shape);

#endif
