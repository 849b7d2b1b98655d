/*
 * Threads are told apart by a record of their own, which outlives them as long as somebody still holds it. Allocates for a
 * thread's first wait; without memory the thread counts as unknown.
 */
#include "api/waiters.h"

#include "base/checked.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct pc_thread {
    _Atomic uint32_t refs; /* its own, and each list's */
    _Atomic bool gone;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t own_thread;
static bool has_key;

static void unref(struct pc_thread *thread) {
    if (atomic_fetch_sub(&thread->refs, 1) == 1) free(thread);
}

static void end_thread(void *thread) {
    atomic_store(&((struct pc_thread *)thread)->gone, true);
    unref(thread);
}

static void make_key(void) {
    has_key = pthread_key_create(&own_thread, end_thread) == 0;
}

static struct pc_thread *calling_thread(void) {
    (void)pthread_once(&once, make_key);
    if (!has_key) return NULL;
    struct pc_thread *thread = pthread_getspecific(own_thread);
    if (thread != NULL) return thread;
    thread = pc_calloc(1, sizeof *thread);
    if (thread == NULL) return NULL;
    atomic_init(&thread->refs, 1);
    if (pthread_setspecific(own_thread, thread) == 0) return thread;
    free(thread);
    return NULL;
}

static struct pc_waiter *find(struct pc_waiters *waiters, const struct pc_thread *thread) {
    for (uint32_t i = 0; i < waiters->count; i++) {
        if (waiters->list[i].thread == thread) return &waiters->list[i];
    }
    return NULL;
}

static void forget_ended(struct pc_waiters *waiters) {
    for (uint32_t i = 0; i < waiters->count;) {
        struct pc_waiter *waiter = &waiters->list[i];
        if (!atomic_load(&waiter->thread->gone)) {
            i++;
            continue;
        }
        unref(waiter->thread);
        *waiter = waiters->list[--waiters->count];
    }
}

void pc_waiters_enter(struct pc_waiters *waiters) {
    struct pc_thread *thread = calling_thread();
    struct pc_waiter *waiter = find(waiters, thread);
    if (waiter == NULL) {
        forget_ended(waiters);
        if (thread == NULL || waiters->count == PC_WAITERS_MAX) {
            waiters->unknown = true;
            return;
        }
        atomic_fetch_add(&thread->refs, 1);
        waiter = &waiters->list[waiters->count++];
        *waiter = (struct pc_waiter){.thread = thread};
    }
    waiter->depth++;
}

void pc_waiters_leave(struct pc_waiters *waiters, uint64_t now_ns) {
    struct pc_waiter *waiter = find(waiters, calling_thread());
    if (waiter == NULL || waiter->depth == 0) return;
    waiter->depth--;
    waiter->left_ns = now_ns;
}

bool pc_waiters_any_free(const struct pc_waiters *waiters, uint64_t now_ns, uint64_t gap_ns) {
    bool any = waiters->unknown;
    for (uint32_t i = 0; i < waiters->count; i++) {
        const struct pc_waiter *waiter = &waiters->list[i];
        any |= waiter->depth == 0 && !atomic_load(&waiter->thread->gone) && now_ns >= waiter->left_ns + gap_ns;
    }
    return any;
}

void pc_waiters_fini(struct pc_waiters *waiters) {
    while (waiters->count > 0) unref(waiters->list[--waiters->count].thread);
}
