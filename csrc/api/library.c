/*
 * What belongs to no handle: initialisation, result texts, the log, and the last failure of each thread.
 */
#define _DEFAULT_SOURCE 1
#include "api/config.h"
#include "api/failure.h"
#include "base/log.h"
#include "math/auth.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static atomic_bool initialized;
static _Thread_local pcclErrorRecord_t last_failure;

static void set_phase(const char *phase) {
    if (last_failure.phase[0] == '\0') pc_text_copy(last_failure.phase, sizeof last_failure.phase, pc_text_of(phase));
}

pcclResult_t pc_fail(const char *phase, pcclResult_t code, const char *format, ...) {
    memset(&last_failure, 0, sizeof last_failure);
    last_failure.code = code;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(last_failure.message, sizeof last_failure.message, format, args);
    va_end(args);
    set_phase(phase);
    return code;
}

void pc_fail_hint(const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(last_failure.hint, sizeof last_failure.hint, format, args);
    va_end(args);
}

pcclResult_t pc_fail_with(const char *phase, const pc_error *error) {
    if (error->code == pcclSuccess || error->code == pcclInProgress) return error->code;
    last_failure = *error;
    set_phase(phase);
    return error->code;
}

bool pc_initialized(const char *phase) {
    if (atomic_load_explicit(&initialized, memory_order_acquire)) return true;
    (void)pc_fail(phase, pcclNotInitialized, "pcclInit has not been called");
    return false;
}

pcclResult_t pcclInit(void) {
    pc_error error = {0};
    if (pc_config_process(&error) != pcclSuccess) return pc_fail_with("init", &error);
    pc_auth_prepare();
    atomic_store_explicit(&initialized, true, memory_order_release);
    return pcclSuccess;
}

pcclResult_t pcclCheckEnvironment(void) {
    pc_error error = {0};
    (void)pc_config_check(&error);
    return pc_fail_with("environment", &error);
}

pcclResult_t pcclGetBuildInfo(pcclBuildInfo_t *info) {
    PC_REQUIRE("get_build_info", info);
    info->has_cuda_support = false;
    return pcclSuccess;
}

const char *pcclGetResultName(pcclResult_t result) {
    return pc_status_name(result);
}

const char *pcclGetResultText(pcclResult_t result) {
    return pc_status_text(result);
}

pcclResult_t pcclGetLastError(pcclErrorRecord_t *record_out) {
    PC_REQUIRE("get_last_error", record_out);
    *record_out = last_failure;
    return pcclSuccess;
}

pcclResult_t pcclSetLog(pcclLogLevel_t level, pcclLogCallback_t callback, void *user) {
    if ((int)level < pcclLogOff || (int)level > pcclLogTrace) {
        return pc_fail("set_log", pcclInvalidArgument, "%d is no log level", (int)level);
    }
    pc_config_set_log(level, callback, user);
    return pcclSuccess;
}
