/* See wait.h. */
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE 1
#else
#define _DEFAULT_SOURCE 1
#endif
#include "io/wait.h"

#include "io/loop.h"

#include <errno.h>
#include <time.h>

bool pc_wait_init(pthread_cond_t *condition) {
#if defined(__APPLE__)
    return pthread_cond_init(condition, NULL) == 0;
#else
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return false;
    const bool done = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                      pthread_cond_init(condition, &attributes) == 0;
    (void)pthread_condattr_destroy(&attributes);
    return done;
#endif
}

bool pc_wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline_ns) {
    if (deadline_ns == UINT64_MAX) return pthread_cond_wait(condition, mutex) == 0;
#if defined(__APPLE__)
    const uint64_t now_ns = pc_loop_now();
    const uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    const struct timespec left = {(time_t)(left_ns / PC_NS_PER_S), (long)(left_ns % PC_NS_PER_S)};
    return pthread_cond_timedwait_relative_np(condition, mutex, &left) == 0;
#else
    const struct timespec until = {(time_t)(deadline_ns / PC_NS_PER_S), (long)(deadline_ns % PC_NS_PER_S)};
    return pthread_cond_timedwait(condition, mutex, &until) == 0;
#endif
}

uint64_t pc_wait_deadline(uint64_t timeout_ns) {
    const uint64_t now_ns = pc_loop_now();
    return timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
}
