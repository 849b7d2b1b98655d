/*
 * The master as users run it: a master machine on a loop of its own. It listens from creation on, so that its port is
 * known and peers may dial; they are answered once it runs.
 */
#define _DEFAULT_SOURCE 1
#include "api/config.h"
#include "api/failure.h"
#include "base/checked.h"
#include "base/log.h"
#include "io/fork.h"
#include "io/loop.h"
#include "io/random.h"
#include "io/wait.h"
#include "proto/master.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PORT_PATIENCE_NS (5 * PC_NS_PER_S)
#define LINGER_NS (PC_NS_PER_MS / 5)

enum {
    PROBE_BYTES = 16 << 20,
    SEARCH_STEPS = 10 * PC_RING_BUDGET /* at most about 2 s of a core, beside everything else */
};

struct pcclMasterInstanceState_t {
    uint64_t generation;
    struct pc_settings settings;
    uint16_t port;
    struct pc_master *master;
    struct pc_loop *loop;
    pthread_mutex_t lock;
    bool running;
};

static pcclResult_t check(const pcclMasterInstance_t *master, const char *phase) {
    PC_REQUIRE(phase, master);
    if (master->generation == pc_fork_generation()) return pcclSuccess;
    return pc_fail(phase, pcclForked, "this master belongs to the parent process");
}

/* The loop's events --------------------------------------------------------------------------------------------- */

static void on_dialed_back(void *user, uint64_t id, int sys_errno, uint64_t now_ns) {
    const pcclMasterInstance_t *master = user;
    pc_master_dialed_back(master->master, id, sys_errno, now_ns);
}

static void on_searched(void *user, struct pc_ring_job *job) {
    const pcclMasterInstance_t *master = user;
    pc_master_searched(master->master, job);
}

static void on_closing(void *user, uint64_t now_ns) {
    const pcclMasterInstance_t *master = user;
    pc_master_shutdown(master->master, now_ns);
}

static void on_failed(void *user) {
    (void)user;
    PC_LOG(pcclLogFatal, "master: out of memory; it ends");
}

static const struct pc_loop_events master_events = {
    .dialed_back = on_dialed_back,
    .searched = on_searched,
    .closing = on_closing,
    .failed = on_failed,
};

/* Creation ------------------------------------------------------------------------------------------------------ */

/* The port of a master that has just ended may be taken for a moment still. */
static pc_status listen_patiently(const struct pc_address *at, int *fd, struct pc_address *bound, pc_error *error) {
    const uint64_t deadline_ns = pc_wait_deadline(PORT_PATIENCE_NS);
    for (useconds_t pause_us = 20000;; pause_us = pause_us < 500000 ? pause_us * 2 : pause_us) {
        pc_error attempt = {0};
        if (pc_sock_listen(at, at->port, at->port, fd, bound, &attempt) == pcclSuccess) return pcclSuccess;
        if (attempt.sys_errno != EADDRINUSE || at->port == 0 || pc_loop_now() >= deadline_ns) {
            *error = attempt;
            if (attempt.sys_errno == EADDRINUSE) {
                pc_error_hint(error, "another program listens there; port 0 lets the system choose");
            }
            return attempt.code;
        }
        (void)usleep(pause_us);
    }
}

static pc_status open_listener(const struct pc_endpoint *endpoint, int *fd, struct pc_address *bound,
                               pc_error *error) {
    struct pc_address addresses[PC_ADDRESSES_MAX];
    uint32_t count = 1;
    addresses[0] = pc_sock_any();
    addresses[0].port = endpoint->port;
    if (endpoint->host[0] != '\0') count = pc_endpoint_lookup(endpoint, addresses, PC_ADDRESSES_MAX, error);
    if (count == 0) return error->code;
    return listen_patiently(&addresses[0], fd, bound, error);
}

static struct pc_master *create_machine(const struct pc_settings *settings) {
    struct pc_master_config config = {
        .name = "master",
        /* Grows with every start on a host; no wall clock needed. */
        .incarnation = pc_loop_now(),
        .run_key = settings->run_key,
        .run_key_len = settings->run_key_len,
        .dead_timeout_ns = settings->dead_timeout_ms * PC_NS_PER_MS,
        .join_timeout_ns = settings->join_timeout_ms * PC_NS_PER_MS,
        .probe_bytes = PROBE_BYTES,
        .search_steps = SEARCH_STEPS,
        .handshake_timeout_ns = settings->connect_timeout_ms * PC_NS_PER_MS,
        .random = pc_system_random,
    };
    config.random.fill(NULL, config.run, sizeof config.run);
    return pc_master_create(&config, pc_loop_now());
}

static struct pc_loop *open_loop(pcclMasterInstance_t *master, pc_error *error) {
    struct pc_loop_config config = {
        .thread_name = "pccl-master",
        .machine = pc_master_machine(master->master),
        .events = &master_events,
        .user = master,
        .sock = {.user_timeout_ms = master->settings.dead_timeout_ms},
        /* To tell a peer that it cannot be reached while that still waits, however far away it is. */
        .dial_timeout_ns = master->settings.connect_timeout_ms * PC_NS_PER_MS * 3 / 5,
        .linger_ns = LINGER_NS,
    };
    memcpy(config.sock.congestion, master->settings.congestion, sizeof config.sock.congestion);
    return pc_loop_create(&config, error);
}

