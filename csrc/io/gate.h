/*
 * K4: whoever touches a loop's machine or connections has passed its gate. Without a crew one thread at a time runs the loop
 * (see turn.h), and the gate stands open. With one it is a lock: every callback of libuv and every thread of the crew
 * passes it, and stays outside while the system moves bytes.
 */
#ifndef PC_GATE_H
#define PC_GATE_H

#include <pthread.h>
#include <stdbool.h>

struct pc_gate {
    pthread_mutex_t lock;
    bool guarded;
};

static inline void pc_gate_enter(struct pc_gate *gate) {
    if (gate->guarded) (void)pthread_mutex_lock(&gate->lock);
}

static inline void pc_gate_leave(struct pc_gate *gate) {
    if (gate->guarded) (void)pthread_mutex_unlock(&gate->lock);
}

#endif
