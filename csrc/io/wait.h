/* K4: condition variables with monotonic deadlines, which POSIX and macOS spell differently. */
#ifndef PC_WAIT_H
#define PC_WAIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

bool pc_wait_init(pthread_cond_t *condition);
/* False when deadline_ns (of pc_loop_now; UINT64_MAX: never) has passed. May return early, as conditions do. */
bool pc_wait_until(pthread_cond_t *condition, pthread_mutex_t *mutex, uint64_t deadline_ns);
/* now + timeout, at most UINT64_MAX. */
uint64_t pc_wait_deadline(uint64_t timeout_ns);

#endif