static pc_status open_master(pcclMasterInstance_t *master, pc_error *error) {
    struct pc_address bound;
    int fd = -1;
    PC_TRY(open_listener(&master->settings.master, &fd, &bound, error));
    master->port = bound.port;
    master->master = create_machine(&master->settings);
    master->loop = master->master != NULL ? open_loop(master, error) : NULL;
    if (master->loop == NULL) {
        pc_sock_close(fd);
        return pc_error_set(error, pcclNoMemory, "no memory for a master");
    }
    if (pc_loop_listen(master->loop, fd) == pcclSuccess) return pcclSuccess;
    return pc_error_set(error, pcclNoMemory, "no memory for a listener");
}

static void free_master(pcclMasterInstance_t *master) {
    pc_loop_destroy(master->loop);
    pc_master_destroy(master->master);
    (void)pthread_mutex_destroy(&master->lock);
    pc_settings_fini(&master->settings);
    free(master);
}

pcclResult_t pcclCreateMasterWithOptions(const pcclMasterOptions_t *options, pcclMasterInstance_t **master_out) {
    static const char phase[] = "create_master";
    pc_error error = {0};
    PC_REQUIRE(phase, options);
    PC_REQUIRE(phase, master_out);
    *master_out = NULL;
    if (pc_config_process(&error) != pcclSuccess) return pc_fail_with(phase, &error);
    pcclMasterInstance_t *master = pc_calloc(1, sizeof *master);
    if (master == NULL || pthread_mutex_init(&master->lock, NULL) != 0) {
        free(master);
        return pc_fail(phase, pcclNoMemory, "no memory for a master");
    }
    master->generation = pc_fork_generation();
    if (pc_settings_of_master(options, &master->settings, &error) != pcclSuccess ||
        open_master(master, &error) != pcclSuccess) {
        free_master(master);
        return pc_fail_with(phase, &error);
    }
    *master_out = master;
    return pcclSuccess;
}

pcclResult_t pcclCreateMaster(ccoip_socket_address_t listen_address, pcclMasterInstance_t **master_out) {
    char host[INET6_ADDRSTRLEN] = "", listen[INET6_ADDRSTRLEN + 16];
    const ccoip_inet_address_t *inet = &listen_address.inet;
    if (inet->protocol == inetIPv4) (void)inet_ntop(AF_INET, inet->ipv4.data, host, sizeof host);
    else if (inet->protocol == inetIPv6) (void)inet_ntop(AF_INET6, inet->ipv6.data, host, sizeof host);
    else return pc_fail("create_master", pcclInvalidArgument, "unknown protocol of the address");
    (void)snprintf(listen, sizeof listen, "[%s]:%u", host, (unsigned)listen_address.port);
    const pcclMasterOptions_t options = {.listen = listen};
    return pcclCreateMasterWithOptions(&options, master_out);
}

/* Running ------------------------------------------------------------------------------------------------------- */

pcclResult_t pcclRunMaster(pcclMasterInstance_t *master) {
    static const char phase[] = "run_master";
    pc_error error = {0};
    PC_TRY(check(master, phase));
    (void)pthread_mutex_lock(&master->lock);
    const bool again = master->running;
    if (!again) master->running = pc_loop_start(master->loop, &error) == pcclSuccess;
    (void)pthread_mutex_unlock(&master->lock);
    return again ? pc_fail(phase, pcclInvalidUsage, "the master runs already") : pc_fail_with(phase, &error);
}

static pcclResult_t check_running(pcclMasterInstance_t *master, const char *phase) {
    PC_TRY(check(master, phase));
    (void)pthread_mutex_lock(&master->lock);
    const bool running = master->running;
    (void)pthread_mutex_unlock(&master->lock);
    return running ? pcclSuccess : pc_fail(phase, pcclInvalidUsage, "the master was never run");
}

pcclResult_t pcclInterruptMaster(pcclMasterInstance_t *master) {
    PC_TRY(check_running(master, "interrupt_master"));
    pc_loop_close(master->loop);
    return pcclSuccess;
}

pcclResult_t pcclMasterAwaitTermination(pcclMasterInstance_t *master) {
    PC_TRY(check_running(master, "await_termination"));
    (void)pc_loop_wait(master->loop, UINT64_MAX);
    return pcclSuccess;
}

pcclResult_t pcclDestroyMaster(pcclMasterInstance_t *master) {
    PC_REQUIRE("destroy_master", master);
    /* In a child its thread does not exist and its sockets are closed. */
    if (master->generation != pc_fork_generation()) return pcclSuccess;
    free_master(master);
    return pcclSuccess;
}

pcclResult_t pcclGetMasterPort(const pcclMasterInstance_t *master, uint16_t *port_out) {
    PC_TRY(check(master, "get_master_port"));
    PC_REQUIRE("get_master_port", port_out);
    *port_out = master->port;
    return pcclSuccess;
}
