/*
 * Collectives: arguments become a call of the machine. Which buffers a collective reads and writes, and how much of them,
 * is known here alone; the machine trusts it.
 *
 * A tag names at most one open operation of a group: from its start until it has ended, or, for an asynchronous
 * all-reduce, until it has been awaited. Sends and receives are told apart by their ends too, which the machine does.
 */
#include "api/request.h"
#include "base/checked.h"
#include "bytes/dtype.h"

#include <string.h>

/* Sizes --------------------------------------------------------------------------------------------------------- */

/* What a collective touches at this peer, in elements. */
struct extent {
    uint64_t send, recv;
    uint64_t own_send, own_recv; /* where the own block lies in a buffer of blocks */
    bool overflow;
};

struct place {
    uint32_t n, rank;
};

static uint64_t sum_to(const pcclCollectiveArgs_t *args, const uint64_t *counts, uint32_t ranks, bool *overflow) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < ranks; i++) {
        *overflow |= __builtin_add_overflow(sum, counts != NULL ? counts[i] : args->count, &sum);
    }
    return sum;
}

static struct extent extent_of(const pcclCollectiveArgs_t *args, struct place at) {
    struct extent e = {0};
    const bool root = at.rank == args->root;
    const uint64_t own = args->counts != NULL ? args->counts[at.rank] : args->count;
    const uint64_t all = sum_to(args, args->counts, at.n, &e.overflow);
    const uint64_t before = sum_to(args, args->counts, at.rank, &e.overflow);
    switch (args->collective) {
    case PCCL_COLLECTIVE_ALL_REDUCE: e.send = e.recv = args->count; break;
    case PCCL_COLLECTIVE_BROADCAST: e.send = root ? args->count : 0, e.recv = args->count; break;
    case PCCL_COLLECTIVE_REDUCE: e.send = args->count, e.recv = root ? args->count : 0; break;
    case PCCL_COLLECTIVE_ALL_GATHER: e.send = own, e.recv = all, e.own_recv = before; break;
    case PCCL_COLLECTIVE_REDUCE_SCATTER: e.send = all, e.recv = own, e.own_send = before; break;
    case PCCL_COLLECTIVE_GATHER: e.send = own, e.recv = root ? all : 0, e.own_recv = before; break;
    case PCCL_COLLECTIVE_SCATTER: e.send = root ? all : 0, e.recv = own, e.own_send = before; break;
    case PCCL_COLLECTIVE_ALL_TO_ALL:
        e.send = all;
        e.recv = sum_to(args, args->recv_counts, at.n, &e.overflow);
        break;
    case PCCL_COLLECTIVE_SEND: e.send = args->count; break;
    case PCCL_COLLECTIVE_RECV: e.recv = args->count; break;
    case PCCL_COLLECTIVE_BARRIER: break;
    }
    return e;
}

static bool in_place_allowed(pcclCollective_t collective) {
    return collective != PCCL_COLLECTIVE_ALL_TO_ALL;
}

/* *in_place: results overwrite what other results are made of. */
static pcclResult_t check_memory(const char *phase, const pcclCollectiveArgs_t *args, struct place at,
                                 bool *in_place) {
    const struct extent e = extent_of(args, at);
    const size_t elem = pc_dtype_bytes(args->datatype);
    *in_place = false;
    size_t send_bytes = 0, recv_bytes = 0;
    if (e.overflow || pc_mul_overflows(e.send, elem, &send_bytes) || pc_mul_overflows(e.recv, elem, &recv_bytes) ||
        send_bytes > PTRDIFF_MAX || recv_bytes > PTRDIFF_MAX) {
        return pc_fail(phase, pcclInvalidArgument, "a count of %zu is more than memory holds", args->count);
    }
    if (send_bytes > 0 && args->collective != PCCL_COLLECTIVE_BROADCAST) PC_REQUIRE(phase, args->sendbuf);
    if (recv_bytes > 0) PC_REQUIRE(phase, args->recvbuf);
    if (send_bytes == 0 || recv_bytes == 0 || args->sendbuf == NULL) return pcclSuccess;
    const uintptr_t send = (uintptr_t)args->sendbuf, recv = (uintptr_t)args->recvbuf;
    if (send + send_bytes <= recv || recv + recv_bytes <= send) return pcclSuccess;
    if (in_place_allowed(args->collective) && send + e.own_send * elem == recv + e.own_recv * elem) {
        *in_place = true;
        return pcclSuccess;
    }
    if (!in_place_allowed(args->collective)) return pc_fail(phase, pcclInvalidArgument, "the buffers overlap");
    return pc_fail(phase, pcclInvalidArgument, "the buffers overlap without being equal: pass the same one for in place");
}

