/*
 * Accepting. A process without free descriptors finds its listener readable for ever; polling it on would spin on one
 * core, so it pauses and tries again. Nobody is turned away: connections wait in the kernel's queue.
 */
#define _DEFAULT_SOURCE 1
#include "io/listener.h"

#include "base/checked.h"
#include "base/log.h"
#include "io/conn.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { ACCEPTS_PER_TURN = 64 };
#define PAUSE_NS (100 * PC_NS_PER_MS)

struct pc_listener {
    struct pc_list node;
    struct pc_loop *loop;
    int fd;
    struct pc_watch *watch;
    struct pc_alarm *alarm;
    bool pausing; /* to say it once */
};

static void take(struct pc_loop *loop, int fd, const struct pc_address *from) {
    struct pc_stream *stream = loop->machine->ops->accept(loop->machine, from, pc_loop_now());
    if (stream == NULL) {
        pc_sock_close(fd);
        return;
    }
    if (pc_conn_create(loop, stream, fd) == NULL) {
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
        const int fd = pc_sock_accept(listener->fd, &loop->config.sock, &from);
        if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (fd < 0 && out_of_something(errno)) {
            if (!listener->pausing) PC_LOG(pcclLogWarn, "%s: cannot accept: %s", loop->machine->name, strerror(errno));
            listener->pausing = true;
            pc_watch_set(listener->watch, 0);
            pc_alarm_set(listener->alarm, PAUSE_NS);
            break;
        }
        if (fd < 0) continue; /* that one connection failed */
        listener->pausing = false;
        take(loop, fd, &from);
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

pc_status pc_listener_create(struct pc_loop *loop, int fd) {
    struct pc_listener *listener = pc_calloc(1, sizeof *listener);
    if (listener == NULL) {
        pc_sock_close(fd);
        return pcclNoMemory;
    }
    listener->loop = loop;
    listener->fd = fd;
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

void pc_listener_destroy_all(struct pc_loop *loop) {
    while (!pc_list_empty(&loop->listeners)) {
        destroy(PC_LIST_ENTRY(loop->listeners.next, struct pc_listener, node));
    }
}
