/*
 * Names and texts of the result codes, made from the one list in pccl.h, and the error record.
 * Owner: whoever holds the record. No allocation, no system calls.
 */
#include "base/status.h"

#include <stdio.h>

const char *pc_status_name(pc_status status) {
    switch (status) {
#define CASE(name, value, upper, text)                                                                                 \
    case name:                                                                                                         \
        return #upper;
        PCCL_RESULT_LIST(CASE)
#undef CASE
    }
    return "UNKNOWN";
}

const char *pc_status_text(pc_status status) {
    switch (status) {
#define CASE(name, value, upper, text)                                                                                 \
    case name:                                                                                                         \
        return text;
        PCCL_RESULT_LIST(CASE)
#undef CASE
    }
    return "unknown result code";
}

pc_status pc_error_set(pc_error *error, pc_status code, const char *format, ...) {
    if (error == NULL || error->code != pcclSuccess) return code;
    error->code = code;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    return code;
}

void pc_error_hint(pc_error *error, const char *format, ...) {
    if (error == NULL || error->hint[0] != '\0') return;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(error->hint, sizeof error->hint, format, args);
    va_end(args);
}
