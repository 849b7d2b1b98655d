/*
 * Communicators: making, connecting, the snapshot of the run, ending. Creating one opens nothing: thread and listener
 * come with the first connect, and stay for all later ones.
 */
#define _DEFAULT_SOURCE 1
#include "api/communicator.h"

#include "api/request.h"
#include "base/checked.h"
#include "base/log.h"
#include "io/fork.h"
#include "io/pages.h"
#include "io/random.h"
#include "io/wait.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GOODBYE_NS PC_NS_PER_S

enum { STAGING_BYTES = 16 << 20 };

/* On the loop's thread by order -------------------------------------------------------------------------------- */

struct errand {
    struct pc_command command;
    pcclComm_t *comm;
    void (*function)(pcclComm_t *comm, void *argument, uint64_t now_ns);
    void *argument;
    bool done;
};

static void run_errand(struct pc_loop *loop, struct pc_command *command, uint64_t now_ns) {
    struct errand *errand = (struct errand *)(void *)command;
    pcclComm_t *comm = errand->comm;
    (void)loop;
    errand->function(comm, errand->argument, now_ns);
    (void)pthread_mutex_lock(&comm->lock);
    errand->done = true;
    (void)pthread_cond_broadcast(&comm->any_done);
    (void)pthread_mutex_unlock(&comm->lock);
}

bool pc_comm_run(pcclComm_t *comm, void (*function)(pcclComm_t *comm, void *argument, uint64_t now_ns),
                 void *argument) {
    struct errand errand = {.command = {.run = run_errand}, .comm = comm, .function = function, .argument = argument};
    (void)pthread_mutex_lock(&comm->lock);
    struct pc_loop *loop = comm->loop;
    (void)pthread_mutex_unlock(&comm->lock);
    if (loop == NULL || !pc_loop_post(loop, &errand.command, false)) return false;
    (void)pthread_mutex_lock(&comm->lock);
    while (!errand.done) (void)pc_wait_until(&comm->any_done, &comm->lock, UINT64_MAX);
    (void)pthread_mutex_unlock(&comm->lock);
    return true;
}

/* Checks -------------------------------------------------------------------------------------------------------- */

pcclResult_t pc_comm_check(const pcclComm_t *comm, const char *phase) {
    if (!pc_initialized(phase)) return pcclNotInitialized;
    PC_REQUIRE(phase, comm);
    if (comm->generation == pc_fork_generation()) return pcclSuccess;
    (void)pc_fail(phase, pcclForked, "this communicator belongs to the parent process");
    pc_fail_hint("create a new one after fork, or use the spawn start method");
    return pcclForked;
}

pcclResult_t pc_comm_check_connected(const pcclComm_t *comm, const char *phase) {
    PC_TRY(pc_comm_check(comm, phase));
    pcclComm_t *own = pc_comm_of(comm);
    (void)pthread_mutex_lock(&own->lock);
    const bool connected = own->was_connected;
    (void)pthread_mutex_unlock(&own->lock);
    return connected ? pcclSuccess : pc_fail(phase, pcclInvalidUsage, "the communicator is not connected");
}

pcclResult_t pc_comm_check_in_run(const pcclComm_t *comm, const char *phase) {
    PC_TRY(pc_comm_check_connected(comm, phase));
    pcclComm_t *own = pc_comm_of(comm);
    pcclResult_t code = pcclSuccess;
    (void)pthread_mutex_lock(&own->lock);
    if (!own->view.connected) {
        code = pc_fail_with(phase, &own->view.lost);
        if (code == pcclSuccess) code = pc_fail(phase, pcclInvalidUsage, "the communicator is not connected");
    }
    (void)pthread_mutex_unlock(&own->lock);
    return code;
}

/* Memory -------------------------------------------------------------------------------------------------------- */

static void free_comm(pcclComm_t *comm) {
    struct pc_list *node;
    while ((node = pc_list_pop(&comm->idle)) != NULL) {
        struct pcclRequest_t *request = PC_LIST_ENTRY(node, struct pcclRequest_t, node);
        (void)pthread_cond_destroy(&request->finished);
        free(request);
    }
    pc_callers_fini(&comm->callers);
    pc_settings_fini(&comm->settings);
    (void)pthread_cond_destroy(&comm->any_done);
    (void)pthread_mutex_destroy(&comm->lock);
    free(comm->view.members);
    free(comm->view.subsets);
    free(comm->steps);
    free(comm);
}

void pc_comm_unref_unlock(pcclComm_t *comm) {
    const bool last = --comm->refs == 0;
    (void)pthread_mutex_unlock(&comm->lock);
    if (last) free_comm(comm);
}

