# cython: language_level=3, binding=True, freethreading_compatible=False
"""A started joint call, from its start until its memory is free.

Ownership: a Request owns its C request and, until the operation has ended, the buffers it works on. One that is dropped
unfinished is handed to its keeper, so that the operation goes on and its buffers stay.

Threads: every C call that can block runs without the GIL, in slices, so that signals are handled. The C request is only
freed under the GIL and when no thread is inside a C call with it (``users``).

A forked child gets ForkedError from every method; its finalizers leave the parent's handles alone.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.unistd cimport getpid

from pccl_c cimport *
from pccl._core cimport check, record_of
from slices cimport SHORT_NAP_NS, deadline_of, nap, now_ms, slice_until

cdef enum:
    CLOSE_SLICE_MS = 200


cdef class Keeper:
    """What a request knows of its communicator: whether it is closed, and who was dropped unfinished."""

    def __cinit__(self):
        self.closed = False
        self.orphans = set()


cdef class Request:
    """One started joint call. Its result stays readable after the C request was freed."""

    def __cinit__(self):
        self.ptr = NULL
        self.result_code = pcclInProgress
        self.users = 0
        self.pid = getpid()
        self.closing = False
        self.kept = False
        memset(&self.outcome, 0, sizeof(self.outcome))
        memset(&self.state, 0, sizeof(self.state))

    cdef int ensure_here(self) except -1:
        if self.pid != getpid():
            check(pcclForked, self.func_name, None, "this operation was started by the parent process")
        return 0

    cdef void release(self) noexcept:
        """Frees the C request and lets the buffers go; only when no thread uses the pointer."""
        cdef pcclRequest_t *ptr = self.ptr
        self.ptr = NULL
        if ptr != NULL:
            with nogil:
                pcclFreeRequest(ptr)
        free(self.state.infos)
        self.state.infos = NULL
        self.buffers = None
        if self.keeper is not None:
            self.keeper.orphans.discard(self)

    cdef int step(self, uint32_t timeout_ms) except -1:
        """Waits in C at most so long; 1 when the request has ended. Never raises for the operation's own failure."""
        cdef pcclOutcome_t outcome
        cdef pcclResult_t code
        cdef pcclRequest_t *ptr = self.ptr
        if ptr == NULL:
            return 1
        memset(&outcome, 0, sizeof(outcome))
        self.users += 1
        with nogil:
            code = pcclWaitRequest(ptr, timeout_ms, &outcome)
        self.users -= 1
        if code != pcclInProgress and self.result_code == pcclInProgress:
            self.outcome = outcome
            self.result_code = code
        if self.result_code != pcclInProgress and self.users == 0 and self.ptr != NULL and not self.closing:
            self.release()
        return 1 if self.result_code != pcclInProgress or self.closing else 0

    def wait(self, timeout=None):
        """True when the operation has ended, False when ``timeout`` seconds passed first. A signal's exception cancels
        the operation before it goes up."""
        self.ensure_here()
        cdef int64_t deadline = deadline_of(timeout)
        try:
            while not self.step(slice_until(deadline)):
                PyErr_CheckSignals()
                if deadline >= 0 and now_ms() >= deadline:
                    return bool(self.step(0))
            PyErr_CheckSignals()
        except BaseException:
            self.close()
            raise
        return True

    def done(self):
        self.ensure_here()
        return bool(self.step(0))

    def cancel(self):
        """Asks for the end of the operation; returns at once."""
        self.ensure_here()
        cdef pcclRequest_t *ptr = self.ptr
        if ptr == NULL:
            return
        self.users += 1
        with nogil:
            pcclCancelRequest(ptr)
        self.users -= 1

    def close(self):
        """Cancels an unfinished operation and returns when nobody touches its buffers any more."""
        if self.ptr == NULL or self.pid != getpid():
            return
        cdef bint mine = not self.closing
        self.cancel()
        self.closing = True
        while True:
            while self.ptr != NULL and (self.users > 0 or not mine):
                with nogil:
                    nap(SHORT_NAP_NS)
            if self.ptr == NULL:
                return
            if self.result_code != pcclInProgress:
                break
            self.step(CLOSE_SLICE_MS)  # it may have succeeded before the cancel
        self.release()

    def keep(self):
        """Somebody holds it: from now on, dropping it does not end it."""
        self.kept = True

    @property
    def code(self):
        return <int>self.result_code

    @property
    def reduce_info(self):
        """(local_world_size, tx_bytes, rx_bytes)"""
        return self.outcome.reduce.local_world_size, self.outcome.reduce.tx_bytes, self.outcome.reduce.rx_bytes

    @property
    def sync_info(self):
        """(tx_bytes, rx_bytes, revision)"""
        return self.outcome.sync.tx_bytes, self.outcome.sync.rx_bytes, self.outcome.revision

    @property
    def source(self):
        """Rank that a receive got its elements from."""
        return self.outcome.source

    @property
    def pending(self):
        return bool(self.outcome.pending)

    @property
    def group(self):
        return self.outcome.group

    def check(self):
        """Raises what the operation failed with."""
        if self.result_code == pcclSuccess:
            return
        if self.result_code == pcclInProgress:
            check(pcclInProgress, self.func_name, None, "the operation is still in flight")
        record = record_of(&self.outcome.error) if self.outcome.error.code == self.result_code else None
        check(self.result_code, self.func_name, record)

    def __del__(self):
        if self.ptr == NULL or self.pid != getpid() or self.keeper is None or self.keeper.closed:
            return
        if self.kept:
            self.keeper.orphans.add(self)
        else:
            self.close()  # an interrupt came between its start and whoever was to hold it

    def __dealloc__(self):
        if self.pid == getpid() and self.ptr != NULL:
            with nogil:
                pcclFreeRequest(self.ptr)
        free(self.state.infos)
