from pccl_c cimport pcclOutcome_t, pcclRequest_t, pcclResult_t, pcclSharedState_t
from libc.stdint cimport uint32_t


cdef class Keeper:
    cdef readonly bint closed
    cdef set orphans


cdef class Request:
    cdef pcclRequest_t *ptr
    cdef pcclOutcome_t outcome
    cdef pcclResult_t result_code
    cdef pcclSharedState_t state
    cdef int users
    cdef int pid
    cdef bint closing
    cdef bint kept
    cdef Keeper keeper
    cdef object buffers
    cdef readonly str func_name
    cdef object __weakref__

    cdef int ensure_here(self) except -1
    cdef void release(self) noexcept
    cdef int step(self, uint32_t timeout_ms) except -1