/* Arguments ----------------------------------------------------------------------------------------------------- */

static const char *name_of(pcclCollective_t collective) {
    switch (collective) {
    case PCCL_COLLECTIVE_SEND: return "send";
    case PCCL_COLLECTIVE_RECV: return "recv";
    case PCCL_COLLECTIVE_BARRIER: return "barrier";
    default: return pc_collective_name((uint32_t)collective);
    }
}

static bool is_scaled(const pcclCollectiveArgs_t *args) {
    return args->scaled || args->scale != 0;
}

static pcclResult_t check_weight(const char *phase, const pcclCollectiveArgs_t *args) {
    const bool integer = pc_dtype_is_integer(args->datatype);
    if (is_scaled(args) && (integer || args->op != pcclSum || args->weighted)) {
        return pc_fail(phase, pcclInvalidArgument, "a scale is for sums of floating-point types, without weights");
    }
    if (!args->weighted || args->weight <= 1) return pcclSuccess;
    if (args->weight > PC_WEIGHT_MAX) {
        return pc_fail(phase, pcclInvalidArgument, "a weight is at most 2^48, not %llu", (unsigned long long)args->weight);
    }
    if (integer || args->op != pcclAvg) {
        return pc_fail(phase, pcclInvalidArgument,
                       "weights other than 0 and 1 are for averages of floating-point types");
    }
    return pcclSuccess;
}

/* Codecs -------------------------------------------------------------------------------------------------------- */

static uint8_t code_bits(const pcclCodecOptions_t *options) {
    if (options->algorithm == pcclQuantIntSum) return (uint8_t)(options->exponent + PC_CODEC_EXPONENT_BIAS);
    const bool typed = options->algorithm == pcclQuantMinMax || options->algorithm == pcclQuantZeroPointScale;
    return typed ? (uint8_t)(pc_dtype_bytes(options->quantized_datatype) * 8) : 0;
}

static struct pc_codec codec_of(const pcclCodecOptions_t *options) {
    return pc_codec_make((uint8_t)options->algorithm, code_bits(options), options->block);
}

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    const uintptr_t first = (uintptr_t)a, second = (uintptr_t)b;
    return first < second + b_bytes && second < first + a_bytes;
}

static pcclResult_t check_feedback(const char *phase, const pcclCollectiveArgs_t *args) {
    if (args->codec.residual == NULL) return pcclSuccess;
    if (args->collective != PCCL_COLLECTIVE_ALL_REDUCE || (args->op != pcclSum && args->op != pcclAvg)) {
        return pc_fail(phase, pcclInvalidArgument, "error feedback is for sums and averages of all_reduce");
    }
    if (args->algorithm == PCCL_ALGORITHM_RING || args->algorithm == PCCL_ALGORITHM_TREE) {
        return pc_fail(phase, pcclInvalidArgument, "error feedback needs contributions that travel alone: direct or exchange");
    }
    const size_t bytes = args->count * pc_dtype_bytes(args->datatype);
    const size_t residual_bytes = args->count * pc_dtype_bytes(pc_dtype_accumulator(args->datatype));
    if (overlap(args->codec.residual, residual_bytes, args->sendbuf, bytes) ||
        overlap(args->codec.residual, residual_bytes, args->recvbuf, bytes)) {
        return pc_fail(phase, pcclInvalidArgument, "the residual overlaps a buffer of the operation");
    }
    const double decay = args->codec.residual_decay;
    if (decay >= 0 && decay <= 1) return pcclSuccess;
    return pc_fail(phase, pcclInvalidArgument, "a residual decay of %g is not from 0 to 1", decay);
}

