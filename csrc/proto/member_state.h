/*
 * K3, private to member*.c: the state of a member, and what its parts ask of each other.
 *   member.c          life, events of the driver, calls, timers
 *   member_control.c  conversation with the master: admission, epochs, verdicts
 *   member_groups.c   the peer group, and groups made of some of its members
 *   member_links.c    links to other peers
 *   member_ops.c      operations: identity, posting, verdict, steps
 *   member_data.c     operations: frames in and out, credit
 *   member_watch.c    operations: reports to the master, time limits
 *   member_sync.c     transfer of shared state
 *   member_probe.c    measuring of links
 */
#ifndef PC_MEMBER_STATE_H
#define PC_MEMBER_STATE_H

#include "proto/collective.h"
#include "proto/link.h"
#include "proto/member.h"

/* Named by what is expected next. Any failure before MEMBER leads to IDLE, after it to LOST; CONNECT starts anew. */
enum pc_member_phase {
    PC_MEMBER_IDLE, /* a CONNECT call */
    PC_MEMBER_DIALING, /* the connection to the master */
    PC_MEMBER_CHALLENGE,
    PC_MEMBER_WELCOME,
    PC_MEMBER_JOINING, /* the epoch that admits */
    PC_MEMBER_MEMBER, /* calls */
    PC_MEMBER_LOST /* out of the run: nothing but CONNECT */
};

enum pc_member_role { PC_ROLE_CONTROL = 1, PC_ROLE_INBOUND, PC_ROLE_STRIPE };

enum {
    PC_INBOUND_MAX = 64, /* unproved connections; beyond, the oldest goes */
    PC_TAGS_MAX = 1 << 20, /* distinct tags within an epoch */
    PC_TAG_BUCKETS = 64,
    /* The eager part, and for all that the other end may have posted a READY and the request for one. */
    PC_HELD_LINK_BYTES = PC_EAGER_LINK_BYTES + 2 * PC_OPS_MAX * PC_EAGER_FRAME_BYTES,
    PC_SYNC_WINDOW = 4 /* blocks asked for and not arrived */
};

struct pc_member_epoch {
    uint64_t number, incarnation;
    struct pc_member_record *members;
    size_t member_count, member_capacity;
};

/* Members that make collectives together, as this peer sees them. */
struct pc_member_group {
    struct pc_list node;
    uint32_t number; /* of the peer group */
    uint32_t subset; /* 0: all of it; else the number of a group of some of it */
    uint64_t heard_from; /* of a forming one: the member that spoke of it first */
    bool frozen; /* a FREEZE came, the epoch has not */
    pc_error broken; /* why nothing can be done with it any more; code 0: it is whole */
    uint64_t epoch; /* identity of its operations */
    uint64_t *ids; /* by rank */
    uint32_t *ring; /* ranks in ring order */
    size_t n, ids_capacity, ring_capacity;
    uint32_t rank; /* PC_RANK_NONE: this peer is not in it */
    struct pc_list *tags; /* buckets, of which there are the more the more tags there are */
    uint32_t tag_buckets, tag_count;
    struct pc_list few_tags[PC_TAG_BUCKETS];
    uint32_t rtt_us; /* longest of its links; 0: unknown */
    const struct pc_cost *cost; /* what algorithms are chosen by; NULL: the round trip alone */
    void *cost_memory;
    size_t cost_capacity;
    bool ring_only; /* some pair has no link */
    uint64_t members_epoch; /* in which its members last changed */
    bool step_open; /* operations of a step were posted, and it has not been voted on */
    struct pc_step_sum step; /* of that */
    pc_error step_poison; /* why the step fails; code 0: it does not */
};

