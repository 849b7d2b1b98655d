/* K0: names of the result codes, and the error record every failure carries. */
#ifndef PC_STATUS_H
#define PC_STATUS_H

#include "pccl.h"

#include <stdarg.h>

typedef pcclResult_t pc_status;
typedef pcclErrorRecord_t pc_error;

const char *pc_status_name(pc_status status);
const char *pc_status_text(pc_status status);

/* Fill code and message. The first error wins: a record that has a code already is left alone. Returns code. */
pc_status pc_error_set(pc_error *error, pc_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));
void pc_error_hint(pc_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Returns from the calling function when status is not pcclSuccess. */
#define PC_TRY(expr)                                                                                                   \
    do {                                                                                                               \
        pc_status pc_try_status_ = (expr);                                                                             \
        if (pc_try_status_ != pcclSuccess) return pc_try_status_;                                                      \
    } while (0)

#endif
