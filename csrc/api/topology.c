/*
 * Calls about who is there: connect, the three joint topology calls, attributes, members, statistics, abort. Each
 * joint call is a start, and the blocking form is that start with a wait.
 */
#define _DEFAULT_SOURCE 1
#include "api/request.h"

#include <limits.h>
#include <string.h>

/* Starting ------------------------------------------------------------------------------------------------------ */

static pcclResult_t create(pcclComm_t *comm, enum pc_call_kind kind, struct pcclRequest_t **out) {
    *out = pc_request_create(comm, kind);
    return *out != NULL ? pcclSuccess : pc_fail(pc_call_name(kind), pcclNoMemory, "no memory for a call");
}

static pcclResult_t begin_connect(pcclComm_t *comm, struct pcclRequest_t **out) {
    static const char phase[] = "connect";
    pc_error error = {0};
    PC_TRY(pc_comm_check(comm, phase));
    (void)pthread_mutex_lock(&comm->lock);
    const bool connected = comm->view.connected, busy = comm->connecting;
    if (!connected && !busy) {
        comm->connecting = true;
        comm->step_count = 0; /* those of an earlier life ended with it */
    }
    (void)pthread_mutex_unlock(&comm->lock);
    if (connected) return pc_fail(phase, pcclInvalidUsage, "the communicator is connected already");
    if (busy) return pc_fail(phase, pcclInvalidUsage, "another thread is connecting this communicator");
    pcclResult_t code = pc_comm_start(comm, &error);
    if (code == pcclSuccess) code = create(comm, PC_CALL_CONNECT, out);
    else (void)pc_fail_with(phase, &error);
    if (code != pcclSuccess) {
        (void)pthread_mutex_lock(&comm->lock);
        comm->connecting = false;
        (void)pthread_mutex_unlock(&comm->lock);
    }
    return code;
}

static pcclResult_t begin_joint(pcclComm_t *comm, enum pc_call_kind kind, struct pcclRequest_t **out) {
    const char *phase = pc_call_name(kind);
    PC_TRY(pc_comm_check_in_run(comm, phase));
    if (kind != PC_CALL_PEERS_PENDING) PC_TRY(pc_request_check_idle(comm, phase));
    (void)pthread_mutex_lock(&comm->lock);
    const bool alone = comm->view.global_size < 2 && comm->view.connected;
    (void)pthread_mutex_unlock(&comm->lock);
    if (kind == PC_CALL_OPTIMIZE_TOPOLOGY && alone) {
        return pc_fail(phase, pcclInvalidUsage, "there is no topology to optimize in a world of one");
    }
    return create(comm, kind, out);
}

static pcclResult_t start_joint(pcclComm_t *comm, enum pc_call_kind kind, pcclRequest_t **request_out) {
    struct pcclRequest_t *request = NULL;
    PC_REQUIRE(pc_call_name(kind), request_out);
    *request_out = NULL;
    PC_TRY(kind == PC_CALL_CONNECT ? begin_connect(comm, &request) : begin_joint(comm, kind, &request));
    pc_request_post(request, false);
    *request_out = request;
    return pcclSuccess;
}

pcclResult_t pcclStartConnect(pcclComm_t *comm, pcclRequest_t **request_out) {
    return start_joint(comm, PC_CALL_CONNECT, request_out);
}

pcclResult_t pcclStartUpdateTopology(pcclComm_t *comm, pcclRequest_t **request_out) {
    return start_joint(comm, PC_CALL_UPDATE_TOPOLOGY, request_out);
}

pcclResult_t pcclStartArePeersPending(pcclComm_t *comm, pcclRequest_t **request_out) {
    return start_joint(comm, PC_CALL_PEERS_PENDING, request_out);
}

pcclResult_t pcclStartOptimizeTopology(pcclComm_t *comm, pcclRequest_t **request_out) {
    return start_joint(comm, PC_CALL_OPTIMIZE_TOPOLOGY, request_out);
}

/* Blocking ------------------------------------------------------------------------------------------------------ */

static pcclResult_t run_joint(const pcclComm_t *comm, enum pc_call_kind kind, pcclOutcome_t *outcome) {
    struct pcclRequest_t *request = NULL;
    pcclComm_t *own = pc_comm_of(comm);
    PC_TRY(kind == PC_CALL_CONNECT ? begin_connect(own, &request) : begin_joint(own, kind, &request));
    return pc_request_run(request, outcome);
}

pcclResult_t pcclConnect(pcclComm_t *comm) {
    return run_joint(comm, PC_CALL_CONNECT, NULL);
}

pcclResult_t pcclUpdateTopology(pcclComm_t *comm) {
    return run_joint(comm, PC_CALL_UPDATE_TOPOLOGY, NULL);
}

pcclResult_t pcclOptimizeTopology(const pcclComm_t *comm) {
    return run_joint(comm, PC_CALL_OPTIMIZE_TOPOLOGY, NULL);
}

