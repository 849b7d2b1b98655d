/*
 * One schedule of the simulator, as pccl.h offers it. The log of a schedule is what its machines log, all of it.
 */
#include "base/checked.h"
#include "base/log.h"
#include "bytes/cursor.h"
#include "sim/workload.h"

#include <stdlib.h>
#include <string.h>

static void keep_line(void *user, pcclLogLevel_t level, const char *line) {
    (void)level;
    struct pc_writer *log = user;
    pc_writer_bytes(log, line, strlen(line));
    pc_writer_bytes(log, "\n", 1);
}

pcclResult_t pcclSimRun(const pcclSimOptions_t *options, pcclSimReport_t *report_out) {
    if (options == NULL || report_out == NULL) return pcclInvalidArgument;
    const uint32_t low = options->peers_min, high = options->peers_max;
    if (low < 2 || high > 64 || low > high || options->ops > 10000) return pcclInvalidArgument;
    memset(report_out, 0, sizeof *report_out);
    const struct pc_workload_config config = {
        .seed = options->seed,
        .peers = low + (uint32_t)(options->seed * 0x9e3779b97f4a7c15ull >> 32) % (high - low + 1),
        .ops = options->ops,
        .faults = options->faults,
        .io_threads = options->io_threads,
        .crash_event = options->crash_event,
        .crash_peer = options->crash_peer,
    };
    if (config.crash_event != 0 && (config.crash_peer < 1 || config.crash_peer > config.peers)) return pcclInvalidArgument;
    struct pc_workload *workload = pc_workload_create(&config);
    if (workload == NULL) return pcclNoMemory;
    struct pc_writer log = {0};
    if (options->trace) pc_log_capture(pcclLogTrace, keep_line, &log);
    (void)pc_workload_run(workload, report_out);
    if (options->trace) {
        pc_log_capture(pcclLogOff, NULL, NULL);
        pc_writer_bytes(&log, "", 1);
        report_out->log = log.failed ? NULL : (char *)log.data;
        if (log.failed) pc_writer_fini(&log);
    }
    pc_workload_destroy(workload);
    return pcclSuccess;
}
