/*
 * All-reduce as PCCL has it: the blocking form, the asynchronous form by tag, and many at once with retry.
 */
#define _DEFAULT_SOURCE 1
#include "api/request.h"
#include "base/checked.h"
#include "io/fork.h"
#include "io/wait.h"

#include <stdlib.h>
#include <string.h>

/* Arguments ----------------------------------------------------------------------------------------------------- */

static pcclResult_t check_hint(const char *phase, const pcclReduceDescriptor_t *descriptor) {
    const uint32_t hint = (uint32_t)descriptor->src_descriptor.distribution_hint;
    if (hint <= pcclDistributionUniform) return pcclSuccess;
    return pc_fail(phase, pcclInvalidArgument, "%u is no distribution hint", (unsigned)hint);
}

struct reduce_args {
    const char *phase;
    const void *sendbuf;
    void *recvbuf;
    const pcclReduceDescriptor_t *descriptor;
    uint32_t timeout_ms;
    bool asynchronous;
};

static pcclResult_t start_reduce(pcclComm_t *comm, const struct reduce_args *args, struct pcclRequest_t **request_out) {
    PC_TRY(pc_comm_check(comm, args->phase));
    PC_REQUIRE(args->phase, args->descriptor);
    PC_TRY(check_hint(args->phase, args->descriptor));
    PC_TRY(pc_comm_check_in_run(comm, args->phase));
    const struct pc_collective_start start = {
        .args = {.collective = PCCL_COLLECTIVE_ALL_REDUCE,
                 .sendbuf = args->sendbuf,
                 .recvbuf = args->recvbuf,
                 .count = args->descriptor->count,
                 .datatype = args->descriptor->src_descriptor.datatype,
                 .op = args->descriptor->op,
                 .tag = args->descriptor->tag,
                 .codec = {.algorithm = args->descriptor->quantization_options.algorithm,
                           .quantized_datatype = args->descriptor->quantization_options.quantized_datatype},
                 .timeout_ms = args->timeout_ms},
        .phase = args->phase,
        .asynchronous = args->asynchronous,
    };
    return pc_collective_start_call(comm, &start, request_out);
}

/* One at a time ------------------------------------------------------------------------------------------------- */

pcclResult_t pcclStartAllReduce(pcclComm_t *comm, const void *sendbuf, void *recvbuf,
                                const pcclReduceDescriptor_t *descriptor, uint32_t timeout_ms,
                                pcclRequest_t **request_out) {
    const struct reduce_args args = {"all_reduce", sendbuf, recvbuf, descriptor, timeout_ms, false};
    PC_REQUIRE(args.phase, request_out);
    *request_out = NULL;
    PC_TRY(start_reduce(comm, &args, request_out));
    pc_request_post(*request_out, false);
    return pcclSuccess;
}

pcclResult_t pcclAllReduce(const void *sendbuf, void *recvbuf, const pcclReduceDescriptor_t *descriptor,
                           const pcclComm_t *comm, pcclReduceInfo_t *info_out) {
    const struct reduce_args args = {"all_reduce", sendbuf, recvbuf, descriptor, 0, false};
    struct pcclRequest_t *request = NULL;
    pcclOutcome_t outcome;
    PC_TRY(start_reduce(pc_comm_of(comm), &args, &request));
    const pcclResult_t code = pc_request_run(request, &outcome);
    if (info_out != NULL) *info_out = outcome.reduce;
    return code;
}

pcclResult_t pcclAllReduceAsync(const void *sendbuf, void *recvbuf, const pcclReduceDescriptor_t *descriptor,
                                const pcclComm_t *comm, pcclAsyncReduceOp_t *handle_out) {
    const struct reduce_args args = {"all_reduce_async", sendbuf, recvbuf, descriptor, 0, true};
    struct pcclRequest_t *request = NULL;
    if (!pc_initialized(args.phase)) return pcclNotInitialized;
    PC_REQUIRE(args.phase, handle_out);
    PC_TRY(start_reduce(pc_comm_of(comm), &args, &request));
    *handle_out = (pcclAsyncReduceOp_t){.comm = pc_comm_of(comm), .tag = descriptor->tag};
    pc_request_post(request, false);
    return pcclSuccess;
}

/* Takes the request out of the asynchronous ones, so that exactly one await gets it. */
static struct pcclRequest_t *claim(pcclComm_t *comm, uint64_t tag) {
    struct pcclRequest_t *found = NULL;
    (void)pthread_mutex_lock(&comm->lock);
    struct pc_list *bucket = pc_request_tags(comm, tag);
    for (struct pc_list *node = bucket->next; node != bucket && found == NULL; node = node->next) {
        struct pcclRequest_t *request = PC_LIST_ENTRY(node, struct pcclRequest_t, tag_node);
        if (request->asynchronous && !request->claimed && request->call.tag == tag) found = request;
    }
    if (found != NULL) found->claimed = true;
    (void)pthread_mutex_unlock(&comm->lock);
    return found;
}

