# cython: language_level=3, binding=True, freethreading_compatible=False
"""The master within this process: start, wait, end. A forked child gets ForkedError."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset
from posix.unistd cimport getpid

from pccl_c cimport *
from pccl._core cimport c_string, check, check_call, encoded, ensure_initialized, outlive_at_exit
from slices cimport LONG_NAP_NS, deadline_of, nap, now_ms


cdef class Master:
    """A master's C handle. One that is dropped while it runs is waited for (``outlive``)."""

    cdef pcclMasterInstance_t *ptr
    cdef int pid
    cdef readonly bint running
    cdef bint terminated
    cdef object __weakref__

    def __cinit__(self):
        self.ptr = NULL
        self.pid = getpid()
        self.running = False
        self.terminated = False

    def __init__(self, str listen not None, *, bytes run_key=None, uint32_t dead_timeout_ms=0,
                 uint32_t join_timeout_ms=0):
        ensure_initialized()
        if self.ptr != NULL:
            check(pcclInvalidUsage, "MasterNode", None, "already created")
        cdef pcclMasterOptions_t options
        memset(&options, 0, sizeof(options))
        listen_b = encoded(listen)
        options.listen = c_string(listen_b)
        if run_key is not None:
            options.run_key = <const uint8_t *><const char *>run_key
            options.run_key_len = len(run_key)
        options.dead_timeout_ms = dead_timeout_ms
        options.join_timeout_ms = join_timeout_ms
        cdef pcclMasterInstance_t *ptr = NULL
        cdef pcclResult_t code
        with nogil:
            code = pcclCreateMasterWithOptions(&options, &ptr)
        check_call(code, "create_master")
        self.ptr = ptr
        outlive_at_exit(self)

    cdef int ensure_alive(self, str func_name) except -1:
        if self.pid != getpid():
            check(pcclForked, func_name, None, "this master belongs to the parent process")
        if self.ptr == NULL:
            check(pcclInvalidUsage, func_name, None, "the master is closed")
        return 0

    @property
    def port(self):
        self.ensure_alive("port")
        cdef uint16_t port = 0
        check_call(pcclGetMasterPort(self.ptr, &port), "port")
        return port

    def run(self):
        """Returns at once. A daemon thread waits for the end, so that ``wait`` can do it in slices and even while the
        interpreter is being finalized."""
        from _thread import start_new_thread
        self.ensure_alive("run_master")
        cdef pcclResult_t code
        with nogil:
            code = pcclRunMaster(self.ptr)
        check_call(code, "run_master")
        self.running = True
        start_new_thread(self._await_termination, ())

    def _await_termination(self):
        cdef pcclMasterInstance_t *ptr = self.ptr
        with nogil:
            pcclMasterAwaitTermination(ptr)
            self.terminated = True

    def interrupt(self):
        self.ensure_alive("interrupt_master")
        cdef pcclResult_t code
        with nogil:
            code = pcclInterruptMaster(self.ptr)
        check_call(code, "interrupt_master")

    def wait(self, timeout=None):
        """True when the master has ended (or never ran)."""
        self.ensure_alive("wait")
        cdef int64_t deadline = deadline_of(timeout)
        while self.running and not self.terminated:
            if deadline >= 0 and now_ms() >= deadline:
                return False
            with nogil:
                nap(LONG_NAP_NS)
            PyErr_CheckSignals()
        return True

    def outlive(self):
        """What a master's owner does when it is dropped: waits for the end, which a signal's exception brings about."""
        if self.ptr == NULL or self.pid != getpid():
            return
        try:
            self.wait()
        except KeyboardInterrupt:
            pass
        self.close()

    def close(self):
        """Ends the master and frees it. May be called twice."""
        if self.ptr == NULL or self.pid != getpid():
            return
        if self.running and not self.terminated:
            self.interrupt()
            self.wait()
        cdef pcclMasterInstance_t *ptr = self.ptr
        self.ptr = NULL
        cdef pcclResult_t code
        with nogil:
            code = pcclDestroyMaster(ptr)
        check_call(code, "destroy_master")