/* State of the transfer part of a shared-state call. */
struct pc_member_sync {
    uint64_t id; /* 0: none */
    struct pc_call *call;
    enum pc_sync_role role;
    uint64_t source;
    struct pc_array keys, digests; /* copies of the plan's */
    struct pc_arena arena;
    uint32_t key_at; /* index into keys whose digests are expected, or blocks asked for */
    uint8_t *source_blocks; /* digests of the blocks of that tensor, as the source has them */
    uint32_t block_at, blocks_out;
    struct pc_list staged; /* verified or arriving blocks */
    struct pc_list regions; /* their memory, a region for each tensor; the current one last */
    bool verified;
    uint64_t tx_bytes, rx_bytes;
    uint64_t revision;
};

/* A receiver can hear from the master sooner than its source: its first request waits for the source's plan. */
struct pc_early_want {
    uint64_t peer;
    struct pc_msg_state_ref ref;
};

/* A link is being measured: outwards, and inwards for the other end. */
struct pc_member_probe {
    uint64_t serial, peer; /* serial 0: none */
    uint64_t begun_ns, sent_bytes;
    uint32_t most_bytes, burst_bytes;
    uint32_t bytes_per_ms, bytes_per_ms_before; /* of the last burst and the one before; 0: none yet */
    uint32_t alike; /* bursts in a row that the link has held back */
    uint64_t in_serial, in_peer, in_first_ns;
    uint64_t in_bytes, in_timed_bytes;
    uint32_t in_burst_bytes;
    uint8_t *scrap;
};

struct pc_member {
    struct pc_machine machine;
    struct pc_member_config config;
    uint8_t *run_key;
    enum pc_member_phase phase;
    pc_error lost; /* why the run was left */
    struct pc_address addresses[PC_ADDRESSES_MAX];
    uint32_t address_count;
    uint8_t incarnation[16], nonce[16];
    uint64_t id;
    uint8_t run[16];
    uint64_t dead_timeout_ns, heartbeat_ns;

    struct pc_stream *control;
    uint64_t control_beat_ns;
    uint64_t heard; /* messages of the master */
    struct pc_list inbound; /* streams without a proved hello */
    uint32_t inbound_count;
    struct pc_list links;
    struct pc_tx_pool tx_pool;
    struct pc_pool pool;
    struct pc_arena arena; /* of the message in hand */

    struct pc_member_epoch epoch;
    struct pc_member_group group; /* the peer group, first of groups */
    struct pc_list groups;
    struct pc_list forming; /* subsets that others know of already, or say so: one of them may be made */
    uint32_t newest_subset; /* numbers count up: a frame for an older one that is not there comes too late */
    bool poisoned; /* some step is */
    bool topology_call; /* update_topology is out: new operations wait for its end */

    struct pc_list calls; /* joint calls and CONNECT */
    struct pc_list queued; /* operations that wait until nothing is frozen */
    struct pc_list parked; /* receives from whoever sends first */
    struct pc_list offers; /* tags with which something is new for them */
    uint64_t next_serial;
    uint32_t posted_count;
    uint64_t ops_due_ns; /* no time limit of an operation passes before */
    struct pc_list spare_ops;
    struct pc_done *done; /* to be sent at the end of this event */
    size_t done_count, done_capacity;
    struct pc_member_sync sync;
    struct pc_member_probe probe;
    struct pc_early_want *early_wants;
    size_t early_count, early_capacity;

    uint64_t tick_ns; /* deadline as last told; tells how late a tick is */
    uint64_t stall_ns; /* next report of blocked calls */
    const char *no_memory; /* for what, without which the run cannot go on for this peer; NULL: there was enough */
    bool stalled; /* the master believes that this peer is blocked */
    bool threads_free; /* see pc_member_set_threads_free */
    pcclStats_t stats;
};

/* Whom a machine pointer of a stream belongs to. */
extern const struct pc_stream_owner pc_member_stream_owner;

