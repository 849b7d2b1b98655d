/* See random.h. */
#if defined(__APPLE__)
#define _DARWIN_C_SOURCE 1
#include <sys/random.h>
#else
#define _DEFAULT_SOURCE 1
#endif
#include "io/random.h"

#include "base/checked.h"

#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

enum { CALL_BYTES_MAX = 256 };

bool pc_random_fill(void *out, size_t len_bytes) {
    for (size_t at = 0; at < len_bytes; at += CALL_BYTES_MAX) {
        if (getentropy((uint8_t *)out + at, pc_min_size(len_bytes - at, CALL_BYTES_MAX)) != 0) return false;
    }
    return true;
}

static void fill(void *unused, void *out, size_t len_bytes) {
    (void)unused;
    if (!pc_random_fill(out, len_bytes)) abort();
}

const struct pc_random pc_system_random = {.fill = fill};
