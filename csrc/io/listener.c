/*
 * Accepting. A process without free descriptors finds its listener readable for ever; polling it on would spin on one
 * core, so it pauses and tries again. Nobody is turned away: connections wait in the kernel's queue.
 */
#define _DEFAULT_SOURCE 1
#include "io/listener.h"

#include "base/checked.h"
#include "base/log.h"
#include "io/conn.h"
#include "io/shm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { ACCEPTS_PER_TURN = 64 };
#define PAUSE_NS (100 * PC_NS_PER_MS)

struct pc_listener {
    struct pc_list node;
    struct pc_loop *loop;
    int fd;
    bool local; /* a socket for shared memory */
    struct pc_watch *watch;
    struct pc_alarm *alarm;
    bool pausing; /* to say it once */
};

/* 0, or -1 with errno. One who comes through a local socket counts as coming through loopback. */
static int accept_one(struct pc_listener *listener, struct pc_transport *transport, struct pc_address *from) {
    if (listener->local) {
        *from = (struct pc_address){.family = 4, .ip = {127, 0, 0, 1}};
        return pc_shm_accept(listener->fd, transport);
    }
    const int fd = pc_sock_accept(listener->fd, &listener->loop->config.sock, from);
    if (fd < 0) return -1;
    pc_transport_tcp(transport, fd);
    return 0;
}

static void take(struct pc_loop *loop, struct pc_transport *transport, const struct pc_address *from) {
    struct pc_stream *stream = loop->machine->ops->accept(loop->machine, from, pc_loop_now());
    if (stream == NULL) {
        transport->ops->close(transport);
        return;
    }
    if (pc_conn_create(loop, stream, transport) == NULL) {
        loop->machine->ops->closed(loop->machine, stream, ENOMEM, pc_loop_now());
    }
}

static bool out_of_something(int sys_errno) {
    return sys_errno == EMFILE || sys_errno == ENFILE || sys_errno == ENOBUFS || sys_errno == ENOMEM;
}

static void on_readable(void *owner, int status, int events) {
    struct pc_listener *listener = owner;
    struct pc_loop *loop = listener->loop;
    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct pc_address from;
        struct pc_transport transport;
        const bool taken = accept_one(listener, &transport, &from) == 0;
        if (!taken && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (!taken && out_of_something(errno)) {
            if (!listener->pausing) PC_LOG(pcclLogWarn, "%s: cannot accept: %s", loop->machine->name, strerror(errno));
            listener->pausing = true;
            pc_watch_set(listener->watch, 0);
            pc_alarm_set(listener->alarm, PAUSE_NS);
            break;
        }
        if (!taken) continue; /* that one connection failed */
        listener->pausing = false;
        take(loop, &transport, &from);
        pc_loop_drain(loop);
    }
    pc_loop_drain(loop);
}

static void resume(void *owner) {
    struct pc_listener *listener = owner;
    pc_watch_set(listener->watch, UV_READABLE);
}

static void destroy(struct pc_listener *listener) {
    pc_watch_destroy(listener->watch);
    pc_alarm_destroy(listener->alarm);
    pc_sock_close(listener->fd);
    pc_list_remove(&listener->node);
    free(listener);
}

static pc_status create(struct pc_loop *loop, int fd, bool local) {
    struct pc_listener *listener = pc_calloc(1, sizeof *listener);
    if (listener == NULL) {
        pc_sock_close(fd);
        return pcclNoMemory;
    }
    listener->loop = loop;
    listener->fd = fd;
    listener->local = local;
    listener->watch = pc_watch_create(&loop->uv, fd, on_readable, listener);
    listener->alarm = pc_alarm_create(&loop->uv, resume, listener);
    if (listener->watch == NULL || listener->alarm == NULL) {
        destroy(listener);
        return pcclNoMemory;
    }
    pc_list_append(&loop->listeners, &listener->node);
    pc_watch_set(listener->watch, UV_READABLE);
    return pcclSuccess;
}

/* Shared memory is an offer: without it the others come through TCP. */
static void offer_shm(struct pc_loop *loop, const struct pc_address *bound) {
    const int fd = pc_shm_listen(bound->port);
    if (fd < 0) PC_LOG(pcclLogInfo, "%s: no shared memory for peers: %s", loop->machine->name, strerror(errno));
    else (void)create(loop, fd, true);
}

pc_status pc_listener_create(struct pc_loop *loop, int fd) {
    struct pc_address bound;
    const bool known = pc_sock_local_address(fd, &bound);
    PC_TRY(create(loop, fd, false));
    if (known && loop->config.shared_memory) offer_shm(loop, &bound);
    return pcclSuccess;
}

void pc_listener_destroy_all(struct pc_loop *loop) {
    while (!pc_list_empty(&loop->listeners)) {
        destroy(PC_LIST_ENTRY(loop->listeners.next, struct pc_listener, node));
    }
}
