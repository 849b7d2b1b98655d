/*
 * K4: whose turn it is to run a loop. Normally its own thread's. After a call that somebody has waited for the thread
 * rests a moment: whoever waits for the next call runs the loop himself, which saves two switches of threads for each
 * call. When nobody comes, or something else is to be done, the own thread goes on.
 *
 * All of it under the loop's lock.
 */
#ifndef PC_TURN_H
#define PC_TURN_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum pc_turn_owner { PC_TURN_OWN, PC_TURN_CALLER, PC_TURN_NOBODY };

struct pc_turn {
    pthread_cond_t changed;
    enum pc_turn_owner owner;
    bool wanted; /* by the own thread: the rest is over */
    bool asleep; /* the own thread, for as long as a caller has the turn */
    uint64_t given_ns; /* since when it is nobody's */
};

bool pc_turn_init(struct pc_turn *turn);
void pc_turn_fini(struct pc_turn *turn);
/* The own thread: leaves the turn to callers, and returns with it when none has come for a moment, or it is wanted. */
void pc_turn_rest(struct pc_turn *turn, pthread_mutex_t *lock);
/* The own thread is to go on as soon as it can. */
void pc_turn_want(struct pc_turn *turn);
/* A caller. False: somebody else has it. */
bool pc_turn_take(struct pc_turn *turn);
void pc_turn_give(struct pc_turn *turn);

#endif
