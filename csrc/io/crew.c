/*
 * The crew. Each connection is in the one epoll set with EPOLLONESHOT: an event wakes one thread, and the next one comes
 * only when the connection is armed again. An event can be out when its connection goes: it names a slot and how often that
 * was used, not the connection.
 */
#define _DEFAULT_SOURCE 1
#include "io/crew.h"

#include "base/checked.h"
#include "io/fork.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <fenv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

struct slot {
    struct pc_conn *conn; /* NULL: free */
    uint32_t uses;
};

struct pc_crew {
    struct pc_loop *loop;
    pthread_t threads[PC_LOOP_THREADS_MAX];
    uint32_t wanted, count;
    int epoll_fd, end_fd; /* end_fd: readable, and all threads end */
    pthread_cond_t returned;
    uint32_t waiting; /* for that */
    struct slot *slots;
    size_t slot_count, slot_capacity;
};

static _Thread_local bool of_crew;

bool pc_crew_thread(void) {
    return of_crew;
}

struct pc_crew *pc_crew_create(struct pc_loop *loop, uint32_t threads, pc_error *error) {
    struct pc_crew *crew = pc_calloc(1, sizeof *crew);
    if (crew == NULL || pthread_cond_init(&crew->returned, NULL) != 0) {
        free(crew);
        (void)pc_error_set(error, pcclNoMemory, "no memory for I/O threads");
        return NULL;
    }
    crew->loop = loop;
    crew->wanted = threads;
    crew->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    crew->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
    const bool tracked = pc_fork_prepare() && pc_fork_track(crew->epoll_fd) && pc_fork_track(crew->end_fd);
    if (crew->epoll_fd >= 0 && crew->end_fd >= 0 && tracked &&
        epoll_ctl(crew->epoll_fd, EPOLL_CTL_ADD, crew->end_fd, &event) == 0) {
        return crew;
    }
    error->sys_errno = errno;
    (void)pc_error_set(error, pcclSystemError, "cannot create an event queue for I/O threads: %s", strerror(errno));
    pc_crew_destroy(crew);
    return NULL;
}

/* NULL: it has gone. */
static struct pc_conn *conn_of(const struct pc_crew *crew, uint64_t name) {
    const size_t at = (size_t)(name & UINT32_MAX);
    return at < crew->slot_count && crew->slots[at].uses == name >> 32 ? crew->slots[at].conn : NULL;
}

static void *serve(void *argument) {
    struct pc_crew *crew = argument;
    struct pc_loop *loop = crew->loop;
    (void)prctl(PR_SET_NAME, "pccl-io", 0, 0, 0);
    (void)fesetenv(FE_DFL_ENV);
    of_crew = true;
    for (;;) {
        struct epoll_event event;
        const int count = epoll_wait(crew->epoll_fd, &event, 1, -1);
        if (count == 1 && event.data.u64 == UINT64_MAX) return NULL;
        if (count != 1) continue;
        const int ready = ((event.events & EPOLLOUT) != 0 ? UV_WRITABLE : 0) |
                          ((event.events & ~(uint32_t)EPOLLOUT) != 0 ? UV_READABLE : 0); /* an error, too, is read */
        pc_gate_enter(&loop->gate);
        struct pc_conn *conn = conn_of(crew, event.data.u64);
        if (conn != NULL) {
            conn->armed = 0;
            pc_conn_ready(conn, ready);
        }
        const bool sooner = loop->machine->ops->deadline(loop->machine) < loop->alarm_ns;
        pc_gate_leave(&loop->gate);
        if (sooner) (void)uv_async_send(&loop->wake);
    }
}

int pc_crew_start(struct pc_crew *crew) {
    while (crew->count < crew->wanted) {
        const int failure = pthread_create(&crew->threads[crew->count], NULL, serve, crew);
        if (failure != 0) return failure;
        crew->count++;
    }
    return 0;
}

void pc_crew_stop(struct pc_crew *crew) {
    const uint64_t one = 1;
    const ssize_t written = write(crew->end_fd, &one, sizeof one);
    (void)written; /* it cannot fail: nobody else writes there */
    pc_gate_leave(&crew->loop->gate);
    for (uint32_t i = 0; i < crew->count; i++) (void)pthread_join(crew->threads[i], NULL);
    pc_gate_enter(&crew->loop->gate);
    crew->count = 0;
}