/* Snapshot ------------------------------------------------------------------------------------------------------ */

static bool same_view(const struct pc_snapshot *snapshot, const struct pc_member_view *view) {
    return snapshot->connected == view->connected && snapshot->epoch == view->epoch && snapshot->id == view->id &&
           snapshot->incarnation == view->incarnation && snapshot->lost.code == view->lost->code;
}

/* Members come by id, so a group's ranks count up in that order. */
static void copy_members(struct pc_snapshot *snapshot, const struct pc_member_view *view) {
    void *items = snapshot->members;
    snapshot->member_count = 0;
    if (!pc_grow(&items, &snapshot->member_capacity, view->member_count, sizeof *snapshot->members)) return;
    snapshot->members = items;
    for (uint32_t i = 0; i < view->member_count; i++) {
        const struct pc_member_record *record = &view->members[i];
        pcclMember_t *member = &snapshot->members[i];
        *member = (pcclMember_t){.id = record->id, .peer_group = record->group, .observer = record->observer != 0};
        member->self = record->id == view->id;
        pc_address_format(&record->address, member->address, sizeof member->address);
        member->rank = record->observer != 0 ? UINT32_MAX : 0;
        for (uint32_t k = 0; k < i && !member->observer; k++) {
            const pcclMember_t *other = &snapshot->members[k];
            if (other->peer_group == member->peer_group && !other->observer) member->rank++;
        }
    }
    snapshot->member_count = view->member_count;
}

static void count_groups(struct pc_snapshot *snapshot, uint32_t own_group) {
    snapshot->global_size = snapshot->group_size = snapshot->groups = snapshot->largest_group = 0;
    for (size_t i = 0; i < snapshot->member_count; i++) {
        const pcclMember_t *member = &snapshot->members[i];
        if (member->observer) continue;
        /* The member of the highest rank so far tells its group's size. */
        const int size = (int)member->rank + 1;
        snapshot->global_size++;
        if (member->rank == 0) snapshot->groups++;
        if (member->peer_group == own_group) snapshot->group_size = size;
        if (size > snapshot->largest_group) snapshot->largest_group = size;
    }
}

void pc_comm_renew_subsets(pcclComm_t *comm) {
    struct pc_snapshot *snapshot = &comm->view;
    void *items = snapshot->subsets;
    const uint32_t count = pc_member_groups(comm->member, NULL, 0);
    snapshot->subset_count = 0;
    if (!pc_grow(&items, &snapshot->subset_capacity, count, sizeof *snapshot->subsets)) return;
    snapshot->subsets = items;
    snapshot->subset_count = pc_member_groups(comm->member, snapshot->subsets, count);
}

void pc_comm_renew_view(pcclComm_t *comm) {
    struct pc_member_view view;
    pc_member_view(comm->member, &view);
    if (same_view(&comm->view, &view)) return;
    struct pc_snapshot *snapshot = &comm->view;
    snapshot->connected = view.connected;
    snapshot->lost = *view.lost;
    snapshot->id = view.id;
    snapshot->epoch = view.epoch;
    snapshot->group_epoch = view.group_epoch;
    snapshot->incarnation = view.incarnation;
    pc_comm_renew_subsets(comm);
    if (view.connected) {
        copy_members(snapshot, &view);
        count_groups(snapshot, comm->settings.group);
        return;
    }
    /* Out of the run: a world of one, so that a loop over "while the world is larger" ends. */
    snapshot->member_count = 0;
    snapshot->global_size = snapshot->group_size = snapshot->groups = snapshot->largest_group = 1;
}

/* The loop's events --------------------------------------------------------------------------------------------- */

static void on_complete(void *user, struct pc_call *call) {
    (void)user;
    pc_request_complete(call->user);
}

static void on_before_tick(void *user, uint64_t now_ns) {
    pc_request_mark_waiting(user, now_ns);
}

static void add_address(struct pc_address *list, uint32_t *count, struct pc_address address, uint16_t port) {
    if (*count == PC_ADDRESSES_MAX) return;
    for (uint32_t i = 0; i < *count; i++) {
        if (pc_address_same_host(&list[i], &address)) return;
    }
    if (address.port == 0 || port != 0) address.port = port;
    list[(*count)++] = address;
}

