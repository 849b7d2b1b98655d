# cython: language_level=3, binding=True, freethreading_compatible=False
"""Memory of a caller: where it is, and what keeps it there. Knows nothing of the library.

Whoever works on the memory holds the Buffer until nobody touches it any more.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

# DLPack's layout; version 0 has the tensor first, version 1 a header before it.

ctypedef struct DlDevice:
    int32_t device_type
    int32_t device_id

ctypedef struct DlType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

ctypedef struct DlTensor:
    void *data
    DlDevice device
    int32_t ndim
    DlType dtype
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

ctypedef struct DlVersioned:
    uint32_t major
    uint32_t minor
    void *manager_ctx
    void *deleter
    uint64_t flags
    DlTensor tensor


cdef class Buffer:
    """A range of memory and what keeps it alive: an exported Py_buffer, a DLPack capsule, or its owner."""

    def __cinit__(self):
        self.has_view = False
        self.data = NULL

    @property
    def address(self):
        return <uintptr_t>self.data

    @staticmethod
    def at(uintptr_t address, size_t nbytes, object owner):
        cdef Buffer self = Buffer.__new__(Buffer)
        self.data = <void *>address
        self.nbytes = nbytes
        self.owner = owner
        return self

    @staticmethod
    def of_object(object exporter, bint writable):
        cdef Buffer self = Buffer.__new__(Buffer)
        PyObject_GetBuffer(exporter, &self.view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
        self.has_view = True
        self.data = self.view.buf
        self.nbytes = <size_t>self.view.len
        return self

    @staticmethod
    def of_dlpack(object capsule):
        """(buffer, type code, bits, count, contiguous, read-only) of a capsule of CPU memory."""
        cdef DlTensor *tensor
        cdef bint readonly = False
        if PyCapsule_IsValid(capsule, "dltensor_versioned"):
            versioned = <DlVersioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
            if versioned.major != 1:
                raise BufferError(f"DLPack version {versioned.major} is not supported")
            readonly = versioned.flags & 1
            tensor = &versioned.tensor
        else:
            tensor = <DlTensor *>PyCapsule_GetPointer(capsule, "dltensor")
        cdef int64_t count = 1
        cdef bint contiguous = True
        cdef int axis
        for axis in range(tensor.ndim - 1, -1, -1):
            if tensor.strides != NULL and tensor.shape[axis] != 1 and tensor.strides[axis] != count:
                contiguous = False
            count *= tensor.shape[axis]
        cdef Buffer self = Buffer.__new__(Buffer)
        self.owner = capsule
        self.data = <char *>tensor.data + tensor.byte_offset if tensor.data != NULL else NULL
        bits = tensor.dtype.bits * tensor.dtype.lanes
        self.nbytes = <size_t>(count * bits // 8)
        return self, tensor.dtype.code, bits, count, contiguous or count == 0, readonly

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)
