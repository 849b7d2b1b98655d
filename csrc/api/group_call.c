/*
 * Groups made of some members, and steps, of which every group has its own. Making a group and ending a step are joint
 * calls; destroying one is this peer's alone.
 */
#define _DEFAULT_SOURCE 1
#include "api/request.h"
#include "base/checked.h"
#include "plan/chunk_plan.h"

#include <stdlib.h>

/* Groups -------------------------------------------------------------------------------------------------------- */

static pcclResult_t check_ids(const char *phase, const uint64_t *ids, size_t count) {
    if (count == 0) return pc_fail(phase, pcclInvalidArgument, "a group of nobody");
    PC_REQUIRE(phase, ids);
    if (count > PC_RANKS_MAX) return pc_fail(phase, pcclInvalidArgument, "a group of %zu is too large", count);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (ids[i] != ids[k]) continue;
            return pc_fail(phase, pcclInvalidArgument, "peer %llu is listed twice", (unsigned long long)ids[i]);
        }
    }
    return pcclSuccess;
}

static pcclResult_t make_create(pcclComm_t *comm, const uint64_t *ids, size_t count, struct pcclRequest_t **out) {
    static const char phase[] = "new_group";
    PC_TRY(pc_comm_check_in_run(comm, phase));
    PC_TRY(check_ids(phase, ids, count));
    (void)pthread_mutex_lock(&comm->lock);
    const bool in_step = comm->step_count > 0;
    (void)pthread_mutex_unlock(&comm->lock);
    if (in_step) return pc_fail(phase, pcclInvalidUsage, "a step is open; end it first");
    struct pcclRequest_t *request = pc_request_create(comm, PC_CALL_CREATE_GROUP);
    struct pc_id_item *items = request != NULL ? pc_calloc(count, sizeof *items) : NULL;
    if (items == NULL) {
        if (request != NULL) pc_request_drop(request);
        return pc_fail(phase, pcclNoMemory, "no memory for a call");
    }
    for (size_t i = 0; i < count; i++) items[i].id = ids[i];
    request->call.ids = items;
    request->call.id_count = (uint32_t)count;
    *out = request;
    return pcclSuccess;
}

pcclResult_t pcclStartCreateGroup(pcclComm_t *comm, const uint64_t *ids, size_t count, pcclRequest_t **request_out) {
    PC_REQUIRE("new_group", request_out);
    *request_out = NULL;
    PC_TRY(make_create(comm, ids, count, request_out));
    pc_request_post(*request_out, false);
    return pcclSuccess;
}

pcclResult_t pcclCreateGroup(pcclComm_t *comm, const uint64_t *ids, size_t count, uint32_t *group_out) {
    struct pcclRequest_t *request = NULL;
    pcclOutcome_t outcome;
    PC_REQUIRE("new_group", group_out);
    *group_out = 0;
    PC_TRY(make_create(comm, ids, count, &request));
    PC_TRY(pc_request_run(request, &outcome));
    *group_out = outcome.group;
    return pcclSuccess;
}

struct destruction {
    uint32_t group;
    pc_error error;
};

static void destroy_group(pcclComm_t *comm, void *argument, uint64_t now_ns) {
    struct destruction *destruction = argument;
    (void)now_ns;
    (void)pc_member_destroy_group(comm->member, destruction->group, &destruction->error);
    pc_loop_drain(comm->loop);
    (void)pthread_mutex_lock(&comm->lock);
    pc_comm_renew_subsets(comm);
    (void)pthread_mutex_unlock(&comm->lock);
}

