/*
 * K3, private to member_ops.c, member_any.c, member_data.c and member_watch.c: an operation of a member.
 *
 * Life of an operation, named by what is expected next:
 *   HELD      frames of peers came before the call: what they carried waits here, within caps
 *   RUNNING   posted: segments to and from other members
 *   DECIDED   complete here, DONE is out: the verdict
 * A verdict for an operation that was not posted yet is kept as a tombstone, which the later post consumes. An operation
 * of a step has no verdict: it ends when it is complete here, or when the step is poisoned.
 */
#ifndef PC_OPERATION_H
#define PC_OPERATION_H

#include "proto/member_state.h"

enum pc_op_phase { PC_OP_HELD, PC_OP_RUNNING, PC_OP_DECIDED };

/* Of one verdict, or of several in a row. */
struct pc_tombstone {
    struct pc_list node;
    uint64_t epoch, seq, last_seq;
    pc_error error; /* of the first */
};

struct pc_tag {
    struct pc_list node; /* in its bucket */
    struct pc_member_group *group;
    uint64_t number, channel;
    uint64_t next_seq;
    struct pc_list ops; /* by epoch and seq; the posted one, of which there is one at most, is the first */
    struct pc_list tombstones;
    struct pc_list offer; /* in the member's list, or in none */
};

/* Elements of one kind of values, partial or final, that one member sends to another; as either sees them. */
struct pc_outflow {
    uint64_t credit; /* that it takes in all */
    uint64_t sent; /* queued for it */
};
struct pc_inflow {
    bool staged; /* they wait in the pool: it gets credit bit by bit */
    uint64_t expected, granted, arrived, consumed;
};
enum { PC_FLOWS = PC_DATA_FINAL + 1 }; /* by enum pc_data_kind */

/* What one operation exchanges with one other member. */
struct pc_lane {
    uint64_t peer;
    struct pc_list waiting; /* frames that wait for READY or for credit */
    bool ready; /* it has posted the operation */
    bool asked; /* for READY */
    bool ready_told; /* to it */
    struct pc_outflow out[PC_FLOWS];
    struct pc_inflow in[PC_FLOWS];
    uint64_t eager_bytes; /* sent before READY */
    uint32_t eager_frames;
};

/* A frame that came before the call. */
struct pc_held {
    struct pc_list node;
    struct pc_link *link;
    uint32_t cost_bytes;
    bool complete;
    bool ready; /* a READY, else a segment */
    uint32_t eager_bytes; /* of the eager part of the link's generation; 0: it is not of that */
    uint32_t generation;
    uint64_t credit[PC_FLOWS]; /* of a READY */
    struct pc_arrival arrival; /* from is not known yet */
    uint8_t bytes[];
};

struct pc_op {
    struct pc_list node; /* in its tag, or spare */
    struct pc_tag *tag;
    struct pc_member_group *group; /* the tag's */
    struct pc_member *member;
    struct pc_op_key key;
    enum pc_op_phase phase;
    struct pc_call *call;
    struct pc_collective collective;
    struct pc_lane *lanes; /* by rank */
    size_t lanes_capacity;
    uint64_t segment_elems; /* of the largest */
    uint64_t window_elems; /* of one kind that a lane may have in the pool */
    uint64_t excess_elems; /* beyond credit, of values that are passed on */
    struct {
        struct pc_op_shape shape;
        uint64_t from; /* 0: none yet */
    } seen[2]; /* what other members called */
    bool failed;
    struct pc_list held;
    uint64_t progress_ns;
};

/* member_ops.c */
/* The bucket of tags of that number. */
struct pc_list *pc_op_tags(struct pc_member_group *group, uint64_t number);
struct pc_tag *pc_op_tag(struct pc_member_group *group, uint64_t number, uint64_t channel, bool create);
struct pc_op *pc_op_find(struct pc_tag *tag, uint64_t epoch, uint64_t seq);
struct pc_op *pc_op_create(struct pc_member *member, struct pc_tag *tag, const struct pc_op_key *key);
/* One that is held is over: with its frames. */
void pc_op_drop(struct pc_op *op);
/* Asks the master to fail it for all. An operation of a step is over, with all of the step, when the event is. */
void pc_op_fail(struct pc_op *op, const pc_error *error);
/* Whether it is complete here; then it is reported, or over. op may be gone afterwards. */
void pc_op_check(struct pc_op *op, uint64_t now_ns);
/* Calls fn for each operation; fn may free it, and complete calls. */
void pc_op_each(struct pc_member *member, void (*fn)(struct pc_op *op, void *context), void *context);
void pc_op_each_in(struct pc_member_group *group, void (*fn)(struct pc_op *op, void *context), void *context);
static inline bool pc_op_in_step(const struct pc_op *op) {
    return op->call->shape.consistency == PC_STEP;
}

/* member_any.c */
bool pc_op_from_anybody(const struct pc_call *call);
/* Somebody has sent already, or has failed to: call becomes a receive from there. */
bool pc_op_find_source(struct pc_member_group *group, struct pc_call *call);
/* The same, of those whose send has failed. */
bool pc_op_find_failed(struct pc_member_group *group, struct pc_call *call);
/* It fails by itself, and its step with it. False: it is not parked. */
bool pc_op_fail_parked(struct pc_member *member, struct pc_call *call, const pc_error *error);
/* The master ends one that is parked; key: as it was reported. */
void pc_op_parked_verdict(struct pc_member *member, const struct pc_member_group *group, const struct pc_op_key *key,
                          const pc_error *error);
/* Something is new with tag that a parked receive from anybody may find; it is tried at the end of the event. */
void pc_op_offer(struct pc_member *member, struct pc_tag *tag);

/* member_data.c */
/* The call is there: lanes open, and what was held is taken. */
pc_status pc_op_start(struct pc_op *op, uint64_t now_ns);
/* From here on nobody touches the caller's buffers, and no frame of the operation is left anywhere. */
void pc_op_release(struct pc_op *op);
void pc_op_free_held(struct pc_member *member, struct pc_held *held);
uint64_t pc_op_bytes_total(const struct pc_op *op);

#endif
