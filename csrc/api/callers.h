/*
 * Which of the program's threads use a communicator, and which of them wait in its calls. A peer counts as blocked only while
 * all of them wait, for another one may be about to make the call that all are waiting for. A thread is known from its first
 * call on, and forgotten when it has ended.
 *
 * All of it under the communicator's lock.
 */
#ifndef PC_CALLERS_H
#define PC_CALLERS_H

#include <stdbool.h>
#include <stdint.h>

struct pc_thread;

struct pc_caller {
    struct pc_thread *thread;
    uint32_t depth; /* waits that it is in */
    uint64_t left_ns; /* when it made a call last, or was in a wait */
};

enum { PC_CALLERS_MAX = 32 };

struct pc_callers {
    struct pc_caller list[PC_CALLERS_MAX];
    uint32_t count;
    bool unknown; /* there have been more */
};

/* The calling thread makes a call. */
void pc_callers_note(struct pc_callers *callers, uint64_t now_ns);
/* It begins to wait. */
void pc_callers_enter(struct pc_callers *callers);
void pc_callers_leave(struct pc_callers *callers, uint64_t now_ns);
/* Whether some thread does something else, since gap_ns at least: waits in slices are one. */
bool pc_callers_any_free(const struct pc_callers *callers, uint64_t now_ns, uint64_t gap_ns);
void pc_callers_fini(struct pc_callers *callers);

#endif
