/*
 * K2: how the payload of a collective travels, as data. The payload is cut into chunks, and a chunk into segments. A
 * chunk is combined on its way up: a member's inputs are the values that come from other members and its own
 * contribution; it combines them in the order given and passes the result up, until that reaches the chunk's root, where
 * it is final. The final value then goes down, from member to member. Ring, tree and direct exchange differ only in who
 * stands where; collectives that do not reduce have chunks with one contribution.
 *
 * A plan holds the chunks as one member sees them. All members make theirs from the same descriptor and member list, so
 * each knows what it will get from whom, in what order it adds it, and where it goes.
 */
#ifndef PC_CHUNK_PLAN_H
#define PC_CHUNK_PLAN_H

#include "math/codec.h"
#include "plan/cost.h"
#include "wire/message.h"

enum {
    PC_SEGMENT_MAX_BYTES = 256 << 10,
    PC_SEGMENT_MIN_BYTES = 16 << 10,
    PC_RANKS_MAX = 4096, /* members of a group */
    PC_FAR_US = 2000 /* a round trip beyond which trips cost more than copies and processes */
};

#define PC_RANK_NONE UINT32_MAX

struct pc_chunk {
    uint32_t number; /* on the wire */
    uint32_t segments, segment_elems; /* the last one may be shorter */
    uint64_t elems;
    uint64_t own_elem; /* where this member's contribution lies in its send buffer */
    uint64_t out_elem; /* where the final value goes in its receive buffer */
    bool kept; /* it goes there */
    /* Lists of ranks: indices into pc_chunk_plan.ranks. */
    uint32_t inputs_at, input_count; /* combined here in this order; the own rank is the own contribution */
    uint32_t copies_at, copy_count; /* get the own contribution as it is, to combine it themselves */
    uint32_t down_at, down_count; /* get the final value from here */
    uint32_t up; /* gets the combination; PC_RANK_NONE: it is final here, if there are inputs */
    uint32_t from; /* sends the final value; PC_RANK_NONE: nobody */
};

struct pc_chunk_plan {
    uint32_t n, rank;
    uint32_t chunk_count, rank_count;
    struct pc_chunk *chunks;
    uint32_t *ranks;
    uint32_t elem_bytes, acc_bytes; /* of a contribution or final value, of a partial result */
    struct pc_codec codec; /* that segments travel in; kind pcclQuantNone: as they are */
    uint32_t ahead; /* contributions that may be without their final values, which come back to here; 0: all */
};

struct pc_plan_request {
    const struct pc_op_shape *shape;
    uint32_t n, rank;
    const uint32_t *ring; /* ranks in ring order */
    /*
     * Elements of a block, or of each rank's block where they differ (else NULL). For an all-to-all, counts is what goes
     * to each rank and recv_counts what comes from there. Not read for what has no blocks: shape->count tells.
     */
    uint64_t count;
    const uint64_t *counts, *recv_counts;
    uint32_t source, target; /* of PC_SEND_RECV */
    uint32_t rtt_us; /* longest of the links; 0: unknown */
    const uint32_t *shares; /* of a direct all-reduce, see pc_cost_shares; NULL: all alike */
};

struct pc_range {
    uint64_t first_elem; /* of the chunk */
    uint32_t elems;
};

/* Bytes of memory that a plan of n members needs at most, aligned to 8. */
size_t pc_chunk_plan_bytes(uint32_t n);
/*
 * Lays the plan out in memory of pc_chunk_plan_bytes(n). pcclInvalidArgument: a shape that makes no sense. The plan
 * points into memory.
 */
pc_status pc_chunk_plan_init(struct pc_chunk_plan *plan, const struct pc_plan_request *request, void *memory);

/* The part of chunk that segment holds; an empty chunk that is announced has one segment without elements. */
struct pc_range pc_chunk_segment(const struct pc_chunk *chunk, uint32_t segment);
/* Inputs that come from other members. */
uint32_t pc_chunk_remote_inputs(const struct pc_chunk_plan *plan, const struct pc_chunk *chunk);
/* The chunk that the others know by number; NULL: none. */
const struct pc_chunk *pc_chunk_find(const struct pc_chunk_plan *plan, uint32_t number);

/* Whether there is such an algorithm for the collective, and it makes sense for so much payload. */
bool pc_algorithm_fits(const struct pc_op_shape *shape, uint8_t algorithm);
/*
 * What PC_ALGORITHM_AUTO stands for among n members whose links' longest round trip is rtt_us: what costs least, or, if
 * cost is NULL, what usually does.
 */
uint8_t pc_algorithm_choose(const struct pc_op_shape *shape, uint32_t n, uint32_t rtt_us, const struct pc_cost *cost);

#endif
