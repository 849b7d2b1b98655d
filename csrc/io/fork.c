/*
 * The list of descriptors is held locked over a fork, so that the child sees it whole. The child does no more than
 * close: it may be the copy of a process with other threads in the middle of anything.
 */
#define _DEFAULT_SOURCE 1
#include "io/fork.h"

#include "base/checked.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool installed;
static int *fds;
static size_t fd_count, fd_capacity;
static _Atomic uint64_t generation = 1;

static void before_fork(void) {
    (void)pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void) {
    (void)pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void) {
    for (size_t i = 0; i < fd_count; i++) (void)close(fds[i]);
    fd_count = 0;
    atomic_fetch_add(&generation, 1);
    (void)pthread_mutex_unlock(&lock);
}

static void install(void) {
    installed = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
}

uint64_t pc_fork_generation(void) {
    return atomic_load_explicit(&generation, memory_order_relaxed);
}

bool pc_fork_prepare(void) {
    (void)pthread_once(&once, install);
    return installed;
}

bool pc_fork_track(int fd) {
    (void)pthread_mutex_lock(&lock);
    void *items = fds;
    const bool grown = pc_grow(&items, &fd_capacity, fd_count + 1, sizeof *fds);
    if (grown) {
        fds = items;
        fds[fd_count++] = fd;
    }
    (void)pthread_mutex_unlock(&lock);
    return grown;
}

void pc_fork_untrack(int fd) {
    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < fd_count; i++) {
        if (fds[i] != fd) continue;
        fds[i] = fds[--fd_count];
        break;
    }
    (void)pthread_mutex_unlock(&lock);
}