static pcclResult_t check_codec(const char *phase, const pcclCollectiveArgs_t *args) {
    const pcclCodecOptions_t *options = &args->codec;
    if (options->algorithm == pcclQuantNone) {
        if (options->residual == NULL) return pcclSuccess;
        return pc_fail(phase, pcclInvalidArgument, "error feedback without a codec: nothing is left out");
    }
    if ((uint32_t)options->algorithm > UINT8_MAX) {
        return pc_fail(phase, pcclInvalidArgument, "%d is no quantization algorithm", (int)options->algorithm);
    }
    if (!pc_dtype_valid((uint32_t)options->quantized_datatype)) {
        return pc_fail(phase, pcclInvalidArgument, "%d is no data type to quantize to", (int)options->quantized_datatype);
    }
    if (options->exponent < -PC_CODEC_EXPONENT_MAX || options->exponent > PC_CODEC_EXPONENT_MAX) {
        return pc_fail(phase, pcclInvalidArgument, "an exponent of %d is not from -100 to 100", (int)options->exponent);
    }
    const char *name = pc_codec_name((uint8_t)options->algorithm);
    const struct pc_codec codec = codec_of(options);
    if (codec.bits != 0 && options->algorithm != pcclQuantIntSum && !pc_dtype_is_integer(options->quantized_datatype)) {
        return pc_fail(phase, pcclInvalidArgument, "%s quantizes to integers, not to %s", name,
                       pc_dtype_name(options->quantized_datatype));
    }
    if (!pc_codec_valid(&codec)) {
        return pc_fail(phase, pcclInvalidArgument, "there is no quantization algorithm %d (%s) with blocks of %u elements",
                       (int)options->algorithm, name, codec.block);
    }
    if (args->collective == PCCL_COLLECTIVE_BARRIER) {
        return pc_fail(phase, pcclInvalidArgument, "a barrier has no payload, and no use for codec %s", name);
    }
    if (pc_dtype_is_integer(args->datatype)) {
        return pc_fail(phase, pcclInvalidArgument, "codec %s is for floating-point types, not for %s", name,
                       pc_dtype_name(args->datatype));
    }
    const bool sums_up = args->collective == PCCL_COLLECTIVE_REDUCE || args->collective == PCCL_COLLECTIVE_REDUCE_SCATTER;
    if (options->algorithm == pcclQuantTopK && sums_up) {
        return pc_fail(phase, pcclInvalidArgument, "codec %s is not for %s: sums are less sparse; all_reduce gives them to all",
                       name, phase);
    }
    return check_feedback(phase, args);
}

static pcclResult_t check_args(const char *phase, const pcclCollectiveArgs_t *args) {
    if ((uint32_t)args->collective > PCCL_COLLECTIVE_BARRIER) {
        return pc_fail(phase, pcclInvalidArgument, "%d is no collective", (int)args->collective);
    }
    if (!pc_dtype_valid((uint32_t)args->datatype)) {
        return pc_fail(phase, pcclInvalidArgument, "%d is no data type", (int)args->datatype);
    }
    if (!pc_redop_valid((uint32_t)args->op)) {
        return pc_fail(phase, pcclInvalidArgument, "%d is no reduction", (int)args->op);
    }
    if (!pc_redop_fits(args->op, args->datatype)) {
        return pc_fail(phase, pcclInvalidArgument, "%s is not defined for %s", pc_redop_name(args->op),
                       pc_dtype_name(args->datatype));
    }
    if ((uint32_t)args->algorithm > PCCL_ALGORITHM_EXCHANGE) {
        return pc_fail(phase, pcclInvalidArgument, "%d is no algorithm", (int)args->algorithm);
    }
    PC_TRY(check_codec(phase, args));
    return check_weight(phase, args);
}

static bool one_way(pcclCollective_t collective) {
    return collective == PCCL_COLLECTIVE_SEND || collective == PCCL_COLLECTIVE_RECV;
}

static pcclResult_t check_root(const char *phase, const pcclCollectiveArgs_t *args, struct place at) {
    const bool any = args->collective == PCCL_COLLECTIVE_RECV && args->root == PCCL_RANK_ANY;
    const bool used = one_way(args->collective) || pc_collective_has_root((uint32_t)args->collective);
    if (!used || any) return pcclSuccess;
    if (args->root >= at.n) {
        return pc_fail(phase, pcclInvalidArgument, "there is no rank %u in a group of %u", args->root, at.n);
    }
    if (one_way(args->collective) && args->root == at.rank) {
        return pc_fail(phase, pcclInvalidArgument, "a peer cannot send to itself");
    }
    return pcclSuccess;
}

/* Whether all members know how much each of them contributes. */
static bool all_know(pcclCollective_t collective) {
    return collective <= PCCL_COLLECTIVE_REDUCE_SCATTER;
}

static bool has_blocks(pcclCollective_t collective) {
    return collective >= PCCL_COLLECTIVE_ALL_GATHER && collective <= PCCL_COLLECTIVE_ALL_TO_ALL;
}

