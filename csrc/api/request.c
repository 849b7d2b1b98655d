/*
 * Requests: start, wait, cancel, complete, free. See request.h for who holds what.
 *
 * The loop's thread never waits for a caller, and a caller waits for the loop's thread only where the machine promises
 * an end: completion, or cancellation, which completes soon.
 */
#define _DEFAULT_SOURCE 1
#include "api/request.h"

#include "base/checked.h"
#include "io/fork.h"
#include "io/wait.h"

#include <stdlib.h>
#include <string.h>

/* A thread that waits in slices is between two of them for less than this. */
#define SLICE_GAP_NS (500 * PC_NS_PER_MS)

static struct pcclRequest_t *request_of_command(struct pc_command *command, size_t offset) {
    return (struct pcclRequest_t *)(void *)((char *)command - offset);
}

/* References ---------------------------------------------------------------------------------------------------- */

static struct pcclRequest_t *new_request(pcclComm_t *comm) {
    struct pcclRequest_t *request = pc_calloc(1, sizeof *request);
    if (request == NULL) return NULL;
    if (!pc_wait_init(&request->finished)) {
        free(request);
        return NULL;
    }
    request->comm = comm;
    return request;
}

/* With lock held; unlocks. */
static void unref_unlock(struct pcclRequest_t *request) {
    pcclComm_t *comm = request->comm;
    if (--request->refs > 0) {
        (void)pthread_mutex_unlock(&comm->lock);
        return;
    }
    pc_list_remove(&request->node);
    pc_list_append(&comm->idle, &request->node);
    pc_comm_unref_unlock(comm);
}

static void unref(struct pcclRequest_t *request) {
    (void)pthread_mutex_lock(&request->comm->lock);
    unref_unlock(request);
}

struct pcclRequest_t *pc_request_create(pcclComm_t *comm, enum pc_call_kind kind) {
    (void)pthread_mutex_lock(&comm->lock);
    struct pc_list *node = pc_list_pop(&comm->idle);
    struct pcclRequest_t *request = node != NULL ? PC_LIST_ENTRY(node, struct pcclRequest_t, node) : new_request(comm);
    if (request != NULL) {
        request->refs = 1;
        request->waiters = 0;
        request->waited_ns = 0;
        request->posted = request->done = request->cancel_queued = false;
        request->open_reduce = request->asynchronous = request->claimed = false;
        request->ended = NULL;
        /* The outcome, most of the memory, is cleared by the machine at posting. */
        memset(&request->call, 0, offsetof(struct pc_call, outcome));
        request->call.outcome.error.code = pcclSuccess;
        request->call.kind = kind;
        request->call.user = request;
        comm->refs++;
        pc_list_append(&comm->active, &request->node);
    }
    (void)pthread_mutex_unlock(&comm->lock);
    return request;
}

/* The lists are ours, the digests in that of tensors were made by pc_call_prepare_sync. */
static void drop_lists(struct pc_call *call) {
    free(call->ids);
    call->ids = NULL;
    if (call->tensors == NULL) return;
    pc_call_fini_sync(call);
    free(call->tensors);
    call->tensors = NULL;
    call->tensor_count = 0;
}

struct pc_list *pc_request_tags(pcclComm_t *comm, uint64_t tag) {
    return &comm->tags[(tag * 0x9e3779b97f4a7c15ull >> 32) % PC_OPEN_TAG_BUCKETS];
}

uint32_t pc_request_open_in(const pcclComm_t *comm, uint32_t group) {
    uint32_t count = 0;
    for (const struct pc_list *node = comm->active.next; node != &comm->active; node = node->next) {
        const struct pcclRequest_t *request = PC_LIST_ENTRY(node, struct pcclRequest_t, node);
        count += request->open_reduce && request->call.group == group;
    }
    return count;
}

pcclResult_t pc_request_check_idle(pcclComm_t *comm, const char *phase) {
    (void)pthread_mutex_lock(&comm->lock);
    const bool busy = comm->reduces_open > 0, in_step = comm->step_count > 0;
    (void)pthread_mutex_unlock(&comm->lock);
    if (busy) return pc_fail(phase, pcclPendingAsyncOps, "asynchronous operations are in flight; await them first");
    if (in_step) return pc_fail(phase, pcclInvalidUsage, "a step is open; end it first");
    return pcclSuccess;
}

/* Completion ---------------------------------------------------------------------------------------------------- */

/* With lock held. */
static void close_reduce(struct pcclRequest_t *request) {
    if (request->open_reduce && !request->asynchronous) {
        request->open_reduce = false;
        request->comm->reduces_open--;
        pc_list_remove(&request->tag_node);
    }
}

