# cython: language_level=3, binding=True, freethreading_compatible=False
"""What belongs to no handle: how a status becomes an exception, init and exit, the environment, status queries,
the simulator."""

import atexit
import weakref

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset, strlen

from pccl_c cimport *

cdef bint initialized = False
cdef object live_comms = weakref.WeakSet()
cdef object live_masters = weakref.WeakSet()


# -------------------------------------------------------------------------------------------------------------- texts --

cdef str text(const char *bytes_):
    return bytes_[:strlen(bytes_)].decode("utf-8", "replace")


cdef const char *c_string(bytes value):
    return NULL if value is None else <const char *>value


cdef bytes encoded(object value):
    return None if value is None else value.encode()


# ------------------------------------------------------------------------------------------------------------- errors --

cdef object record_of(const pcclErrorRecord_t *error):
    from pccl.errors import ErrorRecord
    return ErrorRecord(
        code=<int>error.code, errno=error.sys_errno, peer_id=error.peer_id, peer_address=text(error.peer_address),
        phase=text(error.phase), epoch=error.epoch, tag=error.tag, seq=error.seq, bytes_done=error.bytes_done,
        bytes_total=error.bytes_total, last_heard_ms=error.last_heard_ms, message=text(error.message),
        hint=text(error.hint))


cdef object last_record(pcclResult_t code):
    cdef pcclErrorRecord_t error
    memset(&error, 0, sizeof(error))
    if pcclGetLastError(&error) == pcclSuccess and error.code == code:
        return record_of(&error)
    return None


cdef int check(pcclResult_t code, str func_name, object record=None, str message="") except -1:
    """The one place where a status becomes an exception."""
    if code == pcclSuccess:
        return 0
    from pccl.errors import ErrorRecord, error_from
    if message:
        record = ErrorRecord(code=<int>code, message=message)
    raise error_from(<int>code, func_name, record)


cdef int check_call(pcclResult_t code, str func_name) except -1:
    return 0 if code == pcclSuccess else check(code, func_name, last_record(code))


# ------------------------------------------------------------------------------------------------------- init and exit --

cdef int ensure_initialized() except -1:
    global initialized
    if not initialized:
        check_call(pcclInit(), "init")
        atexit.register(_end_all)
        initialized = True
    return 0


cdef int close_at_exit(object comm) except -1:
    live_comms.add(comm)
    return 0


cdef int outlive_at_exit(object master) except -1:
    live_masters.add(master)
    return 0


def _end_all():
    """At interpreter exit: nobody may write into Python's memory after it is gone, and a script that only starts a
    master stays alive, while signals are still handled."""
    for comm in list(live_comms):
        comm.close()
    for master in list(live_masters):
        master.outlive()


# ----------------------------------------------------------------------------------------------------------- functions --

def check_environment():
    """Raises for the first PCCL_* variable whose value cannot be used. Nothing is initialized for it."""
    check_call(pcclCheckEnvironment(), "environment")


def query_status(str master not None, uint32_t timeout_ms=0):
    """The master's state as JSON text."""
    ensure_initialized()
    master_b = encoded(master)
    cdef const char *address = c_string(master_b)
    cdef char *json = NULL
    cdef pcclResult_t code
    with nogil:
        code = pcclQueryStatus(address, NULL, 0, timeout_ms, &json)
    try:
        check_call(code, "query_status")
        return text(json)
    finally:
        free(json)


def sim_run(uint64_t seed, uint32_t peers_min, uint32_t peers_max, uint32_t ops, bint faults=True, bint trace=False,
            uint64_t crash_event=0, uint32_t crash_peer=0, bint io_threads=False):
    """One simulated schedule; the report as a dict."""
    cdef pcclSimOptions_t options
    cdef pcclSimReport_t report
    memset(&options, 0, sizeof(options))
    memset(&report, 0, sizeof(report))
    options.seed = seed
    options.peers_min = peers_min
    options.peers_max = peers_max
    options.ops = ops
    options.faults = faults
    options.io_threads = io_threads
    options.trace = trace
    options.crash_event = crash_event
    options.crash_peer = crash_peer
    cdef pcclResult_t code
    with nogil:
        code = pcclSimRun(&options, &report)
    try:
        check_call(code, "sim_run")
        return {
            "seed": seed, "ok": bool(report.ok), "peers": report.peers, "events": report.events,
            "ops_committed": report.ops_committed, "ops_aborted": report.ops_aborted, "epochs": report.epochs,
            "virtual_ns": report.virtual_ns, "trace_hash": report.trace_hash, "verdict": text(report.verdict),
            "log": "" if report.log == NULL else text(report.log),
        }
    finally:
        free(report.log)


def has_cuda_support():
    cdef pcclBuildInfo_t info
    memset(&info, 0, sizeof(info))
    check_call(pcclGetBuildInfo(&info), "get_build_info")
    return bool(info.has_cuda_support)


def result_name(int code):
    return text(pcclGetResultName(<pcclResult_t>code))


def result_text(int code):
    return text(pcclGetResultText(<pcclResult_t>code))
