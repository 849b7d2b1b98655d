/*
 * K3, private to master*.c: the state of the master, and what its parts ask of each other.
 *   master.c          life, events of the driver, timers
 *   master_join.c     handshake, introductions, link reports, admission
 *   master_epoch.c    removal, flush, fates, epochs
 *   master_ops.c      verdicts of operations
 *   master_plan.c     rings, and the links that groups are told of
 *   master_search.c   better rings, found later
 *   master_probe.c    measuring of links
 *   master_groups.c   groups of some members: making, breaking, forgetting
 *   master_calls.c    joint calls: topology, synchronisation of the shared state
 *   master_steps.c    votes on steps
 *   master_deadlock.c calls that can never match
 *   master_status.c   the report for `pccl status`
 */
#ifndef PC_MASTER_STATE_H
#define PC_MASTER_STATE_H

#include "math/auth.h"
#include "proto/election.h"
#include "proto/link.h"
#include "proto/master.h"

/* Named by what is expected next. */
enum pc_peer_state {
    PC_PEER_HELLO,
    PC_PEER_AUTH, /* or a status request */
    PC_PEER_STATUS, /* proved, only asks */
    PC_PEER_DIAL_BACK,
    PC_PEER_PENDING, /* registered: links, then admission */
    PC_PEER_MEMBER,
    PC_PEER_GONE /* removed, waits for the epoch that says so */
};

enum {
    PC_UNPROVED_MAX = 64,
    PC_UNPROVED_MAX_PER_IP = 4,
    PC_STALLS_MAX = 64,
    PC_ABORTED_MAX = 1024, /* aborted operations remembered, against DONEs under way */
    PC_OP_BUCKETS = 256,
    PC_SUBSETS_MAX = 1024, /* groups of some members, in the run */
    PC_CORROBORATE_MS = 250, /* a loss that only one side has seen */
    PC_FLUSH_MS = 2000 /* to answer a FREEZE */
};

/* A call of PC_CALL_END_STEP. */
struct pc_vote {
    uint32_t subset;
    bool yes; /* nothing has failed there */
    uint64_t serial, cast_ns;
    uint64_t epoch; /* of the group, then */
    struct pc_step_sum step; /* what was posted */
};

/* Steps of a group that are over although the peer has not voted on them. */
struct pc_owed {
    uint32_t subset, steps;
    uint64_t to; /* who did not wait for its vote on the last of them */
};

/* What a peer was asked about one tag. */
struct pc_answer {
    struct pc_op_key key; /* seq: how many it has posted with that tag, once known */
    bool asked, known;
};

struct pc_peer {
    struct pc_list node; /* in order of registration; unproved ones in a list of their own */
    enum pc_peer_state state;
    uint64_t id;
    struct pc_stream *stream; /* NULL: the control connection is lost */
    uint64_t lost_ns; /* when it was lost */
    uint8_t client_nonce[16], nonce[16], incarnation[16];
    uint8_t purpose;
    uint32_t group, stripes;
    bool observer, young; /* young: no operation committed since admission */
    uint64_t pid;
    char host[64], address_text[64], unreached[96];
    struct pc_address addresses[PC_ADDRESSES_MAX];
    uint32_t address_count;
    uint64_t registered_ns, beat_ns;

    uint8_t call; /* enum pc_call_kind */
    uint64_t *wanted; /* of PC_CALL_CREATE_GROUP: ids by rank */
    size_t wanted_count, wanted_capacity;
    uint64_t call_serial, call_ns;
    uint8_t *offer_bytes; /* the message of a shared-state call, and decoded */
    struct pc_arena offer_arena;
    struct pc_msg_sync_offer offer;
    bool standing; /* took part in the last successful synchronisation */
    uint64_t sync_id; /* transfer that it has a part in */
    bool sync_waited; /* its SYNC_READY is awaited */
    uint64_t sync_source;

    struct pc_stall stalls[PC_STALLS_MAX]; /* last report */
    uint32_t stall_count;
    uint64_t told; /* messages sent to it, but for heartbeats */
    uint32_t stall_reports; /* since the last verdict of the group: older ones say nothing about now */
    struct pc_op_key *started;
    size_t started_count, started_capacity;