/* First the way that is known to work: the address from which the master was reached. */
static void on_master_reached(void *user, const struct pc_address *local, uint64_t now_ns) {
    pcclComm_t *comm = user;
    struct pc_address list[PC_ADDRESSES_MAX], found[PC_ADDRESSES_MAX];
    uint32_t count = 0;
    (void)now_ns;
    if (comm->advertised_count > 0) {
        for (uint32_t i = 0; i < comm->advertised_count; i++) {
            add_address(list, &count, comm->advertised[i], comm->settings.advertise.has_port ? 0 : comm->port);
        }
        pc_member_set_addresses(comm->member, list, count);
        return;
    }
    const uint32_t found_count = pc_interface_addresses(comm->settings.ifname, found, PC_ADDRESSES_MAX);
    if (comm->settings.ifname[0] == '\0') add_address(list, &count, *local, comm->port);
    for (uint32_t i = 0; i < found_count; i++) {
        if (found[i].family == 4 || comm->dual_stack) add_address(list, &count, found[i], comm->port);
    }
    if (count == 0) add_address(list, &count, *local, comm->port);
    pc_member_set_addresses(comm->member, list, count);
}

static void on_closing(void *user, uint64_t now_ns) {
    pcclComm_t *comm = user;
    struct pcclRequest_t *request = comm->connect;
    if (request != NULL && pc_comm_connect_cancel(comm, request)) {
        (void)pc_error_set(&request->call.outcome.error, pcclCancelled, "the communicator was destroyed");
        pc_request_complete(request);
    }
    pc_member_abort(comm->member, pcclCancelled, "the communicator was destroyed", now_ns);
}

static void on_failed(void *user) {
    const pcclComm_t *comm = user;
    PC_LOG(pcclLogError, "%s: out of memory; the communicator ends", pc_member_machine(comm->member)->name);
}

static void on_ended(void *user) {
    pc_error error = {0};
    (void)pc_error_set(&error, pcclCancelled, "the communicator was destroyed");
    pc_request_complete_all(user, &error);
}

static const struct pc_loop_events comm_events = {
    .complete = on_complete,
    .before_tick = on_before_tick,
    .master_reached = on_master_reached,
    .closing = on_closing,
    .failed = on_failed,
    .ended = on_ended,
};

/* Start --------------------------------------------------------------------------------------------------------- */

static struct pc_member *create_member(const pcclComm_t *comm) {
    const struct pc_settings *settings = &comm->settings;
    struct pc_member_config config = {
        .staging_bytes = STAGING_BYTES,
        .group = settings->group,
        .stripes = settings->connections,
        .observer = settings->observer,
        .run_key = settings->run_key,
        .run_key_len = settings->run_key_len,
        .pid = (uint64_t)getpid(),
        .dead_timeout_ns = settings->dead_timeout_ms * PC_NS_PER_MS,
        .op_timeout_ns = settings->op_timeout_ms * PC_NS_PER_MS,
        .handshake_timeout_ns = settings->connect_timeout_ms * PC_NS_PER_MS,
        .random = pc_system_random,
        .memory = pc_pages,
    };
    (void)snprintf(config.name, sizeof config.name, "peer %ld", (long)getpid());
    (void)gethostname(config.host, sizeof config.host - 1);
    return pc_member_create(&config, pc_loop_now());
}

static pc_status open_listener(pcclComm_t *comm, int *fd, pc_error *error) {
    struct pc_address at = pc_sock_any(), bound;
    PC_TRY(pc_sock_listen(&at, comm->settings.port_min, comm->settings.port_max, fd, &bound, error));
    comm->port = bound.port;
    comm->dual_stack = at.family == 6;
    return pcclSuccess;
}

static struct pc_loop *open_loop(pcclComm_t *comm, pc_error *error) {
    struct pc_loop_config config = {
        .thread_name = "pccl-peer",
        .machine = pc_member_machine(comm->member),
        .events = &comm_events,
        .user = comm,
        .sock = {.user_timeout_ms = comm->settings.dead_timeout_ms},
        .dial_timeout_ns = comm->settings.connect_timeout_ms * PC_NS_PER_MS,
        .threads = comm->settings.threads,
        .shared_memory = comm->settings.shared_memory,
    };
    memcpy(config.sock.congestion, comm->settings.congestion, sizeof config.sock.congestion);
    return pc_loop_create(&config, error);
}

