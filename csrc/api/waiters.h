/*
 * Which of the program's threads wait in calls of a communicator. Any thread may call; a peer counts as blocked only while
 * all that wait there now and then do, for another one may be about to make the call that all are waiting for.
 *
 * All of it under the communicator's lock. A thread that has ended is forgotten.
 */
#ifndef PC_WAITERS_H
#define PC_WAITERS_H

#include <stdbool.h>
#include <stdint.h>

struct pc_thread;

struct pc_waiter {
    struct pc_thread *thread;
    uint32_t depth; /* waits that it is in */
    uint64_t left_ns; /* when it was in one last */
};

enum { PC_WAITERS_MAX = 32 };

struct pc_waiters {
    struct pc_waiter list[PC_WAITERS_MAX];
    uint32_t count;
    bool unknown; /* there have been more */
};

/* The calling thread begins to wait. */
void pc_waiters_enter(struct pc_waiters *waiters);
void pc_waiters_leave(struct pc_waiters *waiters, uint64_t now_ns);
/* Whether some thread does something else, since gap_ns at least: waits in slices are one. */
bool pc_waiters_any_free(const struct pc_waiters *waiters, uint64_t now_ns, uint64_t gap_ns);
void pc_waiters_fini(struct pc_waiters *waiters);

#endif