pcclResult_t pcclAwaitAsyncReduce(const pcclAsyncReduceOp_t *handle, pcclReduceInfo_t *info_out) {
    static const char phase[] = "await_async_reduce";
    if (!pc_initialized(phase)) return pcclNotInitialized;
    PC_REQUIRE(phase, handle);
    PC_TRY(pc_comm_check_connected(handle->comm, phase));
    struct pcclRequest_t *request = claim(handle->comm, handle->tag);
    if (request == NULL) {
        return pc_fail(phase, pcclRankConnectionLost, "no operation with tag %llu waits to be awaited",
                       (unsigned long long)handle->tag);
    }
    (void)pc_request_wait(request, UINT64_MAX);
    if (info_out != NULL) *info_out = request->call.outcome.reduce;
    const pcclResult_t code = pc_fail_with(phase, &request->call.outcome.error);
    pc_request_release(request);
    return code;
}

/* Many with retry ----------------------------------------------------------------------------------------------- */

/*
 * Open are always the lowest unfinished descriptors, as many as allowed. All peers learn the same fate of each
 * operation, so the lowest one that is unfinished anywhere is open everywhere: the windows cannot wait for each other,
 * whatever the order in which fates arrive.
 *
 * A retry needs no pause. What fails an operation with a lost connection is an epoch: the members are others by then, or
 * a link is being made anew. Posted meanwhile, the operation waits in that link's queue, and fails again only with the
 * next epoch. How many there may be is bounded too: the batch gives up when none of its operations has succeeded for the
 * communicator's time limit.
 */
struct batch {
    pcclComm_t *comm;
    const pcclReduceOpDescriptor_t *descriptors;
    size_t count, window;
    size_t next; /* those from here on were never open */
    size_t *again; /* those that are to be retried */
    size_t again_count;
    size_t open;
    struct pc_list ended; /* of the open ones; under the communicator's lock */
    uint64_t deadline_ns; /* of retries; each success moves it */
    pc_error failure; /* code 0: go on */
    pcclReduceInfo_t info;
};

/* Beyond so many, more in flight bring nothing, and all of a communicator's are limited. */
enum { WINDOW_MAX = PC_OPS_MAX / 4 };

static bool worth_retrying(pcclResult_t code) {
    return code == pcclRankConnectionLost || code == pcclRankConnectionFailed;
}

static void keep_failure(struct batch *batch) {
    if (batch->failure.code == pcclSuccess) (void)pcclGetLastError(&batch->failure);
}

static void open_one(struct batch *batch, size_t place) {
    const pcclReduceOpDescriptor_t *descriptor = &batch->descriptors[place];
    const uint64_t now_ns = pc_loop_now(), left_ns = batch->deadline_ns > now_ns ? batch->deadline_ns - now_ns : 0;
    const struct reduce_args args = {
        .phase = "all_reduce_multiple_with_retry",
        .sendbuf = descriptor->sendbuf,
        .recvbuf = descriptor->recvbuf,
        .descriptor = &descriptor->descriptor,
        .timeout_ms = (uint32_t)pc_min_u64(1 + left_ns / PC_NS_PER_MS, UINT32_MAX),
    };
    struct pcclRequest_t *request = NULL;
    if (start_reduce(batch->comm, &args, &request) != pcclSuccess) {
        keep_failure(batch);
        return;
    }
    request->place = place;
    request->ended = &batch->ended;
    request->call.blocking = true;
    batch->open++;
    pc_request_post(request, false);
}

static void open_window(struct batch *batch) {
    while (batch->failure.code == pcclSuccess && batch->again_count > 0) {
        open_one(batch, batch->again[--batch->again_count]);
    }
    while (batch->failure.code == pcclSuccess && batch->open < batch->window && batch->next < batch->count) {
        open_one(batch, batch->next++);
    }
}

static uint64_t next_deadline(const struct batch *batch) {
    return pc_wait_deadline(batch->comm->settings.op_timeout_ms * PC_NS_PER_MS);
}

static void take_result(struct batch *batch, struct pcclRequest_t *request) {
    const pcclOutcome_t *outcome = &request->call.outcome;
    if (outcome->error.code == pcclSuccess) {
        batch->info.local_world_size = outcome->reduce.local_world_size;
        batch->info.tx_bytes += outcome->reduce.tx_bytes;
        batch->info.rx_bytes += outcome->reduce.rx_bytes;
        batch->deadline_ns = next_deadline(batch);
    } else if (worth_retrying(outcome->error.code) && pc_loop_now() < batch->deadline_ns) {
        batch->again[batch->again_count++] = request->place;
    } else if (batch->failure.code == pcclSuccess) {
        batch->failure = outcome->error;
    }
    batch->open--;
    pc_request_release(request);
}