/* PCCL's code for a synchronisation that failed or ended in a kick; the record keeps the reason as text. */
static void map_code(struct pc_call *call) {
    pc_error *error = &call->outcome.error;
    if (error->code != pcclSuccess && error->phase[0] == '\0') {
        pc_text_copy(error->phase, sizeof error->phase, pc_text_of(pc_call_phase(call)));
    }
    if (call->kind != PC_CALL_SYNC_STATE) return;
    switch (error->code) {
    case pcclEvicted:
    case pcclMismatch:
    case pcclRefused:
    case pcclRankConnectionLost:
    case pcclRankConnectionFailed:
    case pcclNoSharedStateAvailable: error->code = pcclInvalidUsage; break;
    default: break;
    }
}

/* on_loop: on the loop's thread; else the machine is not to be looked at. */
static void complete(struct pcclRequest_t *request, bool on_loop) {
    pcclComm_t *comm = request->comm;
    drop_lists(&request->call);
    map_code(&request->call);
    (void)pthread_mutex_lock(&comm->lock);
    if (on_loop) pc_comm_renew_view(comm);
    if (request->call.kind == PC_CALL_CONNECT) {
        comm->connecting = false;
        if (request->call.outcome.error.code == pcclSuccess) comm->was_connected = true;
    }
    request->done = true;
    comm->open--;
    close_reduce(request);
    if (request->ended != NULL) pc_list_append(request->ended, &request->ended_node);
    if (comm->any_waiters > 0) (void)pthread_cond_broadcast(&comm->any_done);
    const bool wake = request->waiters > 0, rest = wake && comm->open == 0;
    request->refs--; /* the machine's; the starter's is there still */
    (void)pthread_mutex_unlock(&comm->lock);
    /* Without the lock, so that the waiter doesn't wake only to wait for it. The request may be in its second life by
     * now, whose waiter then looks once in vain. */
    if (wake) (void)pthread_cond_broadcast(&request->finished);
    if (rest && on_loop) pc_loop_rest(comm->loop);
}

void pc_request_complete(struct pcclRequest_t *request) {
    complete(request, true);
}

void pc_request_complete_all(pcclComm_t *comm, const pc_error *error) {
    for (;;) {
        struct pcclRequest_t *found = NULL;
        (void)pthread_mutex_lock(&comm->lock);
        for (struct pc_list *node = comm->active.next; node != &comm->active && found == NULL; node = node->next) {
            struct pcclRequest_t *request = PC_LIST_ENTRY(node, struct pcclRequest_t, node);
            if (request->posted && !request->done) found = request;
        }
        (void)pthread_mutex_unlock(&comm->lock);
        if (found == NULL) return;
        found->call.outcome.error = *error;
        pc_request_complete(found);
    }
}

void pc_request_mark_waiting(pcclComm_t *comm, uint64_t now_ns) {
    (void)pthread_mutex_lock(&comm->lock);
    for (struct pc_list *node = comm->active.next; node != &comm->active; node = node->next) {
        struct pcclRequest_t *request = PC_LIST_ENTRY(node, struct pcclRequest_t, node);
        if (!request->posted) continue;
        const bool between_slices = request->waited_ns != 0 && now_ns < request->waited_ns + SLICE_GAP_NS;
        request->call.blocking = request->waiters > 0 || request->ended != NULL || between_slices;
    }
    const bool threads_free = pc_callers_any_free(&comm->callers, now_ns, SLICE_GAP_NS);
    (void)pthread_mutex_unlock(&comm->lock);
    pc_member_set_threads_free(comm->member, threads_free);
}

/* Commands ------------------------------------------------------------------------------------------------------ */

static void run_post(struct pc_loop *loop, struct pc_command *command, uint64_t now_ns) {
    struct pcclRequest_t *request = request_of_command(command, offsetof(struct pcclRequest_t, post));
    (void)loop;
    if (request->call.kind == PC_CALL_CONNECT) pc_comm_connect(request->comm, request, now_ns);
    else pc_member_post(request->comm->member, &request->call, now_ns);
}

static void run_cancel(struct pc_loop *loop, struct pc_command *command, uint64_t now_ns) {
    struct pcclRequest_t *request = request_of_command(command, offsetof(struct pcclRequest_t, cancel));
    pcclComm_t *comm = request->comm;
    (void)loop;
    (void)pthread_mutex_lock(&comm->lock);
    const bool done = request->done;
    (void)pthread_mutex_unlock(&comm->lock);
    if (!done && pc_comm_connect_cancel(comm, request)) {
        (void)pc_error_set(&request->call.outcome.error, pcclCancelled, "connect was cancelled by the caller");
        pc_request_complete(request);
    } else if (!done) {
        pc_member_cancel(comm->member, &request->call, now_ns);
    }
    unref(request);
}

static void fail_ended(struct pcclRequest_t *request) {
    memset(&request->call.outcome, 0, sizeof request->call.outcome);
    (void)pc_error_set(&request->call.outcome.error, pcclCancelled, "the communicator was destroyed");
}

void pc_request_post(struct pcclRequest_t *request, bool awaited) {
    pcclComm_t *comm = request->comm;
    (void)pthread_mutex_lock(&comm->lock);
    request->refs++; /* the machine's, until completion */
    comm->open++;
    request->posted = true;
    if (request->call.kind != PC_CALL_CONNECT) pc_callers_note(&comm->callers, pc_loop_now());
    (void)pthread_mutex_unlock(&comm->lock);
    request->post.run = run_post;
    if (pc_loop_post(comm->loop, &request->post, awaited)) return;
    fail_ended(request);
    complete(request, false); /* the machine is the loop's thread's, even now */
}