static void describe_codec(struct pc_call *call, const pcclCodecOptions_t *options) {
    const struct pc_codec codec = codec_of(options);
    call->shape.codec = codec.kind;
    call->shape.codec_bits = codec.bits;
    call->shape.codec_block = codec.block;
    call->stochastic = options->stochastic;
    call->finite_only = options->finite_only;
    call->feedback = (struct pc_feedback){options->residual, options->residual_decay != 0 ? options->residual_decay : 1.0};
}

static void describe(struct pc_call *call, const pcclCollectiveArgs_t *args, struct place at, bool in_place) {
    const bool sends = args->collective == PCCL_COLLECTIVE_SEND;
    call->send = args->sendbuf == NULL ? args->recvbuf : args->sendbuf;
    call->recv = args->recvbuf;
    call->count = args->count;
    if (has_blocks(args->collective)) {
        call->counts = args->counts;
        call->recv_counts = args->recv_counts;
    }
    call->timeout_ns = args->timeout_ms * PC_NS_PER_MS;
    call->weight = args->weighted ? args->weight : 1;
    call->scale = is_scaled(args) ? args->scale : 1.0;
    if (args->op == pcclAvg && call->weight > 1) call->scale = (double)call->weight;
    call->shape = (struct pc_op_shape){
        .count = all_know(args->collective) ? args->count : 0,
        .dtype = (uint8_t)args->datatype,
        .redop = (uint8_t)args->op,
        .collective = (uint8_t)args->collective,
        .algorithm = (uint8_t)args->algorithm,
    };
    if (call->counts != NULL && all_know(args->collective)) {
        /* Blocks of different sizes: their digest tells whether all mean the same. */
        bool overflow = false;
        call->shape.layout = pc_digest64(args->counts, at.n * sizeof *args->counts) | 1;
        call->shape.count = sum_to(args, args->counts, at.n, &overflow) / at.n;
    }
    if (pc_collective_has_root(call->shape.collective)) call->shape.root = args->root;
    if (args->codec.algorithm != pcclQuantNone) describe_codec(call, &args->codec);
    /* A broadcast has one buffer: where it is received, what was there is an input that a failure must bring back. */
    const bool received_over = args->collective == PCCL_COLLECTIVE_BROADCAST && at.rank != args->root;
    const bool in_one = in_place || (args->collective == PCCL_COLLECTIVE_BROADCAST && args->sendbuf == NULL);
    const bool coded = args->codec.algorithm != pcclQuantNone; /* then the own values become what the others decode */
    call->undo = received_over || (in_one && (coded || pc_collective_reduces(call->shape.collective)));
    if (args->collective == PCCL_COLLECTIVE_BARRIER) {
        call->send = call->recv = &call->barrier;
        call->shape = (struct pc_op_shape){.count = 1, .dtype = pcclUint8, .redop = pcclMax, .collective = PC_BARRIER};
    } else if (one_way(args->collective)) {
        call->shape.collective = PC_SEND_RECV;
        call->source = sends ? at.rank : args->root;
        call->target = sends ? args->root : at.rank;
    }
}

/* Starting ------------------------------------------------------------------------------------------------------ */

/* With lock held. */
static bool tag_is_open(pcclComm_t *comm, uint32_t group, uint64_t tag) {
    const struct pc_list *bucket = pc_request_tags(comm, tag);
    for (const struct pc_list *node = bucket->next; node != bucket; node = node->next) {
        const struct pcclRequest_t *request = PC_LIST_ENTRY(node, struct pcclRequest_t, tag_node);
        if (request->call.group != group || request->call.tag != tag) continue;
        if (request->call.shape.collective != PC_SEND_RECV) return true;
    }
    return false;
}

/* Where this peer stands. False: there is no such group. With lock held. */
static bool place_in_subset(const pcclComm_t *comm, uint32_t group, struct place *at) {
    for (size_t i = 0; i < comm->view.subset_count; i++) {
        const struct pc_group_view *subset = &comm->view.subsets[i];
        if (subset->number != group) continue;
        *at = (struct place){subset->n, subset->rank};
        return true;
    }
    return false;
}

/* Also since when: ranks of the peer group move. With lock held. */
static struct place place_of(const pcclComm_t *comm, uint64_t *epoch) {
    struct place at = {.n = (uint32_t)comm->view.group_size, .rank = 0};
    for (size_t i = 0; i < comm->view.member_count; i++) {
        if (comm->view.members[i].self) at.rank = comm->view.members[i].rank;
    }
    *epoch = comm->view.group_epoch;
    return at;
}

