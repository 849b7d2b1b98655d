/* K0: one line at a time to a callback. The driver installs where lines go; without one nothing is written. */
#ifndef PC_LOG_H
#define PC_LOG_H

#include "pccl.h"

void pc_log_install(pcclLogLevel_t level, pcclLogCallback_t callback, void *user);
/* Lines of this thread go to callback alone, at level; NULL ends it. The simulator listens to its machines so. */
void pc_log_capture(pcclLogLevel_t level, pcclLogCallback_t callback, void *user);
pcclLogLevel_t pc_log_level(void);
void pc_log_write(pcclLogLevel_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define PC_LOG(level, ...)                                                                                             \
    do {                                                                                                               \
        if ((level) <= pc_log_level()) pc_log_write((level), __VA_ARGS__);                                             \
    } while (0)

#endif