pcclResult_t pcclDestroyGroup(pcclComm_t *comm, uint32_t group) {
    static const char phase[] = "destroy_group";
    PC_TRY(pc_comm_check_connected(comm, phase));
    (void)pthread_mutex_lock(&comm->lock);
    const bool busy = pc_request_open_in(comm, group) > 0, in_step = pc_step_is_open(comm, group);
    (void)pthread_mutex_unlock(&comm->lock);
    if (busy) return pc_fail(phase, pcclPendingAsyncOps, "operations of the group are in flight; await them first");
    if (in_step) return pc_fail(phase, pcclInvalidUsage, "a step of the group is open; end it first");
    struct destruction destruction = {.group = group};
    (void)pc_comm_run(comm, destroy_group, &destruction);
    return pc_fail_with(phase, &destruction.error);
}

/* Steps --------------------------------------------------------------------------------------------------------- */

static size_t step_at(const pcclComm_t *comm, uint32_t group) {
    size_t at = 0;
    while (at < comm->step_count && comm->steps[at] != group) at++;
    return at;
}

bool pc_step_is_open(const pcclComm_t *comm, uint32_t group) {
    return step_at(comm, group) < comm->step_count;
}

/* With lock held. */
static bool is_known(const pcclComm_t *comm, uint32_t group) {
    bool known = group == 0;
    for (size_t i = 0; i < comm->view.subset_count; i++) known |= comm->view.subsets[i].number == group;
    return known;
}

pcclResult_t pcclBeginStep(pcclComm_t *comm, uint32_t group) {
    static const char phase[] = "begin_step";
    PC_TRY(pc_comm_check_in_run(comm, phase));
    if (comm->settings.observer) return pc_fail(phase, pcclInvalidUsage, "an observer takes no part in steps");
    (void)pthread_mutex_lock(&comm->lock);
    const bool open = pc_step_is_open(comm, group), known = is_known(comm, group);
    void *items = comm->steps;
    const bool room = pc_grow(&items, &comm->step_capacity, comm->step_count + 1, sizeof *comm->steps);
    comm->steps = items;
    if (room && known && !open) comm->steps[comm->step_count++] = group;
    (void)pthread_mutex_unlock(&comm->lock);
    if (!known) return pc_fail(phase, pcclInvalidUsage, "there is no group %u: it was destroyed, or never made", group);
    if (open) return pc_fail(phase, pcclInvalidUsage, "a step of this group is open already");
    return room ? pcclSuccess : pc_fail(phase, pcclNoMemory, "no memory for a step");
}

static pcclResult_t make_end_step(pcclComm_t *comm, uint32_t group, bool commit, struct pcclRequest_t **request_out) {
    static const char phase[] = "end_step";
    PC_TRY(pc_comm_check_connected(comm, phase));
    (void)pthread_mutex_lock(&comm->lock);
    const size_t at = step_at(comm, group);
    const bool open = at < comm->step_count, busy = pc_request_open_in(comm, group) > 0;
    if (open && !busy) comm->steps[at] = comm->steps[--comm->step_count];
    (void)pthread_mutex_unlock(&comm->lock);
    if (!open) return pc_fail(phase, pcclInvalidUsage, "no step of this group is open");
    if (busy) return pc_fail(phase, pcclPendingAsyncOps, "operations are in flight; await them first");
    struct pcclRequest_t *request = pc_request_create(comm, PC_CALL_END_STEP);
    if (request == NULL) return pc_fail(phase, pcclNoMemory, "no memory for a call");
    request->call.group = group;
    request->call.vote = commit;
    *request_out = request;
    return pcclSuccess;
}

pcclResult_t pcclStartEndStep(pcclComm_t *comm, uint32_t group, bool commit, pcclRequest_t **request_out) {
    PC_REQUIRE("end_step", request_out);
    *request_out = NULL;
    PC_TRY(make_end_step(comm, group, commit, request_out));
    pc_request_post(*request_out, false);
    return pcclSuccess;
}

pcclResult_t pcclEndStep(pcclComm_t *comm, uint32_t group, bool commit) {
    struct pcclRequest_t *request = NULL;
    PC_TRY(make_end_step(comm, group, commit, &request));
    return pc_request_run(request, NULL);
}