    bool stuck; /* found while looking for calls that can never match: it cannot go on by itself */

    struct pc_answer *answers; /* how far it has come, as asked since its last report */
    size_t answer_count, answer_capacity;

    struct pc_vote *votes; /* on its steps, not answered yet: one of each group at most */
    size_t vote_count, vote_capacity;
    struct pc_owed *owed; /* votes; one entry for each group at most */
    size_t owed_count, owed_capacity;

    uint32_t freeze_waited; /* STATEs that are awaited */
    uint64_t freeze_due_ns; /* it is removed when it has not answered by then */
    struct pc_op_state *flushed; /* of its STATEs */
    size_t flushed_count, flushed_capacity;
    pc_error why; /* of its removal */
};

struct pc_pair {
    uint64_t low, high; /* ids; high dials */
    uint32_t generation, failures;
    uint32_t measured_us; /* round trip, the latest word of either end; 0: unknown */
    uint32_t measured_rate[2]; /* bytes per ms, [0] from low to high; 0: unknown */
    uint32_t rtt_us, rate[2]; /* what plans are made from: change only when nothing is in flight */
    uint8_t up, down; /* bit 0: low has reported, bit 1: high */
    bool bad; /* not used any more: the plan goes round it */
    bool renew; /* to be introduced again when the epoch is out */
    uint64_t down_ns, failed_ns;
    pc_error error;
};

/* The members of a peer group, or a subset of them in an order of their own. */
struct pc_group {
    struct pc_list node;
    uint32_t number; /* of the peer group */
    uint32_t subset; /* 0: all of it; else counted through the run */
    uint64_t epoch;
    uint64_t members_epoch; /* in which its members last changed */
    uint64_t *ids; /* by rank */
    uint32_t *ring; /* ranks in ring order */
    struct pc_link_item *links; /* as in its record */
    size_t n, link_count, ids_capacity, ring_capacity, links_capacity;
    uint32_t rtt_us; /* longest of its links */
    bool ring_only; /* some pair has no link: nothing but the ring is sure to have all of its links */
    bool step_failed; /* something in the step in progress, so somebody will vote against it */
    uint64_t given_up_by; /* who has given up its vote on it: it is over with the epoch to come; 0: nobody */
    pc_error step_end; /* what those who have voted are told then; code 0: who gave up, and who had not voted */
    bool flushing; /* its members are frozen; a new epoch of the group follows */
    pc_error cause; /* of that; code 0: nothing was lost */
    struct pc_ring_job *search; /* what its ring was searched for last, and found; NULL: there was nothing to search */
    struct pc_ring_job *better; /* the answer of a longer search for the same; NULL: none so far */
    bool searched; /* it has been asked for */
    uint64_t revision; /* expected next by a synchronisation; 0: none yet */
    uint64_t sync_id; /* transfer in progress; 0: none */
    uint64_t sync_revision;

    /* Of a subset. */
    uint64_t *left; /* ids of those that have destroyed their end of it */
    size_t left_count, left_capacity;
    bool replan; /* round trips were measured anew, or a better ring was found */
    bool broken; /* the epoch to come says so, and then it is forgotten */
    uint64_t lost; /* the member that it lost; 0: a link that it cannot do without */
};

struct pc_pending_op {
    struct pc_list node;
    struct pc_op_key key;
    uint64_t fingerprint, first_ns;
    uint64_t *done; /* ids */
    size_t done_count, done_capacity;
};

struct pc_probe_pair {
    uint64_t ids[2], serial;
    uint32_t round;
    bool waited[2]; /* for the report of the first, the second */
};

/* All links are being measured. */
struct pc_probe {
    bool active;
    struct pc_probe_pair *pairs; /* by round */
    size_t count, capacity;
    size_t first, end; /* of the round in progress */
    uint64_t deadline_ns;
};

