/*
 * One dial is one heap object that tries its addresses one after the other, each once: it fails when the last one has
 * refused, and lasts until the deadline only where nobody answers. Whether to dial again is the caller's affair. Its end
 * is in succeed or fail, which free it before they tell anybody.
 * Another member on this host is first looked for at its local socket, where shared memory is to be had; whatever goes
 * wrong there, TCP follows.
 * Nothing is told from within the call that begins a dial unless the loop is draining, where it is safe: the machine's
 * answer only adds actions.
 */
#define _DEFAULT_SOURCE 1
#include "io/dial.h"

#include "base/checked.h"
#include "base/log.h"
#include "io/conn.h"
#include "io/shm.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

struct pc_dial {
    struct pc_list node;
    struct pc_loop *loop;
    struct pc_stream *stream; /* NULL: a dial back */
    uint64_t id;
    bool to_master;
    struct pc_address addresses[PC_ADDRESSES_MAX];
    uint32_t count, at;
    uint64_t deadline_ns;
    bool local; /* the attempt under way is for shared memory */
    bool local_tried; /* at the address whose turn it is */
    int fd, last_errno;
    struct pc_watch *watch;
    struct pc_alarm *alarm; /* the end of an attempt */
};

static void try_next(struct pc_dial *dial);

static void drop_attempt(struct pc_dial *dial) {
    pc_watch_destroy(dial->watch);
    dial->watch = NULL;
    pc_sock_close(dial->fd);
    dial->fd = -1;
    pc_alarm_stop(dial->alarm);
}

static void destroy(struct pc_dial *dial) {
    drop_attempt(dial);
    pc_alarm_destroy(dial->alarm);
    pc_list_remove(&dial->node);
    free(dial);
}

static void tell_back(struct pc_loop *loop, uint64_t id, int sys_errno) {
    if (loop->config.events->dialed_back != NULL) {
        loop->config.events->dialed_back(loop->config.user, id, sys_errno, pc_loop_now());
    }
}

static void fail(struct pc_dial *dial) {
    struct pc_loop *loop = dial->loop;
    struct pc_stream *stream = dial->stream;
    const uint64_t id = dial->id;
    const int sys_errno = dial->last_errno != 0 ? dial->last_errno : EDESTADDRREQ;
    destroy(dial);
    if (stream != NULL) loop->machine->ops->closed(loop->machine, stream, sys_errno, pc_loop_now());
    else tell_back(loop, id, sys_errno);
    pc_loop_drain(loop);
}

/* The dial's socket is the transport's by now. */
static void open_stream(struct pc_dial *dial, const struct pc_transport *transport) {
    struct pc_loop *loop = dial->loop;
    struct pc_stream *stream = dial->stream;
    const bool to_master = dial->to_master;
    struct pc_address local = {.family = 4};
    const bool known = pc_sock_local_address(transport->fd, &local);
    const bool loopback = pc_transport_is_shm(transport) ||
                          (known && (pc_address_is_loopback(&local) || pc_address_same_host(&local, &stream->remote)));
    pc_watch_destroy(dial->watch);
    dial->watch = NULL;
    dial->fd = -1;
    destroy(dial);
    struct pc_conn *conn = pc_conn_create(loop, stream, transport);
    const uint64_t now_ns = pc_loop_now();
    if (conn == NULL) {
        loop->machine->ops->closed(loop->machine, stream, ENOMEM, now_ns);
    } else {
        if (to_master) loop->beside_master = pc_address_is_loopback(&local);
        if (to_master && loop->config.events->master_reached != NULL) {
            loop->config.events->master_reached(loop->config.user, &local, now_ns);
        }
        loop->machine->ops->opened(loop->machine, stream, loopback, now_ns);
    }
    pc_loop_drain(loop);
}

static void succeed(struct pc_dial *dial) {
    if (dial->stream != NULL) {
        struct pc_transport transport;
        pc_transport_tcp(&transport, dial->fd);
        open_stream(dial, &transport);
        return;
    }
    struct pc_loop *loop = dial->loop;
    const uint64_t id = dial->id;
    destroy(dial);
    tell_back(loop, id, 0);
    pc_loop_drain(loop);
}

static void next_address(struct pc_dial *dial) {
    dial->at++;
    dial->local_tried = false;
}

static void attempt_failed(struct pc_dial *dial, int sys_errno) {
    drop_attempt(dial);
    if (dial->local) {
        dial->local = false;
    } else {
        dial->last_errno = sys_errno;
        next_address(dial);
    }
    try_next(dial);
}

static void attempt_over(struct pc_dial *dial) {
    struct pc_transport transport;
    const int failure = dial->local ? pc_shm_dialed(dial->fd, &transport) : pc_sock_dialed(dial->fd);
    if (failure != 0) attempt_failed(dial, failure);
    else if (dial->local) open_stream(dial, &transport);
    else succeed(dial);
}

static void on_answer(void *owner, int status, int events) {
    (void)status; /* the socket knows the reason */
    (void)events;
    attempt_over(owner);
}

static void on_alarm(void *owner) {
    attempt_failed(owner, ETIMEDOUT);
}

