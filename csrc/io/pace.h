/*
 * K4: a bound on how fast a connection sends, when several of a link push each other out of a queue. Pure.
 *
 * Congestion control that estimates the bandwidth (bbr) takes the best moment of each connection for its share: the
 * sum over many is more than the line holds, the queue before it runs over, and what was lost holds up all that came
 * behind it. So a connection that loses much of much sends at little more than what it reached on average while it was
 * busy. Whatever the reason of the losses, the bound rises all the time: what it costs passes, and it cannot sink below
 * what a connection with little to send needs.
 */
#ifndef PC_PACE_H
#define PC_PACE_H

#include <stdint.h>

/* Counters since the connection was opened. */
struct pc_pace_counters {
    uint64_t sent_bytes; /* with what was sent again */
    uint64_t again_bytes;
    uint64_t acked_bytes;
    uint64_t busy_us; /* while something was on its way */
};

struct pc_pace {
    struct pc_pace_counters before;
    uint64_t bytes_per_s; /* 0: none */
};

/* The bound from now on, some time after the last call; 0: none. */
uint64_t pc_pace_next(struct pc_pace *pace, const struct pc_pace_counters *now);

#endif