/* Takes the tag for the request, if it is free. */
static pcclResult_t open_tag(struct pcclRequest_t *request, const char *phase, uint64_t tag, bool asynchronous,
                             bool shared) {
    pcclComm_t *comm = request->comm;
    (void)pthread_mutex_lock(&comm->lock);
    const uint32_t group = request->call.group;
    const bool taken = !shared && tag_is_open(comm, group, tag);
    if (!taken) {
        request->call.tag = tag;
        request->call.shape.consistency = pc_step_is_open(comm, group) ? PC_STEP : PC_STRICT;
        request->open_reduce = true;
        request->asynchronous = asynchronous;
        comm->reduces_open++;
        pc_list_append(pc_request_tags(comm, tag), &request->tag_node);
    }
    (void)pthread_mutex_unlock(&comm->lock);
    if (!taken) return pcclSuccess;
    return pc_fail(phase, pcclInvalidUsage, "an operation with tag %llu is in flight", (unsigned long long)tag);
}

pcclResult_t pc_collective_start_call(pcclComm_t *comm, const struct pc_collective_start *start,
                                      struct pcclRequest_t **request_out) {
    const pcclCollectiveArgs_t *args = &start->args;
    const char *phase = start->phase != NULL ? start->phase : name_of(args->collective);
    PC_TRY(check_args(phase, args));
    uint64_t epoch = 0;
    (void)pthread_mutex_lock(&comm->lock);
    struct place at = {0};
    bool found = true;
    if (args->group == 0) at = place_of(comm, &epoch);
    else found = place_in_subset(comm, args->group, &at);
    const bool alone = comm->view.connected && at.n < 2 && !comm->settings.observer;
    (void)pthread_mutex_unlock(&comm->lock);
    if (!found) return pc_fail(phase, pcclInvalidUsage, "there is no group %u: it was destroyed, or never made", args->group);
    bool in_place = false;
    const bool moved = args->made_for_size != 0 && (args->made_for_size != at.n || args->made_for_rank != at.rank);
    const bool placed = at.n > 0 && at.rank < at.n && !moved;
    if (placed) PC_TRY(check_memory(phase, args, at, &in_place));
    if (alone) return pc_fail(phase, pcclTooFewPeers, "the group has no other member");
    if (placed) PC_TRY(check_root(phase, args, at));
    struct pcclRequest_t *request = pc_request_create(comm, PC_CALL_COLLECTIVE);
    if (request == NULL) return pc_fail(phase, pcclNoMemory, "no memory for a call");
    describe(&request->call, args, moved ? (struct place){args->made_for_size, args->made_for_rank} : at, in_place);
    request->call.group = args->group;
    /* What the environment asks for does not change what a call means. */
    const bool free_choice = args->algorithm == PCCL_ALGORITHM_AUTO && args->codec.residual == NULL;
    if (free_choice) request->call.shape.algorithm = (uint8_t)comm->settings.algorithm;
    if (args->collective != PCCL_COLLECTIVE_ALL_REDUCE && args->collective != PCCL_COLLECTIVE_BARRIER) {
        request->call.group_epoch = epoch;
    }
    if (moved) request->call.group_epoch = PC_EPOCH_PAST;
    const pcclResult_t code = open_tag(request, phase, args->tag, start->asynchronous, one_way(args->collective));
    if (code != pcclSuccess) {
        pc_request_drop(request);
        return code;
    }
    *request_out = request;
    return pcclSuccess;
}

static pcclResult_t check_and_start(pcclComm_t *comm, const pcclCollectiveArgs_t *args,
                                    struct pcclRequest_t **request_out) {
    PC_TRY(pc_comm_check(comm, "collective"));
    PC_REQUIRE("collective", args);
    PC_TRY(pc_comm_check_in_run(comm, name_of(args->collective)));
    const struct pc_collective_start start = {.args = *args};
    return pc_collective_start_call(comm, &start, request_out);
}

pcclResult_t pcclStartCollective(pcclComm_t *comm, const pcclCollectiveArgs_t *args, pcclRequest_t **request_out) {
    PC_REQUIRE("collective", request_out);
    *request_out = NULL;
    PC_TRY(check_and_start(comm, args, request_out));
    pc_request_post(*request_out, args->awaited);
    return pcclSuccess;
}

pcclResult_t pcclRunCollective(pcclComm_t *comm, const pcclCollectiveArgs_t *args, pcclOutcome_t *outcome_out) {
    struct pcclRequest_t *request = NULL;
    PC_TRY(check_and_start(comm, args, &request));
    return pc_request_run(request, outcome_out);
}