void pc_request_cancel(struct pcclRequest_t *request) {
    pcclComm_t *comm = request->comm;
    (void)pthread_mutex_lock(&comm->lock);
    const bool queue = !request->done && !request->cancel_queued;
    if (queue) {
        request->cancel_queued = true;
        request->refs++;
    }
    (void)pthread_mutex_unlock(&comm->lock);
    if (!queue) return;
    request->cancel.run = run_cancel;
    if (!pc_loop_post(comm->loop, &request->cancel, false)) unref(request); /* the end of the loop completes it */
}

/* Waiting ------------------------------------------------------------------------------------------------------- */

/* With lock held, which it gives up meanwhile. Whoever destroys the communicator leaves that to the loop's own thread. */
static void run_loop(struct pcclRequest_t *request, uint64_t deadline_ns) {
    pcclComm_t *comm = request->comm;
    if (comm->destroying) return;
    comm->runners++;
    (void)pthread_mutex_unlock(&comm->lock);
    pc_loop_run_until(comm->loop, &request->done, deadline_ns);
    (void)pthread_mutex_lock(&comm->lock);
    if (--comm->runners == 0 && comm->destroying) (void)pthread_cond_broadcast(&comm->any_done);
}

bool pc_request_wait(struct pcclRequest_t *request, uint64_t timeout_ns) {
    pcclComm_t *comm = request->comm;
    (void)pthread_mutex_lock(&comm->lock);
    if (!request->done && timeout_ns > 0) {
        const uint64_t deadline_ns = pc_wait_deadline(timeout_ns);
        bool in_time = true;
        const bool calls = request->call.kind != PC_CALL_CONNECT;
        request->waiters++;
        if (calls) pc_callers_enter(&comm->callers);
        run_loop(request, deadline_ns);
        while (!request->done && in_time) in_time = pc_wait_until(&request->finished, &comm->lock, deadline_ns);
        request->waiters--;
        const uint64_t now_ns = pc_loop_now();
        if (calls) pc_callers_leave(&comm->callers, now_ns);
        if (!request->done) request->waited_ns = now_ns;
    }
    const bool done = request->done;
    (void)pthread_mutex_unlock(&comm->lock);
    return done;
}

void pc_request_release(struct pcclRequest_t *request) {
    pcclComm_t *comm = request->comm;
    if (!pc_request_wait(request, 0)) {
        pc_request_cancel(request);
        (void)pc_request_wait(request, UINT64_MAX);
    }
    (void)pthread_mutex_lock(&comm->lock);
    request->asynchronous = false;
    close_reduce(request);
    unref_unlock(request);
}

void pc_request_drop(struct pcclRequest_t *request) {
    drop_lists(&request->call);
    (void)pthread_mutex_lock(&request->comm->lock);
    close_reduce(request);
    unref_unlock(request);
}

pcclResult_t pc_request_run(struct pcclRequest_t *request, pcclOutcome_t *outcome) {
    request->call.blocking = true;
    pc_request_post(request, true);
    (void)pc_request_wait(request, UINT64_MAX);
    if (outcome != NULL) *outcome = request->call.outcome;
    const pcclResult_t code = pc_fail_with(pc_call_name(request->call.kind), &request->call.outcome.error);
    pc_request_release(request);
    return code;
}

/* The public face ----------------------------------------------------------------------------------------------- */

static pcclResult_t check(const pcclRequest_t *request, const char *phase) {
    PC_REQUIRE(phase, request);
    if (request->comm->generation == pc_fork_generation()) return pcclSuccess;
    return pc_fail(phase, pcclForked, "this request was started by the parent process");
}

pcclResult_t pcclWaitRequest(pcclRequest_t *request, uint32_t timeout_ms, pcclOutcome_t *outcome_out) {
    PC_TRY(check(request, "wait"));
    const uint64_t timeout_ns = timeout_ms == UINT32_MAX ? UINT64_MAX : timeout_ms * PC_NS_PER_MS;
    if (!pc_request_wait(request, timeout_ns)) return pcclInProgress;
    if (outcome_out != NULL) *outcome_out = request->call.outcome;
    return pc_fail_with(pc_call_name(request->call.kind), &request->call.outcome.error);
}

pcclResult_t pcclCancelRequest(pcclRequest_t *request) {
    PC_TRY(check(request, "cancel"));
    pc_request_cancel(request);
    return pcclSuccess;
}

pcclResult_t pcclFreeRequest(pcclRequest_t *request) {
    PC_REQUIRE("free", request);
    /* In a child the memory is left alone: its locks may be held by threads that exist no more. */
    if (request->comm->generation != pc_fork_generation()) return pcclSuccess;
    pc_request_release(request);
    return pcclSuccess;
}