/* member.c ------------------------------------------------------------------------------------------------------ */
struct pc_stream *pc_member_stream(struct pc_member *member, enum pc_member_role role, uint64_t now_ns);
void pc_member_complete(struct pc_member *member, struct pc_call *call, const pc_error *error);
/* Ends all of the run for this peer: calls fail with error, connections close. */
void pc_member_lose(struct pc_member *member, const pc_error *error, bool flush_control);
/* The same, because there is no memory for what: at the end of the event, when nobody is in the middle of anything. */
void pc_member_no_memory(struct pc_member *member, const char *what);
/* Reports a defect of the other end on stream: it is closed; what that means follows from its role. */
void pc_member_break(struct pc_member *member, struct pc_stream *stream, const pc_error *error, uint64_t now_ns);
const struct pc_member_record *pc_member_find(const struct pc_member *member, uint64_t id);

/* member_control.c ---------------------------------------------------------------------------------------------- */
void pc_member_tell_master(struct pc_member *member, uint8_t type, const void *message);
void pc_member_say_hello(struct pc_member *member);
pc_status pc_member_control_frame(struct pc_member *member, const struct pc_frame *frame, struct pc_cursor meta,
                                  uint64_t now_ns);
void pc_member_control_tick(struct pc_member *member, uint64_t now_ns);

/* member_groups.c ----------------------------------------------------------------------------------------------- */
void pc_member_group_init(struct pc_member_group *group, uint32_t number, uint32_t subset);
/* The peer group for 0; NULL: there is none of that number, or no more. */
struct pc_member_group *pc_member_group(struct pc_member *member, uint32_t subset);
/* Where frames of an operation that come from a member belong; *group NULL: nowhere any more. */
pc_status pc_member_group_of(struct pc_member *member, const struct pc_op_key *key, uint64_t from,
                             struct pc_member_group **group);
/* What an epoch says of the groups. */
pc_status pc_member_update_groups(struct pc_member *member, const struct pc_msg_epoch *message);
/* The call that would have made it has ended. */
void pc_member_drop_forming(struct pc_member *member);
/* All but the peer group. */
void pc_member_drop_groups(struct pc_member *member);

/* member_links.c ------------------------------------------------------------------------------------------------ */
void pc_member_introduce(struct pc_member *member, const struct pc_peer_intro *intro, uint64_t now_ns);
struct pc_link *pc_member_link(const struct pc_member *member, uint64_t peer);
void pc_member_stripe_opened(struct pc_member *member, struct pc_stream *stream, bool loopback, uint64_t now_ns);
/* The link loses a stripe, and with it everything. Reports it to the master. */
void pc_member_link_lost(struct pc_member *member, struct pc_link *link, const pc_error *error, uint64_t now_ns);
/* Tells the master how long the links are now. */
void pc_member_report_links(struct pc_member *member);
/* Closes the link and forgets it: the peer has left. */
void pc_member_link_drop(struct pc_member *member, struct pc_link *link);
pc_status pc_member_link_frame(struct pc_member *member, struct pc_stream *stream, const struct pc_frame *frame,
                               struct pc_cursor meta, uint64_t now_ns);
void pc_member_links_tick(struct pc_member *member, uint64_t now_ns);
uint64_t pc_member_links_deadline(const struct pc_member *member);

/* member_ops.c -------------------------------------------------------------------------------------------------- */
void pc_member_post_collective(struct pc_member *member, struct pc_call *call, uint64_t now_ns);
void pc_member_start_queued(struct pc_member *member, uint64_t now_ns);
/* Something of the step of group has failed that has no place in the order of its tag; the master is told. */
void pc_member_fail_step(struct pc_member *member, struct pc_member_group *group, uint64_t number, const pc_error *error);
/* Starts receives for which somebody has sent. */
void pc_member_match_parked(struct pc_member *member, uint64_t now_ns);
/* Ends parked receives: call, or all of them, or all of a step. */
enum pc_parked { PC_PARKED_ONE, PC_PARKED_ALL, PC_PARKED_STEP };
/* group NULL: of all groups. */
void pc_member_end_parked(struct pc_member *member, const struct pc_member_group *group, enum pc_parked which,
                          const struct pc_call *call, const pc_error *error);
