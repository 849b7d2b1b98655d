cdef class Buffer:
    cdef Py_buffer view
    cdef bint has_view
    cdef object owner
    cdef void *data
    cdef readonly size_t nbytes