struct pc_master {
    struct pc_machine machine;
    struct pc_master_config config;
    uint8_t *run_key;
    uint8_t secret[32]; /* link tokens are made from it */
    struct pc_list peers, unproved, groups;
    uint32_t unproved_count;
    uint64_t next_id, next_sync_id, next_probe, next_search;
    bool searching; /* a PC_ACTION_SEARCH is not answered yet */
    uint32_t next_subset, subset_count;
    struct pc_pair *pairs;
    size_t pair_count, pair_capacity;
    struct pc_tx_pool tx_pool;
    struct pc_arena arena;

    struct pc_probe probe;
    uint64_t epoch;
    bool flushing;
    bool flip_wanted; /* the next epoch is due as soon as nothing is awaited */

    struct pc_list ops[PC_OP_BUCKETS], spare_ops;
    uint64_t op_count;
    struct pc_op_key aborted[PC_ABORTED_MAX];
    uint32_t aborted_at;
    struct pc_verdict *commits; /* verdicts of this event, sent at its end */
    size_t commit_count, commit_capacity;

    uint64_t tick_ns;
    bool ending;
};

#define PC_EACH_PEER(master, peer)                                                                                     \
    for (struct pc_list *peer##_node = (master)->peers.next, *peer##_next = peer##_node->next;                         \
         peer##_node != &(master)->peers; peer##_node = peer##_next, peer##_next = peer##_node->next)                  \
        for (struct pc_peer *peer = PC_LIST_ENTRY(peer##_node, struct pc_peer, node); peer != NULL; peer = NULL)

extern const struct pc_stream_owner pc_master_stream_owner;

static inline bool pc_ids_hold(const uint64_t *ids, size_t count, uint64_t id) {
    for (size_t i = 0; i < count; i++) {
        if (ids[i] == id) return true;
    }
    return false;
}

/* master.c ------------------------------------------------------------------------------------------------------ */
struct pc_peer *pc_master_find(struct pc_master *master, uint64_t id);
void pc_master_tell(struct pc_master *master, struct pc_peer *peer, uint8_t type, const void *message);
void pc_master_free_peer(struct pc_master *master, struct pc_peer *peer);
/* Sends a refusal and closes; the peer was never a member. */
void pc_master_refuse(struct pc_master *master, struct pc_peer *peer, const pc_error *error);
bool pc_master_votes(const struct pc_peer *peer); /* a member that is not an observer */
void pc_master_name_peer(const struct pc_peer *peer, char *out, size_t out_bytes);

/* master_join.c ------------------------------------------------------------------------------------------------- */
pc_status pc_master_handshake(struct pc_master *master, struct pc_peer *peer, uint8_t type, struct pc_cursor meta,
                              uint64_t now_ns);
struct pc_pair *pc_master_pair(struct pc_master *master, uint64_t a, uint64_t b, bool create);
void pc_master_introduce(struct pc_master *master, struct pc_pair *pair);
void pc_master_forget_pairs(struct pc_master *master, uint64_t id);
void pc_master_link_up(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_link_up *up);
void pc_master_link_down(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_link_down *down,
                         uint64_t now_ns);
/* Acts on a loss that both ends, or the clock, have confirmed. */
void pc_master_pair_failed(struct pc_master *master, struct pc_pair *pair, uint64_t now_ns);
bool pc_master_anyone_admissible(struct pc_master *master);
/* Makes members of those that have every link of the list they join; true if there were any. */
bool pc_master_admit(struct pc_master *master);
void pc_master_join_tick(struct pc_master *master, uint64_t now_ns);

/* master_epoch.c ------------------------------------------------------------------------------------------------ */
struct pc_group *pc_master_group(struct pc_master *master, uint32_t number, bool create);
/* The group whose operation key is; NULL: there is none, or no more. */
struct pc_group *pc_master_group_of(const struct pc_master *master, const struct pc_op_key *key);
/* Whether the operations, joint calls and votes of group wait for peer. */
bool pc_master_in_group(const struct pc_peer *peer, const struct pc_group *group);
/* peer is no member from now on. evict: tell it why, in case that it lives. */
void pc_master_remove(struct pc_master *master, struct pc_peer *peer, const pc_error *why, bool evict,
                      uint64_t now_ns);
/* Freezes the groups that both belong to; the epoch follows when all of these have answered. */
void pc_master_freeze(struct pc_master *master, const struct pc_peer *a, const struct pc_peer *b, const pc_error *cause,
                      uint64_t now_ns);
/* The same for one group, whose members stay, and may be silent for as long as ever. */
void pc_master_flush(struct pc_master *master, struct pc_group *group, const pc_error *cause, uint64_t now_ns);
void pc_master_state(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_state *state);
/* Commits the epoch that is wanted, if nothing is awaited. topology: it answers update_topology. */
void pc_master_try_flip(struct pc_master *master);
void pc_master_flip(struct pc_master *master, bool topology);
void pc_master_flush_tick(struct pc_master *master, uint64_t now_ns);

/* master_plan.c ------------------------------------------------------------------------------------------------- */
/*
 * The ring of ids, which are to be the members of group, into ring; what the group is told of its links. changed: that
 * is something else than before. Returns false when no ring avoids the bad pairs.
 */
bool pc_master_order_ring(struct pc_master *master, struct pc_group *group, const uint64_t *ids, uint32_t n,
                          uint32_t *ring, bool *changed);
uint32_t pc_master_longest_rtt(const struct pc_master *master, const uint64_t *ids, uint32_t n);

/* master_search.c ----------------------------------------------------------------------------------------------- */
/* The ring for request, which a short search finds unless the same was asked before. False: none was found. */
bool pc_master_search_ring(struct pc_master *master, struct pc_group *group, const struct pc_ring_request *request,
                           uint32_t *ring);
/* Nothing is in flight: rings found later take the place of those in use, in the next epoch. True: there were some. */
bool pc_master_adopt_rings(struct pc_master *master);
/* Asks for a longer search for the next group that could do with one, unless one is under way. */
void pc_master_search_on(struct pc_master *master);
void pc_master_drop_search(struct pc_group *group);

/* master_probe.c ------------------------------------------------------------------------------------------------ */
/* All are in PC_CALL_OPTIMIZE_TOPOLOGY: measures, begins with that if it has to. True: all is measured. */
bool pc_master_probe(struct pc_master *master, uint64_t now_ns);
void pc_master_probed(struct pc_master *master, const struct pc_peer *peer, const struct pc_msg_probed *probed);

/* master_groups.c ----------------------------------------------------------------------------------------------- */
/* All of group are in PC_CALL_CREATE_GROUP. */
void pc_master_create_subset(struct pc_master *master, const struct pc_group *group);
/* peer has destroyed its end. */
void pc_master_leave_subset(struct pc_master *master, const struct pc_peer *peer, uint32_t subset);
/* Whether peer is one of a subset, dead or alive, and has not destroyed its end. */
bool pc_master_listed(const struct pc_group *subset, uint64_t id);
/* "[1, 2, 3]", cut where there is no more room. */
void pc_master_list_ids(const uint64_t *ids, size_t count, char *out, size_t out_bytes);
/* Of all the peers between which the operation is, one that has destroyed its end; 0: none. */
uint64_t pc_master_who_left(const struct pc_group *group, const struct pc_op_key *key);
/* For an epoch: whether it is broken, or has a new ring. True if its operations end here. */
bool pc_master_plan_subset(struct pc_master *master, struct pc_group *subset);
/* Why operations of group end with the epoch, or why it is broken; code 0: nothing was lost. */
void pc_master_cause(struct pc_master *master, const struct pc_group *group, pc_error *cause);
void pc_master_free_group(struct pc_master *master, struct pc_group *group);

/* master_ops.c -------------------------------------------------------------------------------------------------- */
void pc_master_done(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_done *done, uint64_t now_ns);
void pc_master_op_fail(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_op_fail *fail);
/* in_step: the step of the operation is poisoned. */
void pc_master_abort_op(struct pc_master *master, const struct pc_op_key *key, const pc_error *error, bool in_step);
/* Whether peer takes part in an operation of group. */
bool pc_master_takes_part(const struct pc_peer *peer, const struct pc_group *group, const struct pc_op_key *key);
/* The verdict on an operation of a flushed group. */
bool pc_master_fate(struct pc_master *master, const struct pc_group *group, const struct pc_op_key *key);
void pc_master_forget_ops(struct pc_master *master, const struct pc_group *group);
void pc_master_send_commits(struct pc_master *master);
void pc_master_ops_fini(struct pc_master *master);

/* master_calls.c ------------------------------------------------------------------------------------------------ */
void pc_master_call(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, uint64_t now_ns);
void pc_master_call_cancel(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call_cancel *cancel,
                           uint64_t now_ns);
pc_status pc_master_sync_offer(struct pc_master *master, struct pc_peer *peer, const struct pc_frame *frame,
                               struct pc_cursor meta, uint64_t now_ns);
void pc_master_sync_ready(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_sync_ready *ready);
/* A transfer of the group cannot go on. */
void pc_master_sync_fail(struct pc_master *master, struct pc_group *group, const pc_error *error);
/* peer is leaving: what that means for a transfer. */
void pc_master_sync_lose(struct pc_master *master, const struct pc_peer *peer, const pc_error *error);
void pc_master_answer(struct pc_master *master, struct pc_peer *peer, uint64_t value, const pc_error *error);
/* Runs every joint call for which all have come, and fails those that can never match. */
void pc_master_evaluate(struct pc_master *master, uint64_t now_ns);
/* master_steps.c ------------------------------------------------------------------------------------------------ */
/* The peer group of peer, or a subset of it; NULL: it is no more. */
struct pc_group *pc_master_group_of_peer(const struct pc_master *master, const struct pc_peer *peer, uint32_t subset);
/* NULL: it has not voted. */
struct pc_vote *pc_master_vote_of(const struct pc_peer *peer, uint32_t subset);
bool pc_master_anybody_votes(const struct pc_master *master);
void pc_master_vote(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_call *call, uint64_t now_ns);
/* Ends the steps that peer has voted on, for error. */
void pc_master_votes_end(struct pc_master *master, struct pc_peer *peer, const pc_error *error, uint64_t now_ns);
/* False: there is no vote of this serial. */
bool pc_master_vote_cancel(struct pc_master *master, struct pc_peer *peer, uint64_t serial, uint64_t now_ns);
void pc_master_vote_answer(struct pc_master *master, struct pc_peer *peer, uint32_t subset, const pc_error *error);
/* Ends the step of group if all have voted. */
void pc_master_count_votes(struct pc_master *master, struct pc_group *group);
/* group is flushed, and gets its epoch: what that means for its step, before the epoch is sent and after it. */
void pc_master_step_flushed(struct pc_master *master, struct pc_group *group);
void pc_master_step_over(struct pc_master *master, struct pc_group *group);
/* The subset is no more: its number is never used again. */
void pc_master_forget_owed(struct pc_master *master, uint32_t subset);
/* The votes on a step of a subset that is broken: they count if all survivors have voted. */
void pc_master_end_broken(struct pc_master *master, struct pc_group *subset);
/* master_deadlock.c --------------------------------------------------------------------------------------------- */
/* What peer is blocked in. */
pc_status pc_master_stalled(struct pc_peer *peer, const struct pc_msg_stalled *stalled);
pc_status pc_master_posted(struct pc_peer *peer, const struct pc_msg_posted *posted);
/* What peer has reported is out of date. */
void pc_master_unblock(struct pc_peer *peer);
/* Something in group moved, for those that take part in key, or for all of it (NULL). */
void pc_master_moved(struct pc_master *master, const struct pc_group *group, const struct pc_op_key *key);
/* Fails the calls of a group whose members all wait for each other; asks them first for what it has to know. */
void pc_master_find_deadlock(struct pc_master *master, uint64_t now_ns);

/* master_status.c ----------------------------------------------------------------------------------------------- */
void pc_master_status(struct pc_master *master, struct pc_peer *peer, uint64_t now_ns);

#endif