void pc_crew_destroy(struct pc_crew *crew) {
    if (crew == NULL) return;
    const int fds[] = {crew->epoll_fd, crew->end_fd};
    for (int i = 0; i < 2; i++) {
        pc_fork_untrack(fds[i]);
        if (fds[i] >= 0) (void)close(fds[i]);
    }
    (void)pthread_cond_destroy(&crew->returned);
    free(crew->slots);
    free(crew);
}

void pc_crew_adopt(struct pc_crew *crew, struct pc_conn *conn) {
    size_t at = 0;
    while (at < crew->slot_count && crew->slots[at].conn != NULL) at++;
    void *slots = crew->slots;
    if (!pc_grow(&slots, &crew->slot_capacity, at + 1, sizeof *crew->slots)) return;
    crew->slots = slots;
    if (at == crew->slot_count) crew->slots[crew->slot_count++] = (struct slot){0};
    struct epoll_event event = {.events = EPOLLONESHOT, .data.u64 = (uint64_t)++crew->slots[at].uses << 32 | at};
    if (epoll_ctl(crew->epoll_fd, EPOLL_CTL_ADD, conn->transport.fd, &event) != 0) return;
    crew->slots[at].conn = conn;
    conn->slot = event.data.u64;
    conn->crew = crew;
    conn->armed = 0;
}

void pc_crew_drop(struct pc_crew *crew, struct pc_conn *conn) {
    (void)epoll_ctl(crew->epoll_fd, EPOLL_CTL_DEL, conn->transport.fd, NULL);
    crew->slots[conn->slot & UINT32_MAX].conn = NULL;
    conn->crew = NULL;
}

void pc_crew_arm(struct pc_crew *crew, struct pc_conn *conn) {
    const int busy = (conn->reading ? UV_READABLE : 0) | (conn->writing ? UV_WRITABLE : 0), wanted = conn->events & ~busy;
    if (wanted == conn->armed || wanted == 0) return;
    struct epoll_event event = {.events = EPOLLONESHOT, .data.u64 = conn->slot};
    if ((wanted & UV_READABLE) != 0) event.events |= EPOLLIN;
    if ((wanted & UV_WRITABLE) != 0) event.events |= EPOLLOUT;
    if (epoll_ctl(crew->epoll_fd, EPOLL_CTL_MOD, conn->transport.fd, &event) == 0) conn->armed = wanted;
}

void pc_crew_wait(struct pc_crew *crew, const struct pc_conn *conn) {
    crew->waiting++;
    while (conn->reading || conn->writing) (void)pthread_cond_wait(&crew->returned, &crew->loop->gate.lock);
    crew->waiting--;
}

void pc_crew_returned(struct pc_crew *crew) {
    if (crew->waiting > 0) (void)pthread_cond_broadcast(&crew->returned);
}

#else /* elsewhere none can be created: nothing below is ever called */

bool pc_crew_thread(void) {
    return false;
}

struct pc_crew *pc_crew_create(struct pc_loop *loop, uint32_t threads, pc_error *error) {
    (void)loop;
    (void)pc_error_set(error, pcclInvalidArgument, "PCCL_NTHREADS=%u: more than one I/O thread works on Linux only", threads);
    return NULL;
}

int pc_crew_start(struct pc_crew *crew) {
    (void)crew;
    return ENOSYS;
}

void pc_crew_stop(struct pc_crew *crew) {
    (void)crew;
}

void pc_crew_destroy(struct pc_crew *crew) {
    (void)crew;
}

void pc_crew_adopt(struct pc_crew *crew, struct pc_conn *conn) {
    (void)crew;
    (void)conn;
}

void pc_crew_drop(struct pc_crew *crew, struct pc_conn *conn) {
    (void)crew;
    (void)conn;
}

void pc_crew_arm(struct pc_crew *crew, struct pc_conn *conn) {
    (void)crew;
    (void)conn;
}

void pc_crew_wait(struct pc_crew *crew, const struct pc_conn *conn) {
    (void)crew;
    (void)conn;
}

void pc_crew_returned(struct pc_crew *crew) {
    (void)crew;
}

#endif
