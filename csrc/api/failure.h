/*
 * K5: how public functions fail: a record kept for the calling thread, and the checks that come first in each of them.
 */
#ifndef PC_FAILURE_H
#define PC_FAILURE_H

#include "base/status.h"

/* Fills this thread's record and returns code. phase: the public call. */
pcclResult_t pc_fail(const char *phase, pcclResult_t code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void pc_fail_hint(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Keeps a record that was made elsewhere, unless it is one of success. Returns its code. */
pcclResult_t pc_fail_with(const char *phase, const pc_error *error);

/* Whether pcclInit was called; if not, the failure is recorded. */
bool pc_initialized(const char *phase);

/* Returns pcclInvalidArgument from the calling function when a pointer is missing. */
#define PC_REQUIRE(phase, pointer)                                                                                     \
    do {                                                                                                               \
        if ((pointer) == NULL) return pc_fail((phase), pcclInvalidArgument, "%s is NULL", #pointer);                   \
    } while (0)

#endif