pcclResult_t pcclArePeersPending(const pcclComm_t *comm, bool *pending_out) {
    pcclOutcome_t outcome;
    if (!pc_initialized("are_peers_pending")) return pcclNotInitialized;
    PC_REQUIRE("are_peers_pending", pending_out);
    PC_TRY(run_joint(comm, PC_CALL_PEERS_PENDING, &outcome));
    *pending_out = outcome.pending;
    return pcclSuccess;
}

/* Views --------------------------------------------------------------------------------------------------------- */

pcclResult_t pcclGetAttribute(const pcclComm_t *comm, pcclAttribute_t attribute, int *value_out) {
    static const char phase[] = "get_attribute";
    if (!pc_initialized(phase)) return pcclNotInitialized;
    PC_REQUIRE(phase, value_out);
    PC_TRY(pc_comm_check_connected(comm, phase));
    pcclComm_t *own = pc_comm_of(comm);
    int value = -1;
    (void)pthread_mutex_lock(&own->lock);
    switch (attribute) {
    case PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE: value = own->view.global_size; break;
    case PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE: value = own->view.group_size; break;
    case PCCL_ATTRIBUTE_NUM_DISTINCT_PEER_GROUPS: value = own->view.groups; break;
    case PCCL_ATTRIBUTE_LARGEST_PEER_GROUP_WORLD_SIZE: value = own->view.largest_group; break;
    }
    (void)pthread_mutex_unlock(&own->lock);
    if (value < 0) return pc_fail(phase, pcclInvalidArgument, "%d is no attribute", (int)attribute);
    *value_out = value;
    return pcclSuccess;
}

pcclResult_t pcclGetMembers(const pcclComm_t *comm, pcclMember_t *members_out, size_t *count_inout) {
    static const char phase[] = "get_members";
    PC_TRY(pc_comm_check(comm, phase));
    PC_REQUIRE(phase, count_inout);
    if (*count_inout > 0) PC_REQUIRE(phase, members_out);
    pcclComm_t *own = pc_comm_of(comm);
    (void)pthread_mutex_lock(&own->lock);
    const size_t count = own->view.member_count;
    const size_t copied = count < *count_inout ? count : *count_inout;
    if (copied > 0) memcpy(members_out, own->view.members, copied * sizeof *members_out);
    (void)pthread_mutex_unlock(&own->lock);
    *count_inout = count;
    return pcclSuccess;
}

/* On the loop's thread, where the machine is ------------------------------------------------------------------- */

static void read_stats(pcclComm_t *comm, void *argument, uint64_t now_ns) {
    (void)now_ns;
    pc_member_stats(comm->member, argument);
}

pcclResult_t pcclGetStats(const pcclComm_t *comm, pcclStats_t *stats_out) {
    static const char phase[] = "get_stats";
    PC_TRY(pc_comm_check(comm, phase));
    PC_REQUIRE(phase, stats_out);
    memset(stats_out, 0, sizeof *stats_out);
    (void)pc_comm_run(pc_comm_of(comm), read_stats, stats_out); /* zeroes before the first connect */
    return pcclSuccess;
}

pcclResult_t pcclGetOpTimeout(const pcclComm_t *comm, uint32_t *timeout_ms_out) {
    static const char phase[] = "get_op_timeout";
    PC_TRY(pc_comm_check(comm, phase));
    PC_REQUIRE(phase, timeout_ms_out);
    *timeout_ms_out = comm->settings.op_timeout_ms;
    return pcclSuccess;
}

/* It may have been lost since the last call ended. */
static void look(pcclComm_t *comm, void *argument, uint64_t now_ns) {
    (void)argument;
    (void)now_ns;
    (void)pthread_mutex_lock(&comm->lock);
    pc_comm_renew_view(comm);
    (void)pthread_mutex_unlock(&comm->lock);
}

pcclResult_t pcclCheckInRun(const pcclComm_t *comm) {
    static const char phase[] = "check_in_run";
    PC_TRY(pc_comm_check_connected(comm, phase));
    (void)pc_comm_run(pc_comm_of(comm), look, NULL);
    return pc_comm_check_in_run(comm, phase);
}

static void abort_member(pcclComm_t *comm, void *argument, uint64_t now_ns) {
    struct pcclRequest_t *request = comm->connect;
    (void)argument;
    if (request != NULL && pc_comm_connect_cancel(comm, request)) {
        (void)pc_error_set(&request->call.outcome.error, pcclCancelled, "aborted by the caller");
        pc_request_complete(request);
    }
    pc_member_abort(comm->member, pcclCancelled, "aborted by the caller", now_ns);
    pc_loop_drain(comm->loop);
    (void)pthread_mutex_lock(&comm->lock);
    pc_comm_renew_view(comm);
    (void)pthread_mutex_unlock(&comm->lock);
}

pcclResult_t pcclAbort(pcclComm_t *comm) {
    PC_TRY(pc_comm_check(comm, "abort"));
    (void)pc_comm_run(comm, abort_member, NULL); /* nothing to abort before the first connect */
    return pcclSuccess;
}