/* Verdicts of the master. error says why, for aborts; in_step: they poison the step. */
void pc_member_verdict(struct pc_member *member, const struct pc_verdict *verdict, const pc_error *error, bool in_step,
                       uint64_t now_ns);
/* Ends all operations with error: the run is lost for this peer. */
void pc_member_ops_lose(struct pc_member *member, const pc_error *error);
/* After a flip that changed this group: what is left of older epochs goes, seqs start again. */
void pc_member_ops_flip(struct pc_member *member, struct pc_member_group *group, const pc_error *cause);
/* Calls of operations of group that have not ended. */
uint32_t pc_member_ops_posted(struct pc_member *member, struct pc_member_group *group);
/* Forgets what was held for a group without posted operations, and its tags. */
void pc_member_ops_forget(struct pc_member_group *group);
/* All operations of the step fail now, and those posted later until it is voted on. */
void pc_member_poison_step(struct pc_member *member, struct pc_member_group *group, const pc_error *error);
void pc_member_end_step(struct pc_member_group *group);
void pc_member_flush_done(struct pc_member *member);
void pc_member_ops_fini(struct pc_member *member);

/* member_data.c ------------------------------------------------------------------------------------------------- */
pc_status pc_member_data(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_data *data,
                         uint32_t bulk_len, uint64_t now_ns);
pc_status pc_member_data_arrived(struct pc_stream *stream, uint64_t now_ns);
pc_status pc_member_ready(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_ready *ready,
                          uint64_t now_ns);
/* The other end has less of the eager part in its memory. */
void pc_member_eager_taken(struct pc_link *link, const struct pc_msg_eager_taken *message);
void pc_member_data_sent(struct pc_member *member, struct pc_tx *tx, uint64_t now_ns);
/* link goes: what came over it for calls that were not made yet goes with it. */
void pc_member_ops_unhold(struct pc_member *member, const struct pc_link *link);

/* member_watch.c ------------------------------------------------------------------------------------------------ */
void pc_member_ops_tick(struct pc_member *member, uint64_t now_ns);
/* group NULL: not here any more. */
void pc_member_report_state(struct pc_member *member, struct pc_member_group *group, const struct pc_msg_freeze *freeze);
void pc_member_report_stalls(struct pc_member *member, uint64_t now_ns);
pc_status pc_member_report_posted(struct pc_member *member, const struct pc_msg_posted *asked);
void pc_member_cancel_collective(struct pc_member *member, struct pc_call *call, pc_status code, const char *why);

/* member_probe.c ------------------------------------------------------------------------------------------------ */
void pc_member_probe(struct pc_member *member, const struct pc_msg_probe *message, uint64_t now_ns);
pc_status pc_member_probe_data(struct pc_member *member, struct pc_stream *stream, const struct pc_msg_probe_data *data,
                               uint32_t bulk_len);
void pc_member_probe_arrived(struct pc_member *member, struct pc_stream *stream, uint64_t now_ns);
void pc_member_probe_ack(struct pc_member *member, struct pc_link *link, const struct pc_msg_probe_ack *ack,
                         uint64_t now_ns);

/* member_sync.c ------------------------------------------------------------------------------------------------- */
void pc_member_sync_offer(struct pc_member *member, struct pc_call *call);
pc_status pc_member_sync_plan(struct pc_member *member, const struct pc_msg_sync_plan *plan);
pc_status pc_member_sync_frame(struct pc_member *member, struct pc_stream *stream, const struct pc_frame *frame,
                               const struct pc_msg_state_ref *ref);
pc_status pc_member_sync_arrived(struct pc_member *member, struct pc_stream *stream);
/* The verdict on the call: apply what is staged, or drop it. */
void pc_member_sync_end(struct pc_member *member, bool commit);

#endif
