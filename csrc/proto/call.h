/*
 * K3: a call of the user, from post to completion. The poster owns the memory; the machine owns the content in between.
 */
#ifndef PC_CALL_H
#define PC_CALL_H

#include "base/list.h"
#include "math/codec.h"
#include "math/digest.h"
#include "wire/message.h"

#define PC_EPOCH_PAST UINT64_MAX /* an epoch that is over, whichever it was */

/* One tensor of the shared state. name and data belong to the caller; digest and blocks are filled by prepare. */
struct pc_tensor {
    const char *name;
    uint8_t *data;
    uint64_t count, len_bytes;
    pcclDataType_t dtype;
    bool may_differ;
    uint8_t digest[PC_DIGEST_BYTES];
    uint8_t *blocks; /* 16 bytes for each block of 4 MiB */
};

struct pc_call {
    struct pc_list node; /* the machine's */
    enum pc_call_kind kind;
    void *user; /* the poster's */
    uint64_t timeout_ns; /* 0: the communicator's */
    uint64_t posted_ns, deadline_ns;
    uint64_t serial;
    bool cancelled;
    bool blocking; /* somebody waits for it now: only such calls count in the wait-for graph */

    uint32_t group; /* of PC_CALL_COLLECTIVE and PC_CALL_END_STEP: 0 for the peer group, or a subset of it */

    /* PC_CALL_COLLECTIVE */
    const void *send;
    void *recv;
    bool undo; /* results overwrite inputs, which an abort must bring back */
    uint64_t tag, weight;
    double scale; /* of the own contribution */
    struct pc_feedback feedback;
    bool stochastic, finite_only; /* see pc_codec; each peer's own affair */
    uint64_t group_epoch; /* not 0: that in which the caller sized its buffers and counted ranks, or PC_EPOCH_PAST */
    struct pc_op_shape shape; /* algorithm PC_ALGORITHM_AUTO: chosen when the operation starts */
    uint64_t count; /* see pc_plan_request */
    const uint64_t *counts, *recv_counts;
    uint32_t source, target; /* of PC_SEND_RECV; source PC_RANK_NONE: whoever sends first */
    uint8_t barrier; /* the payload of a barrier */

    /* PC_CALL_END_STEP: nothing has failed here, as far as the caller knows */
    bool vote;

    /* PC_CALL_CREATE_GROUP: by rank */
    struct pc_id_item *ids;
    uint32_t id_count;

    /* PC_CALL_SYNC_STATE */
    struct pc_tensor *tensors;
    uint32_t tensor_count;
    uint64_t revision;
    uint32_t strategy;

    pcclOutcome_t outcome; /* outcome.error.code: the result */
};

/* What an error record calls it. */
static inline const char *pc_call_phase(const struct pc_call *call) {
    return call->kind == PC_CALL_COLLECTIVE ? pc_collective_name(call->shape.collective) : pc_call_name(call->kind);
}

/* Digests of all tensors: long work, done by the poster's thread. tensors[i].blocks is allocated here. */
pc_status pc_call_prepare_sync(struct pc_call *call);
/* Frees what prepare allocated. */
void pc_call_fini_sync(struct pc_call *call);

#endif
