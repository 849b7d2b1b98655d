/*
 * The turn. Callers that make one short call after another never wake the own thread: it looks by itself, once per rest,
 * whether they still come. Only one whose call outlasted that has to wake it.
 */
#define _DEFAULT_SOURCE 1
#include "io/turn.h"

#include "io/loop.h"
#include "io/wait.h"

#define REST_NS (1 * PC_NS_PER_MS)

bool pc_turn_init(struct pc_turn *turn) {
    *turn = (struct pc_turn){.owner = PC_TURN_OWN};
    return pc_wait_init(&turn->changed);
}

void pc_turn_fini(struct pc_turn *turn) {
    (void)pthread_cond_destroy(&turn->changed);
}

void pc_turn_rest(struct pc_turn *turn, pthread_mutex_t *lock) {
    turn->owner = PC_TURN_NOBODY;
    turn->given_ns = pc_loop_now();
    for (;;) {
        if (turn->owner == PC_TURN_CALLER) {
            turn->asleep = true;
            (void)pc_wait_until(&turn->changed, lock, UINT64_MAX);
            turn->asleep = false;
            continue;
        }
        const uint64_t end_ns = turn->given_ns + REST_NS;
        if (turn->wanted || pc_loop_now() >= end_ns) break;
        (void)pc_wait_until(&turn->changed, lock, end_ns);
    }
    turn->owner = PC_TURN_OWN;
    turn->wanted = false;
}

void pc_turn_want(struct pc_turn *turn) {
    if (turn->owner == PC_TURN_OWN || turn->wanted) return;
    turn->wanted = true;
    if (turn->owner == PC_TURN_NOBODY) (void)pthread_cond_signal(&turn->changed);
}

bool pc_turn_take(struct pc_turn *turn) {
    if (turn->owner != PC_TURN_NOBODY) return false;
    turn->owner = PC_TURN_CALLER;
    turn->wanted = false; /* the caller does what the own thread was wanted for */
    return true;
}

void pc_turn_give(struct pc_turn *turn) {
    turn->owner = PC_TURN_NOBODY;
    turn->given_ns = pc_loop_now();
    if (turn->asleep || turn->wanted) (void)pthread_cond_signal(&turn->changed);
}
