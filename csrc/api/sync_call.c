/*
 * Synchronising the shared state: the caller's tensors are checked and digested on the caller's thread, then the
 * machine compares and moves blocks. The caller's revision follows the outcome.
 */
#define _DEFAULT_SOURCE 1
#include "api/request.h"
#include "base/checked.h"
#include "bytes/dtype.h"

#include <stdlib.h>
#include <string.h>

static const char phase[] = "sync_shared_state";

static pcclResult_t check_tensor(const pcclSharedState_t *state, size_t i, size_t *len_bytes) {
    const pcclTensorInfo_t *info = &state->infos[i];
    if (info->name == NULL || info->name[0] == '\0') {
        return pc_fail(phase, pcclInvalidArgument, "tensor %zu has no name", i);
    }
    if (strlen(info->name) > 1024) return pc_fail(phase, pcclInvalidArgument, "the name of tensor %zu is too long", i);
    if (!pc_dtype_valid((uint32_t)info->datatype)) {
        return pc_fail(phase, pcclInvalidArgument, "'%s': %d is no data type", info->name, (int)info->datatype);
    }
    if (info->device_type == pcclDeviceCuda) {
        (void)pc_fail(phase, pcclInvalidArgument, "'%s' is in GPU memory, which is not supported yet", info->name);
        pc_fail_hint("copy it to the host first");
        return pcclInvalidArgument;
    }
    if (info->device_type != pcclDeviceCpu) {
        return pc_fail(phase, pcclInvalidArgument, "'%s': %d is no device type", info->name, (int)info->device_type);
    }
    if (pc_mul_overflows(info->count, pc_dtype_bytes(info->datatype), len_bytes) || *len_bytes > PTRDIFF_MAX) {
        return pc_fail(phase, pcclInvalidArgument, "'%s': a count of %zu is more than memory holds", info->name,
                       info->count);
    }
    if (*len_bytes > 0 && info->data == NULL) {
        return pc_fail(phase, pcclInvalidArgument, "'%s' has no data", info->name);
    }
    return pcclSuccess;
}

static int compare_names(const void *a, const void *b) {
    const struct pc_tensor *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static pcclResult_t check_names(const struct pc_tensor *tensors, size_t count) {
    const struct pc_tensor **sorted = pc_calloc(count, sizeof *sorted);
    const char *twice = NULL;
    if (sorted == NULL) return pc_fail(phase, pcclNoMemory, "no memory for %zu tensors", count);
    for (size_t i = 0; i < count; i++) sorted[i] = &tensors[i];
    qsort(sorted, count, sizeof *sorted, compare_names);
    for (size_t i = 1; i < count && twice == NULL; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0) twice = sorted[i]->name;
    }
    free(sorted);
    return twice == NULL ? pcclSuccess : pc_fail(phase, pcclInvalidArgument, "two tensors are named '%s'", twice);
}

static pcclResult_t take_tensors(const pcclSharedState_t *state, struct pc_tensor *tensors) {
    for (size_t i = 0; i < state->count; i++) {
        const pcclTensorInfo_t *info = &state->infos[i];
        size_t len_bytes = 0;
        PC_TRY(check_tensor(state, i, &len_bytes));
        tensors[i] = (struct pc_tensor){
            .name = info->name,
            .data = info->data,
            .count = info->count,
            .len_bytes = len_bytes,
            .dtype = info->datatype,
            .may_differ = info->allow_content_inequality,
        };
    }
    return check_names(tensors, state->count);
}

static pcclResult_t check_call(pcclComm_t *comm, const pcclSharedState_t *state, uint32_t strategy) {
    PC_TRY(pc_comm_check(comm, phase));
    PC_REQUIRE(phase, state);
    if (state->count > 0) PC_REQUIRE(phase, state->infos);
    if (state->count == 0 || state->count > UINT32_MAX) {
        return pc_fail(phase, pcclInvalidArgument, "a shared state of %zu tensors", state->count);
    }
    if (strategy > PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY) {
        return pc_fail(phase, pcclInvalidArgument, "%u is no strategy", (unsigned)strategy);
    }
    PC_TRY(pc_comm_check_in_run(comm, phase));
    return pc_request_check_idle(comm, phase);
}

static pcclResult_t begin(pcclComm_t *comm, const pcclSharedState_t *state, uint32_t strategy,
                          struct pcclRequest_t **request_out) {
    PC_TRY(check_call(comm, state, strategy));
    struct pcclRequest_t *request = pc_request_create(comm, PC_CALL_SYNC_STATE);
    struct pc_tensor *tensors = request != NULL ? pc_calloc(state->count, sizeof *tensors) : NULL;
    if (request == NULL) return pc_fail(phase, pcclNoMemory, "no memory for a call");
    request->call.tensors = tensors;
    request->call.tensor_count = (uint32_t)state->count;
    request->call.revision = state->revision;
    request->call.strategy = strategy;
    pcclResult_t code = tensors != NULL ? take_tensors(state, tensors)
                                        : pc_fail(phase, pcclNoMemory, "no memory for %zu tensors", state->count);
    if (code == pcclSuccess) {
        code = pc_call_prepare_sync(&request->call);
        if (code != pcclSuccess) (void)pc_fail(phase, code, "no memory for the digests");
    }
    if (code != pcclSuccess) {
        pc_request_drop(request);
        return code;
    }
    *request_out = request;
    return pcclSuccess;
}

pcclResult_t pcclStartSynchronizeSharedState(pcclComm_t *comm, const pcclSharedState_t *shared_state,
                                             pcclSharedStateSyncStrategy_t strategy, pcclRequest_t **request_out) {
    if (!pc_initialized(phase)) return pcclNotInitialized;
    PC_REQUIRE(phase, request_out);
    *request_out = NULL;
    PC_TRY(begin(comm, shared_state, (uint32_t)strategy, request_out));
    pc_request_post(*request_out, false);
    return pcclSuccess;
}

pcclResult_t pcclSynchronizeSharedState(const pcclComm_t *comm, pcclSharedState_t *shared_state,
                                        pcclSharedStateSyncStrategy_t strategy, pcclSharedStateSyncInfo_t *info_out) {
    struct pcclRequest_t *request = NULL;
    pcclOutcome_t outcome;
    PC_TRY(begin(pc_comm_of(comm), shared_state, (uint32_t)strategy, &request));
    PC_TRY(pc_request_run(request, &outcome));
    shared_state->revision = outcome.revision;
    if (info_out != NULL) *info_out = outcome.sync;
    return pcclSuccess;
}