/* On loopback the answer is there before connect returns, so looking once saves a turn of the loop. */
static bool connected_already(int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
    return poll(&poll_fd, 1, 0) == 1;
}

static bool wait_for(struct pc_dial *dial, int event, uint64_t time_ns) {
    dial->watch = pc_watch_create(&dial->loop->uv, dial->fd, on_answer, dial);
    if (dial->watch == NULL) return false;
    pc_watch_set(dial->watch, event);
    pc_alarm_set(dial->alarm, time_ns);
    return true;
}

/* True: the other end is asked for shared memory, and the answer is waited for. */
static bool try_local(struct pc_dial *dial, const struct pc_address *to, uint64_t time_ns) {
    if (dial->local_tried || dial->stream == NULL || dial->to_master || !dial->loop->config.shared_memory) return false;
    dial->local_tried = true;
    if (!pc_sock_is_own_host(to)) return false;
    dial->fd = pc_shm_dial(to->port);
    if (dial->fd < 0) return false;
    dial->local = wait_for(dial, UV_READABLE, time_ns);
    if (!dial->local) drop_attempt(dial);
    return dial->local;
}

static void try_next(struct pc_dial *dial) {
    for (; dial->at < dial->count; next_address(dial)) {
        const uint64_t now_ns = pc_loop_now();
        const uint64_t left_ns = dial->deadline_ns > now_ns ? dial->deadline_ns - now_ns : 0;
        const uint64_t time_ns = left_ns / (dial->count - dial->at);
        const struct pc_address *to = &dial->addresses[dial->at];
        if (dial->stream != NULL) dial->stream->remote = *to;
        if (try_local(dial, to, time_ns / 2)) return;
        const int result = pc_sock_dial(to, &dial->loop->config.sock, &dial->fd);
        if (result == 0 || (result == EINPROGRESS && connected_already(dial->fd))) {
            const int failure = pc_sock_dialed(dial->fd);
            if (failure == 0) {
                succeed(dial);
                return;
            }
            dial->last_errno = failure;
            drop_attempt(dial);
        } else if (result == EINPROGRESS) {
            if (wait_for(dial, UV_WRITABLE, time_ns)) return;
            dial->last_errno = ENOMEM;
            drop_attempt(dial);
        } else {
            dial->last_errno = result;
        }
    }
    fail(dial);
}

/*
 * An address of loopback means the other end's own host. It comes first only for one who reached the master through
 * loopback, and so lives on that host; for all others it would be the wrong machine.
 */
static void take_addresses(struct pc_dial *dial, const struct pc_address *addresses, uint32_t count) {
    for (int loopback = 0; loopback < 2; loopback++) {
        for (uint32_t i = 0; i < count && dial->count < PC_ADDRESSES_MAX; i++) {
            const bool later = pc_address_is_loopback(&addresses[i]) && !dial->loop->beside_master;
            if ((dial->stream == NULL || dial->to_master ? 0 : later) == loopback) {
                dial->addresses[dial->count++] = addresses[i];
            }
        }
    }
}

static struct pc_dial *create(struct pc_loop *loop, struct pc_stream *stream) {
    struct pc_dial *dial = pc_calloc(1, sizeof *dial);
    if (dial == NULL) return NULL;
    dial->loop = loop;
    dial->stream = stream;
    dial->fd = -1;
    dial->deadline_ns = pc_loop_now() + loop->config.dial_timeout_ns;
    dial->alarm = pc_alarm_create(&loop->uv, on_alarm, dial);
    if (dial->alarm == NULL) {
        free(dial);
        return NULL;
    }
    pc_list_append(&loop->dials, &dial->node);
    return dial;
}

void pc_dial_stream(struct pc_loop *loop, struct pc_stream *stream, const struct pc_address *addresses,
                    uint32_t count) {
    struct pc_dial *dial = create(loop, stream);
    if (dial == NULL) {
        loop->machine->ops->closed(loop->machine, stream, ENOMEM, pc_loop_now());
        return;
    }
    dial->to_master = count == 0;
    if (dial->to_master) take_addresses(dial, loop->master, loop->master_count);
    else take_addresses(dial, addresses, count);
    try_next(dial);
}

void pc_dial_back(struct pc_loop *loop, uint64_t id, const struct pc_address *addresses, uint32_t count) {
    struct pc_dial *dial = create(loop, NULL);
    if (dial == NULL) {
        tell_back(loop, id, ENOMEM);
        return;
    }
    dial->id = id;
    take_addresses(dial, addresses, count);
    try_next(dial);
}

bool pc_dial_cancel(struct pc_loop *loop, const struct pc_stream *stream) {
    for (struct pc_list *node = loop->dials.next; node != &loop->dials; node = node->next) {
        struct pc_dial *dial = PC_LIST_ENTRY(node, struct pc_dial, node);
        if (dial->stream != stream) continue;
        destroy(dial);
        return true;
    }
    return false;
}

void pc_dial_cancel_all(struct pc_loop *loop) {
    while (!pc_list_empty(&loop->dials)) destroy(PC_LIST_ENTRY(loop->dials.next, struct pc_dial, node));
}
