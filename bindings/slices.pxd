# Waiting in slices, between which signals are handled. Inline: every module has its own.
from libc.stdint cimport int64_t, uint32_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

cdef enum:
    SLICE_MS = 50
    SHORT_NAP_NS = 200000
    LONG_NAP_NS = 20000000


cdef inline void nap(long ns) noexcept nogil:
    """Also ends when a signal arrives."""
    cdef timespec pause
    pause.tv_sec = 0
    pause.tv_nsec = ns
    nanosleep(&pause, NULL)


cdef inline int64_t now_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef inline uint32_t slice_until(int64_t deadline_ms) noexcept nogil:
    """How long to wait in C now; deadline below 0: none."""
    if deadline_ms < 0:
        return SLICE_MS
    cdef int64_t left = deadline_ms - now_ms()
    if left < 0:
        return 0
    return <uint32_t>left if left < SLICE_MS else <uint32_t>SLICE_MS


cdef inline int64_t deadline_of(object timeout) except? -2:
    return -1 if timeout is None else now_ms() + <int64_t>(timeout * 1000)