pc_status pc_comm_start(pcclComm_t *comm, pc_error *error) {
    if (comm->loop != NULL) return pcclSuccess;
    int fd = -1;
    struct pc_loop *loop = NULL;
    PC_TRY(open_listener(comm, &fd, error));
    comm->member = create_member(comm);
    if (comm->member == NULL) {
        (void)pc_error_set(error, pcclNoMemory, "no memory for a communicator");
        goto failed;
    }
    loop = open_loop(comm, error);
    if (loop == NULL) goto failed;
    const int listening = fd;
    fd = -1; /* the loop's, whatever comes */
    if (pc_loop_listen(loop, listening) != pcclSuccess) {
        (void)pc_error_set(error, pcclNoMemory, "no memory for a listener");
        goto failed;
    }
    if (pc_loop_start(loop, error) != pcclSuccess) goto failed;
    (void)pthread_mutex_lock(&comm->lock);
    comm->loop = loop;
    (void)pthread_mutex_unlock(&comm->lock);
    return pcclSuccess;
failed:
    pc_sock_close(fd);
    if (loop != NULL) pc_loop_destroy(loop);
    pc_member_destroy(comm->member);
    comm->member = NULL;
    return error->code;
}

/* Connecting, on the loop's thread ------------------------------------------------------------------------------ */

static void connect_resolved(pcclComm_t *comm) {
    struct pcclRequest_t *request = comm->connect;
    comm->connect = NULL;
    pc_member_post(comm->member, &request->call, pc_loop_now());
    pc_loop_drain(comm->loop);
}

static void connect_failed(pcclComm_t *comm, const struct pc_endpoint *endpoint, const char *reason) {
    const bool own = endpoint == &comm->settings.advertise;
    struct pcclRequest_t *request = comm->connect;
    comm->connect = NULL;
    pc_error *error = &request->call.outcome.error;
    memset(&request->call.outcome, 0, sizeof request->call.outcome);
    (void)pc_error_set(error, pcclMasterConnectionFailed, "cannot resolve host '%s'%s: %s", endpoint->host,
                       own ? ", which this peer is to be reached at (PCCL_ADVERTISE)" : "", reason);
    pc_error_hint(error, "check the name, or give a numeric address");
    pc_request_complete(request);
}

static void advertise_resolved(void *user, const struct pc_address *addresses, uint32_t count, const char *reason) {
    pcclComm_t *comm = user;
    comm->resolve = NULL;
    if (count == 0) {
        connect_failed(comm, &comm->settings.advertise, reason);
        return;
    }
    memcpy(comm->advertised, addresses, count * sizeof *addresses);
    comm->advertised_count = count;
    connect_resolved(comm);
}

static void resolve(pcclComm_t *comm, const struct pc_endpoint *endpoint, pc_resolve_done done) {
    const uint64_t timeout_ns = comm->settings.connect_timeout_ms * PC_NS_PER_MS;
    comm->resolve = pc_resolve_start(&comm->loop->uv, endpoint, timeout_ns, done, comm);
    if (comm->resolve == NULL) connect_failed(comm, endpoint, "no memory");
}

static void master_resolved(void *user, const struct pc_address *addresses, uint32_t count, const char *reason) {
    pcclComm_t *comm = user;
    comm->resolve = NULL;
    if (count == 0) {
        connect_failed(comm, &comm->settings.master, reason);
        return;
    }
    pc_loop_set_master(comm->loop, addresses, count);
    if (comm->settings.advertise.host[0] != '\0') resolve(comm, &comm->settings.advertise, advertise_resolved);
    else connect_resolved(comm);
}

void pc_comm_connect(pcclComm_t *comm, struct pcclRequest_t *request, uint64_t now_ns) {
    (void)now_ns;
    comm->connect = request;
    resolve(comm, &comm->settings.master, master_resolved);
}

bool pc_comm_connect_cancel(pcclComm_t *comm, struct pcclRequest_t *request) {
    if (comm->connect != request) return false;
    pc_resolve_cancel(comm->resolve);
    comm->resolve = NULL;
    comm->connect = NULL;
    memset(&request->call.outcome, 0, sizeof request->call.outcome);
    return true;
}

/* Life ---------------------------------------------------------------------------------------------------------- */

pcclResult_t pcclCreateCommunicatorWithOptions(const pcclCommOptions_t *options, pcclComm_t **comm_out) {
    static const char phase[] = "create_communicator";
    pc_error error = {0};
    if (!pc_initialized(phase)) return pcclNotInitialized;
    PC_REQUIRE(phase, options);
    PC_REQUIRE(phase, comm_out);
    *comm_out = NULL;
    pcclComm_t *comm = pc_calloc(1, sizeof *comm);
    if (comm == NULL) return pc_fail(phase, pcclNoMemory, "no memory for a communicator");
    if (pc_settings_of_peer(options, &comm->settings, &error) != pcclSuccess) {
        free(comm);
        return pc_fail_with(phase, &error);
    }
    if (!pc_fork_prepare() || pthread_mutex_init(&comm->lock, NULL) != 0 || !pc_wait_init(&comm->any_done)) {
        pc_settings_fini(&comm->settings);
        free(comm);
        return pc_fail(phase, pcclSystemError, "cannot create a lock");
    }
    comm->generation = pc_fork_generation();
    comm->refs = 1;
    pc_list_init(&comm->active);
    pc_list_init(&comm->idle);
    for (int i = 0; i < PC_OPEN_TAG_BUCKETS; i++) pc_list_init(&comm->tags[i]);
    *comm_out = comm;
    return pcclSuccess;
}