static struct pcclRequest_t *next_ended(struct batch *batch) {
    (void)pthread_mutex_lock(&batch->comm->lock);
    struct pc_list *node = pc_list_pop(&batch->ended);
    (void)pthread_mutex_unlock(&batch->comm->lock);
    return node != NULL ? PC_LIST_ENTRY(node, struct pcclRequest_t, ended_node) : NULL;
}

/* Waits until an open one has ended, and takes all that have. */
static void take_results(struct batch *batch) {
    (void)pthread_mutex_lock(&batch->comm->lock);
    batch->comm->any_waiters++;
    pc_callers_enter(&batch->comm->callers);
    while (pc_list_empty(&batch->ended)) (void)pc_wait_until(&batch->comm->any_done, &batch->comm->lock, UINT64_MAX);
    batch->comm->any_waiters--;
    pc_callers_leave(&batch->comm->callers, pc_loop_now());
    (void)pthread_mutex_unlock(&batch->comm->lock);
    struct pcclRequest_t *request;
    while ((request = next_ended(batch)) != NULL) take_result(batch, request);
}

static pcclResult_t run_batch(struct batch *batch) {
    for (open_window(batch); batch->open > 0; open_window(batch)) take_results(batch);
    return pc_fail_with("all_reduce_multiple_with_retry", &batch->failure);
}

struct tag_place {
    uint64_t tag;
    size_t place;
};

static int compare_tags(const void *a, const void *b) {
    const struct tag_place *x = a, *y = b;
    if (x->tag != y->tag) return x->tag < y->tag ? -1 : 1;
    return (x->place > y->place) - (x->place < y->place);
}

static pcclResult_t check_tags(const struct batch *batch, const char *phase) {
    struct tag_place *by_tag = pc_calloc(batch->count, sizeof *by_tag);
    if (by_tag == NULL) return pc_fail(phase, pcclNoMemory, "no memory for %zu operations", batch->count);
    for (size_t i = 0; i < batch->count; i++) by_tag[i] = (struct tag_place){batch->descriptors[i].descriptor.tag, i};
    qsort(by_tag, batch->count, sizeof *by_tag, compare_tags);
    pcclResult_t code = pcclSuccess;
    for (size_t i = 1; i < batch->count && code == pcclSuccess; i++) {
        if (by_tag[i - 1].tag != by_tag[i].tag) continue;
        code = pc_fail(phase, pcclInvalidArgument, "descriptors %zu and %zu have the same tag", by_tag[i - 1].place,
                       by_tag[i].place);
    }
    free(by_tag);
    return code;
}

static pcclResult_t check_batch(const struct batch *batch, const char *phase) {
    for (size_t i = 0; i < batch->count; i++) PC_TRY(check_hint(phase, &batch->descriptors[i].descriptor));
    return batch->count > 1 ? check_tags(batch, phase) : pcclSuccess;
}

pcclResult_t pcclAllReduceMultipleWithRetry(const pcclReduceOpDescriptor_t *descriptors, size_t count,
                                            const pcclComm_t *comm, pcclReduceInfo_t *info_out, int max_in_flight) {
    static const char phase[] = "all_reduce_multiple_with_retry";
    struct batch batch = {.comm = pc_comm_of(comm), .descriptors = descriptors, .count = count};
    PC_TRY(pc_comm_check(comm, phase));
    if (count > 0) PC_REQUIRE(phase, descriptors);
    if (max_in_flight < 1) return pc_fail(phase, pcclInvalidArgument, "max_in_flight is %d", max_in_flight);
    PC_TRY(check_batch(&batch, phase));
    PC_TRY(pc_comm_check_in_run(comm, phase));
    (void)pthread_mutex_lock(&batch.comm->lock);
    const bool in_step = pc_step_is_open(batch.comm, 0);
    (void)pthread_mutex_unlock(&batch.comm->lock);
    if (in_step) return pc_fail(phase, pcclInvalidUsage, "a step is open: nothing of it can be done again but all of it");
    batch.deadline_ns = next_deadline(&batch);
    pc_list_init(&batch.ended);
    batch.window = pc_min_size(pc_min_size((size_t)max_in_flight, WINDOW_MAX), count);
    batch.again = pc_calloc(batch.window + 1, sizeof *batch.again);
    if (batch.again == NULL) return pc_fail(phase, pcclNoMemory, "no memory for %zu operations", count);
    const pcclResult_t code = run_batch(&batch);
    if (info_out != NULL) *info_out = batch.info;
    free(batch.again);
    return code;
}
