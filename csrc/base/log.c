/*
 * The log line builder. Level and callback are set before the first thread starts or under the caller's own order;
 * they are atomics so that a change while threads run is only late, never torn.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

struct sink {
    pcclLogCallback_t callback;
    void *user;
};

/* Two slots: a writer that runs during an install sees the old sink or the new one, whole. */
static struct sink sinks[2];
static atomic_int active_sink;
static atomic_int current_level = pcclLogOff;
static _Thread_local struct sink captor;
static _Thread_local pcclLogLevel_t captor_level;

void pc_log_install(pcclLogLevel_t level, pcclLogCallback_t callback, void *user) {
    int next = 1 - atomic_load(&active_sink);
    sinks[next] = (struct sink){callback, user};
    atomic_store(&active_sink, next);
    atomic_store(&current_level, callback == NULL ? pcclLogOff : (int)level);
}

void pc_log_capture(pcclLogLevel_t level, pcclLogCallback_t callback, void *user) {
    captor = (struct sink){callback, user};
    captor_level = level;
}

pcclLogLevel_t pc_log_level(void) {
    if (captor.callback != NULL) return captor_level;
    return (pcclLogLevel_t)atomic_load_explicit(&current_level, memory_order_relaxed);
}

void pc_log_write(pcclLogLevel_t level, const char *format, ...) {
    char line[1024];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(line, sizeof line, format, args);
    va_end(args);
    const struct sink *sink = captor.callback != NULL ? &captor : &sinks[atomic_load(&active_sink)];
    if (sink->callback != NULL) sink->callback(sink->user, level, line);
}
