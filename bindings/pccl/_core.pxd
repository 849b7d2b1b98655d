from pccl_c cimport pcclErrorRecord_t, pcclResult_t

cdef str text(const char *bytes_)
cdef const char *c_string(bytes value)
cdef bytes encoded(object value)

cdef object record_of(const pcclErrorRecord_t *error)
cdef int check(pcclResult_t code, str func_name, object record=*, str message=*) except -1
cdef int check_call(pcclResult_t code, str func_name) except -1

cdef int ensure_initialized() except -1
cdef int close_at_exit(object comm) except -1
cdef int outlive_at_exit(object master) except -1
