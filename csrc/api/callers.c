/*
 * Threads are told apart by a record of their own, which outlives them as long as somebody still holds it. Allocates for a
 * thread's first call; without memory the thread counts as unknown.
 */
#include "api/callers.h"

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

static struct pc_caller *find(struct pc_callers *callers, const struct pc_thread *thread) {
    for (uint32_t i = 0; i < callers->count; i++) {
        if (callers->list[i].thread == thread) return &callers->list[i];
    }
    return NULL;
}

static void forget_ended(struct pc_callers *callers) {
    for (uint32_t i = 0; i < callers->count;) {
        struct pc_caller *caller = &callers->list[i];
        if (!atomic_load(&caller->thread->gone)) {
            i++;
            continue;
        }
        unref(caller->thread);
        *caller = callers->list[--callers->count];
    }
}

/* NULL: it is one too many. */
static struct pc_caller *calling(struct pc_callers *callers) {
    struct pc_thread *thread = calling_thread();
    struct pc_caller *caller = find(callers, thread);
    if (caller != NULL) return caller;
    forget_ended(callers);
    if (thread == NULL || callers->count == PC_CALLERS_MAX) {
        callers->unknown = true;
        return NULL;
    }
    atomic_fetch_add(&thread->refs, 1);
    caller = &callers->list[callers->count++];
    *caller = (struct pc_caller){.thread = thread};
    return caller;
}

void pc_callers_note(struct pc_callers *callers, uint64_t now_ns) {
    struct pc_caller *caller = calling(callers);
    if (caller != NULL) caller->left_ns = now_ns;
}

void pc_callers_enter(struct pc_callers *callers) {
    struct pc_caller *caller = calling(callers);
    if (caller != NULL) caller->depth++;
}

void pc_callers_leave(struct pc_callers *callers, uint64_t now_ns) {
    struct pc_caller *caller = find(callers, calling_thread());
    if (caller == NULL || caller->depth == 0) return;
    caller->depth--;
    caller->left_ns = now_ns;
}

bool pc_callers_any_free(const struct pc_callers *callers, uint64_t now_ns, uint64_t gap_ns) {
    bool any = callers->unknown;
    for (uint32_t i = 0; i < callers->count; i++) {
        const struct pc_caller *caller = &callers->list[i];
        any |= caller->depth == 0 && !atomic_load(&caller->thread->gone) && now_ns >= caller->left_ns + gap_ns;
    }
    return any;
}

void pc_callers_fini(struct pc_callers *callers) {
    while (callers->count > 0) unref(callers->list[--callers->count].thread);
}
