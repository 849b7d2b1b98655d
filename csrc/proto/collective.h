/*
 * K3: one collective at one member, whatever its algorithm. Told which segments have come and gone, it combines what a
 * plan says must be combined and says what goes where. Keeps what it overwrites in the caller's buffer until the verdict:
 * undo restores exactly that.
 *
 * Memory: what arrives to be combined is staged in segments of the pool. A combination that waits to be sent while the
 * pool is scarce moves to the place of its final value, or to the shadow. The shadow, as large as the result, exists where
 * results overwrite inputs and an abort must bring these back. A range of it is used first for a combination and only then
 * for undo: the final value of a range arrives here only after its combination has gone all the way. Inputs that cannot
 * move out of the pool are limited by credit.
 *
 * With a codec, everything that travels is encoded where it leaves and decoded where it arrives. A final value is encoded
 * once, by the chunk's root, which takes over what the others will decode, as they do; they pass on the same bytes.
 */
#ifndef PC_PROTO_COLLECTIVE_H
#define PC_PROTO_COLLECTIVE_H

#include "plan/chunk_plan.h"
#include "proto/pool.h"

/* What is to be sent: a segment of a chunk, to one member. */
struct pc_emission {
    uint32_t to, chunk, segment;
    uint8_t kind; /* PC_DATA_PARTIAL or PC_DATA_FINAL */
    bool forwarded; /* it is passed on, or has inputs from other members in it */
    uint64_t chunk_elems, weight;
    uint32_t elems, len_bytes; /* elements; bytes on the wire */
    const uint8_t *bulk; /* valid until pc_collective_sent or pc_collective_fini */
    struct pc_segment *staged; /* that holds bulk; NULL: it lies in the caller's memory */
};

struct pc_collective_user {
    pc_status (*emit)(void *context, const struct pc_emission *emission);
    /* A value of elems elements that rank sent has left the staging memory. kind: as it came. */
    void (*consumed)(void *context, uint32_t rank, uint8_t kind, uint32_t elems);
    void *context;
};

/* A segment as it arrives. */
struct pc_arrival {
    uint32_t from, chunk, segment;
    uint8_t kind;
    uint64_t chunk_elems, weight;
    uint32_t len_bytes, elems; /* elems: found by pc_collective_sink */
    uint8_t *data; /* where it goes; NULL: it has no payload */
    bool cold; /* large, and nothing here reads it again */
};

struct pc_merge;

struct pc_collective {
    struct pc_chunk_plan plan;
    struct pc_collective_user user;
    pcclDataType_t dtype;
    pcclRedOp_t redop;
    bool reduces, undo;
    uint64_t weight;
    double scale;
    struct pc_feedback feedback;
    uint32_t seed;
    const uint8_t *send;
    uint8_t *recv;
    struct pc_pool *pool;
    uint8_t *shadow;
    size_t shadow_capacity;
    uint8_t *residual; /* what the caller's becomes if this succeeds */
    size_t residual_capacity;
    uint8_t *memory; /* plan, tables, bits */
    size_t memory_capacity;
    struct pc_chunk_state *states; /* one for each chunk of the plan */
    uint8_t *seen; /* bit per segment and input, and per segment for its final value: it has a place, or has arrived */
    uint8_t *saved; /* bit per segment: undo copy is in the shadow */
    struct pc_list segments; /* of the pool, held by this operation */
    uint32_t start_segment, start_chunk; /* of the contributions: which one is to be started next */
    uint32_t staged_out; /* contributions in staging memory on their way out, or all whose final values are not here */
    uint64_t receives_left, sends_left;
    uint64_t tx_bytes, rx_bytes;
};

struct pc_collective_config {
    struct pc_plan_request request;
    const void *send;
    void *recv;
    bool undo; /* results overwrite inputs, which an abort must bring back */
    uint64_t weight; /* of the own contribution; 0: it is never read */
    double scale; /* it is multiplied by this first, in the accumulator's type */
    struct pc_feedback feedback; /* not for rings and trees */
    bool stochastic, finite_only; /* see pc_codec */
    uint32_t seed; /* of stochastic rounding: another one for each operation and member */
    struct pc_pool *pool;
    struct pc_collective_user user;
};

/* pcclNoMemory or pcclInvalidArgument leave one that fini accepts. */
pc_status pc_collective_init(struct pc_collective *collective, const struct pc_collective_config *config);
/* Emits what needs no input. */
pc_status pc_collective_start(struct pc_collective *collective);
/*
 * Finds arrival->data. pcclProtocolError: nothing of the kind is expected, or it came before. pcclMismatch: the sender
 * has the chunk in another size.
 */
pc_status pc_collective_sink(struct pc_collective *collective, struct pc_arrival *arrival);
/*
 * It has arrived there. Emits what follows from it. pcclInvalidArgument: all weights are 0. pcclProtocolError: it cannot be
 * decoded.
 */
pc_status pc_collective_received(struct pc_collective *collective, const struct pc_arrival *arrival);
/* An emission has left. Emits what had to wait for that. */
pc_status pc_collective_sent(struct pc_collective *collective, struct pc_segment *staged);
/* Everything has come and gone: the result is complete here. */
bool pc_collective_complete(const struct pc_collective *collective);
/* Elements of a kind of values that rank sends in all; *staged: they need credit, because they wait in the pool. */
uint64_t pc_collective_elems_from(const struct pc_collective *collective, uint32_t rank, uint8_t kind, bool *staged);
/* Whether anything goes to rank or comes from there. */
bool pc_collective_talks_to(const struct pc_collective *collective, uint32_t rank);
/* Bytes that rank sends in all, at most. */
uint64_t pc_collective_bytes_from(const struct pc_collective *collective, uint32_t rank);
/* It counts: the caller's residual becomes the new one. */
void pc_collective_commit(struct pc_collective *collective);
/* Gives the caller's buffer its content from before. Nothing may be in flight any more. */
void pc_collective_undo(struct pc_collective *collective);
void pc_collective_fini(struct pc_collective *collective);

#endif