pcclResult_t pcclCreateCommunicator(const pcclCommCreateParams_t *params, pcclComm_t **comm_out) {
    char host[INET6_ADDRSTRLEN] = "", master[INET6_ADDRSTRLEN + 16];
    if (!pc_initialized("create_communicator")) return pcclNotInitialized;
    PC_REQUIRE("create_communicator", params);
    const ccoip_inet_address_t *inet = &params->master_address.inet;
    if (inet->protocol == inetIPv4) (void)inet_ntop(AF_INET, inet->ipv4.data, host, sizeof host);
    else if (inet->protocol == inetIPv6) (void)inet_ntop(AF_INET6, inet->ipv6.data, host, sizeof host);
    else return pc_fail("create_communicator", pcclInvalidArgument, "unknown protocol of the master's address");
    (void)snprintf(master, sizeof master, "[%s]:%u", host, (unsigned)params->master_address.port);
    const pcclCommOptions_t options = {
        .master = master,
        .peer_group = params->peer_group,
        .connections = params->p2p_connection_pool_size,
    };
    return pcclCreateCommunicatorWithOptions(&options, comm_out);
}

/* Says goodbye when nothing is in flight; otherwise the end of the loop aborts, which says it too. */
static void leave(pcclComm_t *comm) {
    (void)pthread_mutex_lock(&comm->lock);
    const bool idle = comm->view.connected && pc_list_empty(&comm->active);
    (void)pthread_mutex_unlock(&comm->lock);
    struct pcclRequest_t *request = idle ? pc_request_create(comm, PC_CALL_LEAVE) : NULL;
    if (request == NULL) return;
    pc_request_post(request, false);
    (void)pc_request_wait(request, GOODBYE_NS);
    pc_loop_close(comm->loop); /* completes it if the master's connection did not */
    pc_request_release(request);
}

/* Ends the loop, when no caller is in it any more. */
static void end_loop(pcclComm_t *comm) {
    if (comm->loop != NULL) pc_loop_close(comm->loop);
    (void)pthread_mutex_lock(&comm->lock);
    while (comm->runners > 0) (void)pc_wait_until(&comm->any_done, &comm->lock, UINT64_MAX);
    (void)pthread_mutex_unlock(&comm->lock);
    pc_loop_destroy(comm->loop);
}

/* An asynchronous operation that nobody has awaited has no owner left: its handle names the communicator, which goes. */
static void release_unawaited(pcclComm_t *comm) {
    for (;;) {
        struct pcclRequest_t *found = NULL;
        (void)pthread_mutex_lock(&comm->lock);
        for (struct pc_list *node = comm->active.next; node != &comm->active && found == NULL; node = node->next) {
            struct pcclRequest_t *request = PC_LIST_ENTRY(node, struct pcclRequest_t, node);
            if (request->asynchronous && !request->claimed) found = request;
        }
        (void)pthread_mutex_unlock(&comm->lock);
        if (found == NULL) return;
        pc_request_release(found);
    }
}

pcclResult_t pcclDestroyCommunicator(pcclComm_t *comm) {
    if (comm == NULL && !pc_initialized("destroy_communicator")) return pcclNotInitialized;
    PC_REQUIRE("destroy_communicator", comm);
    /* In a child the sockets are closed already, and locks may be held by threads that exist no more. */
    if (comm->generation != pc_fork_generation()) return pcclSuccess;
    (void)pthread_mutex_lock(&comm->lock);
    const bool twice = comm->destroying;
    comm->destroying = true;
    (void)pthread_mutex_unlock(&comm->lock);
    if (twice) return pc_fail("destroy_communicator", pcclInvalidUsage, "it is being destroyed already");
    if (comm->loop != NULL) leave(comm);
    end_loop(comm);
    pc_member_destroy(comm->member);
    release_unawaited(comm);
    (void)pthread_mutex_lock(&comm->lock);
    pc_comm_unref_unlock(comm);
    return pcclSuccess;
}
