#include "io/pace.h"

#include <stdbool.h>

#define US_PER_S 1000000u

enum {
    BUSY_LEAST_US = 500000, /* less says little of the average */
    MUCH_BYTES = 4 << 20, /* who sends less waits for other things than the line */
    LOSS = 100, /* one byte in so many is much */
    NONE = 4 /* a bound of so many times what was reached bounds nothing */
};

uint64_t pc_pace_next(struct pc_pace *pace, const struct pc_pace_counters *now) {
    const struct pc_pace_counters before = pace->before;
    const uint64_t busy_us = now->busy_us - before.busy_us, acked_bytes = now->acked_bytes - before.acked_bytes;
    if (busy_us < BUSY_LEAST_US) return pace->bytes_per_s;
    pace->before = *now;
    const uint64_t reached = acked_bytes * US_PER_S / busy_us;
    const uint64_t again_bytes = now->again_bytes - before.again_bytes, sent_bytes = now->sent_bytes - before.sent_bytes;
    const bool lossy = acked_bytes >= MUCH_BYTES && again_bytes * LOSS > sent_bytes;
    pace->bytes_per_s += pace->bytes_per_s / 8;
    if (lossy && (pace->bytes_per_s == 0 || pace->bytes_per_s > reached + reached / 4)) {
        pace->bytes_per_s = reached + reached / 8;
    } else if (pace->bytes_per_s > reached * NONE) {
        pace->bytes_per_s = 0;
    }
    return pace->bytes_per_s;
}
