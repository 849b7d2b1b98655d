# cython: language_level=3, binding=True, freethreading_compatible=False
"""Owning handles over libpccl: a communicator, its requests, a master.

Ownership: a Request owns its C request and, until the operation has ended, the buffers it works on. A Communicator
outlives its requests; closing it cancels them. A request that is dropped unfinished is handed to its communicator, so
that the operation goes on and its buffers stay.

Threads: every C call that can block runs without the GIL, in slices, so that signals are handled. Pointers are only
freed under the GIL and when no thread is inside a C call with them (``users``).

A forked child gets ForkedError from every method; its finalizers leave the parent's handles alone.
"""

import atexit
import weakref

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int64_t, uintptr_t
from libc.stdio cimport FILE, fflush, fopen, fputs
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strlen
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.unistd cimport getpid

from pccl_c cimport *

cdef enum:
    SLICE_MS = 50
    SHORT_NAP_NS = 200000
    LONG_NAP_NS = 20000000

cdef bint initialized = False
cdef object live_comms = weakref.WeakSet()
cdef object live_masters = weakref.WeakSet()
cdef FILE *log_file = NULL


# ------------------------------------------------------------------------------------------------------------- errors --

cdef str text(const char *bytes_):
    return bytes_[:strlen(bytes_)].decode("utf-8", "replace")


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


cdef int _check(pcclResult_t code, str func_name, object record=None, str message="") except -1:
    """The one place where a status becomes an exception."""
    if code == pcclSuccess:
        return 0
    from pccl.errors import ErrorRecord, error_from
    if message:
        record = ErrorRecord(code=<int>code, message=message)
    raise error_from(<int>code, func_name, record)


cdef int _check_call(pcclResult_t code, str func_name) except -1:
    return 0 if code == pcclSuccess else _check(code, func_name, last_record(code))


cdef void nap(long ns) noexcept nogil:
    """Also ends when a signal arrives."""
    cdef timespec pause
    pause.tv_sec = 0
    pause.tv_nsec = ns
    nanosleep(&pause, NULL)


cdef int64_t now_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef uint32_t slice_until(int64_t deadline_ms) noexcept nogil:
    """How long to wait in C now; deadline below 0: none."""
    if deadline_ms < 0:
        return SLICE_MS
    cdef int64_t left = deadline_ms - now_ms()
    if left < 0:
        return 0
    return <uint32_t>left if left < SLICE_MS else <uint32_t>SLICE_MS


cdef int64_t deadline_of(object timeout) except? -2:
    return -1 if timeout is None else now_ms() + <int64_t>(max(0.0, float(timeout)) * 1000)


# ------------------------------------------------------------------------------------------------------------ buffers --

cdef extern from *:
    """
    typedef struct { int32_t device_type; int32_t device_id; } pc_dl_device;
    typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } pc_dl_dtype;
    typedef struct {
        void *data; pc_dl_device device; int32_t ndim; pc_dl_dtype dtype; int64_t *shape; int64_t *strides;
        uint64_t byte_offset;
    } pc_dl_tensor;
    typedef struct {
        uint32_t major, minor; void *manager_ctx; void (*deleter)(void *); uint64_t flags; pc_dl_tensor tensor;
    } pc_dl_versioned;
    """
    ctypedef struct pc_dl_device:
        int32_t device_type
    ctypedef struct pc_dl_dtype:
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct pc_dl_tensor:
        void *data
        pc_dl_device device
        int32_t ndim
        pc_dl_dtype dtype
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset
    ctypedef struct pc_dl_versioned:
        uint32_t major
        uint64_t flags
        pc_dl_tensor tensor


cdef class Buffer:
    """A range of memory and what keeps it alive: an exported Py_buffer, a DLPack capsule, or its owner."""

    cdef Py_buffer view
    cdef bint has_view
    cdef object owner
    cdef void *data
    cdef readonly size_t nbytes

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
        cdef pc_dl_tensor *tensor
        cdef bint readonly = False
        if PyCapsule_IsValid(capsule, "dltensor_versioned"):
            versioned = <pc_dl_versioned *>PyCapsule_GetPointer(capsule, "dltensor_versioned")
            if versioned.major != 1:
                raise BufferError(f"DLPack version {versioned.major} is not supported")
            readonly = versioned.flags & 1
            tensor = &versioned.tensor
        else:
            tensor = <pc_dl_tensor *>PyCapsule_GetPointer(capsule, "dltensor")
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


# ----------------------------------------------------------------------------------------------------------- requests --

cdef class Comm


cdef class Request:
    """One started joint call. Its result stays readable after the C request was freed."""

    cdef pcclRequest_t *ptr
    cdef pcclOutcome_t outcome
    cdef pcclResult_t result_code
    cdef pcclSharedState_t state
    cdef int users
    cdef int pid
    cdef bint closing
    cdef Comm comm
    cdef object buffers
    cdef readonly str func_name
    cdef object __weakref__

    def __cinit__(self):
        self.ptr = NULL
        self.result_code = pcclInProgress
        self.users = 0
        self.pid = getpid()
        self.closing = False
        memset(&self.outcome, 0, sizeof(self.outcome))
        memset(&self.state, 0, sizeof(self.state))

    cdef int ensure_here(self) except -1:
        if self.pid != getpid():
            _check(pcclForked, self.func_name, None, "this operation was started by the parent process")
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
        if self.comm is not None:
            self.comm.orphans.discard(self)

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
        while self.ptr != NULL and (self.users > 0 or not mine):
            with nogil:
                nap(SHORT_NAP_NS)
        if self.ptr == NULL:
            return
        self.step(0)
        if self.result_code == pcclInProgress:
            self.result_code = pcclCancelled
        self.release()

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

    def check(self):
        """Raises what the operation failed with."""
        if self.result_code == pcclSuccess:
            return
        if self.result_code == pcclInProgress:
            _check(pcclInProgress, self.func_name, None, "the operation is still in flight")
        record = record_of(&self.outcome.error) if self.outcome.error.code == self.result_code else None
        _check(self.result_code, self.func_name, record)

    def __del__(self):
        if self.ptr != NULL and self.pid == getpid() and self.comm is not None and not self.comm.closed:
            self.comm.orphans.add(self)

    def __dealloc__(self):
        if self.pid == getpid() and self.ptr != NULL:
            with nogil:
                pcclFreeRequest(self.ptr)
        free(self.state.infos)


# ------------------------------------------------------------------------------------------------------- communicator --

cdef int ensure_initialized() except -1:
    global initialized
    if not initialized:
        _check_call(pcclInit(), "init")
        atexit.register(_end_all)
        initialized = True
    return 0


def _end_all():
    """At interpreter exit: nobody may write into Python's memory after it is gone, and a script that only starts a
    master stays alive, while signals are still handled."""
    for comm in list(live_comms):
        comm.close()
    for master in list(live_masters):
        master.outlive()


cdef const char *c_string(bytes value):
    return NULL if value is None else <const char *>value


cdef bytes encoded(object value):
    return None if value is None else value.encode()


cdef class Comm:
    cdef pcclComm_t *ptr
    cdef int users
    cdef int pid
    cdef readonly bint closed
    cdef object requests
    cdef set orphans
    cdef object __weakref__

    def __cinit__(self):
        self.ptr = NULL
        self.users = 0
        self.pid = getpid()
        self.closed = False
        self.requests = weakref.WeakSet()
        self.orphans = set()

    def __init__(self, str master not None, *, uint32_t peer_group=0, uint32_t connections=0, str advertise=None,
                 str ifname=None, uint16_t port_min=0, uint16_t port_max=0, bytes run_key=None,
                 uint32_t dead_timeout_ms=0, uint32_t op_timeout_ms=0, uint32_t connect_timeout_ms=0,
                 str congestion=None, bint observer=False):
        ensure_initialized()
        if self.ptr != NULL:
            _check(pcclInvalidUsage, "Communicator", None, "already created")
        cdef pcclCommOptions_t options
        memset(&options, 0, sizeof(options))
        master_b, advertise_b = encoded(master), encoded(advertise)
        ifname_b, congestion_b = encoded(ifname), encoded(congestion)
        options.master = c_string(master_b)
        options.peer_group = peer_group
        options.connections = connections
        options.advertise = c_string(advertise_b)
        options.ifname = c_string(ifname_b)
        options.port_min = port_min
        options.port_max = port_max
        if run_key is not None:
            options.run_key = <const uint8_t *><const char *>run_key
            options.run_key_len = len(run_key)
        options.dead_timeout_ms = dead_timeout_ms
        options.op_timeout_ms = op_timeout_ms
        options.connect_timeout_ms = connect_timeout_ms
        options.congestion = c_string(congestion_b)
        options.observer = observer
        cdef pcclComm_t *ptr = NULL
        cdef pcclResult_t code
        with nogil:
            code = pcclCreateCommunicatorWithOptions(&options, &ptr)
        _check_call(code, "create_communicator")
        self.ptr = ptr
        live_comms.add(self)

    cdef int ensure_alive(self, str func_name) except -1:
        if self.pid != getpid():
            _check(pcclForked, func_name, None,
                   "this communicator belongs to the parent process; create one after the fork")
        if self.ptr == NULL or self.closed:
            _check(pcclInvalidUsage, func_name, None, "the communicator is closed")
        return 0

    cdef Request prepare(self, str func_name):
        self.ensure_alive(func_name)
        for request in list(self.orphans):
            (<Request>request).step(0)
        cdef Request request_ = Request.__new__(Request)
        request_.comm = self
        request_.func_name = func_name
        return request_

    cdef Request started(self, Request request, pcclRequest_t *ptr, pcclResult_t code):
        """Takes over what a start gave. ``users`` falls last: until then a close() in another thread waits."""
        try:
            if code != pcclSuccess:
                request.release()
                _check_call(code, request.func_name)
            request.ptr = ptr
            self.requests.add(request)
            if self.closed:
                request.close()
        finally:
            self.users -= 1
        return request

    def start_connect(self):
        cdef Request request = self.prepare("connect")
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartConnect(self.ptr, &ptr)
        return self.started(request, ptr, code)

    def start_update_topology(self):
        cdef Request request = self.prepare("update_topology")
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartUpdateTopology(self.ptr, &ptr)
        return self.started(request, ptr, code)

    def start_are_peers_pending(self):
        cdef Request request = self.prepare("are_peers_pending")
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartArePeersPending(self.ptr, &ptr)
        return self.started(request, ptr, code)

    def start_optimize_topology(self):
        cdef Request request = self.prepare("optimize_topology")
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartOptimizeTopology(self.ptr, &ptr)
        return self.started(request, ptr, code)

    def start_all_reduce(self, Buffer send not None, Buffer recv not None, size_t count, int datatype, int op,
                         uint64_t tag, int hint, int quantized_datatype, int algorithm, uint32_t timeout_ms):
        cdef Request request = self.prepare("all_reduce")
        cdef pcclReduceDescriptor_t descriptor
        memset(&descriptor, 0, sizeof(descriptor))
        descriptor.count = count
        descriptor.op = <pcclRedOp_t>op
        descriptor.tag = tag
        descriptor.src_descriptor.datatype = <pcclDataType_t>datatype
        descriptor.src_descriptor.distribution_hint = <pcclDistributionHint_t>hint
        descriptor.quantization_options.quantized_datatype = <pcclDataType_t>quantized_datatype
        descriptor.quantization_options.algorithm = <pcclQuantizationAlgorithm_t>algorithm
        request.buffers = (send, recv)
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartAllReduce(self.ptr, send.data, recv.data, &descriptor, timeout_ms, &ptr)
        return self.started(request, ptr, code)

    def start_collective(self, int collective, Buffer send, Buffer recv, size_t count, int datatype, int op,
                         uint32_t root, uint64_t tag, counts, recv_counts, weight, double scale, int algorithm,
                         uint32_t timeout_ms):
        """``counts`` and ``recv_counts``: array('Q') or None. ``weight``: None for none."""
        cdef Request request = self.prepare("collective")
        cdef pcclCollectiveArgs_t args
        cdef uint64_t[::1] counts_view
        memset(&args, 0, sizeof(args))
        args.collective = <pcclCollective_t>collective
        if send is not None:
            args.sendbuf = send.data
        if recv is not None:
            args.recvbuf = recv.data
        args.count = count
        args.datatype = <pcclDataType_t>datatype
        args.op = <pcclRedOp_t>op
        args.root = root
        args.tag = tag
        if counts is not None and len(counts) > 0:
            counts_view = counts
            args.counts = &counts_view[0]
        if recv_counts is not None and len(recv_counts) > 0:
            counts_view = recv_counts
            args.recv_counts = &counts_view[0]
        args.weighted = weight is not None
        if weight is not None:
            args.weight = weight
        args.scale = scale
        args.algorithm = <pcclAlgorithm_t>algorithm
        args.timeout_ms = timeout_ms
        request.buffers = (send, recv, counts, recv_counts)
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartCollective(self.ptr, &args, &ptr)
        return self.started(request, ptr, code)

    def begin_step(self):
        self.ensure_alive("begin_step")
        _check_call(pcclBeginStep(self.ptr), "begin_step")

    def start_end_step(self, bint commit):
        cdef Request request = self.prepare("end_step")
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartEndStep(self.ptr, commit, &ptr)
        return self.started(request, ptr, code)

    def start_sync_shared_state(self, uint64_t revision, list tensors not None, int strategy):
        """``tensors``: (name, Buffer, count, datatype, allow_content_inequality) each."""
        cdef Request request = self.prepare("sync_shared_state")
        cdef size_t count = len(tensors)
        cdef size_t i
        cdef Buffer buffer
        cdef bytes name
        request.state.infos = <pcclTensorInfo_t *>calloc(max(count, <size_t>1), sizeof(pcclTensorInfo_t))
        if request.state.infos == NULL:
            raise MemoryError
        held = []
        for i in range(count):
            name_str, buffer, elems, datatype, inequality = tensors[i]
            name = name_str.encode()
            held.append((name, buffer))
            request.state.infos[i].name = <const char *>name
            request.state.infos[i].data = buffer.data
            request.state.infos[i].count = elems
            request.state.infos[i].datatype = <pcclDataType_t><int>datatype
            request.state.infos[i].device_type = pcclDeviceCpu
            request.state.infos[i].allow_content_inequality = inequality
        request.state.revision = revision
        request.state.count = count
        request.buffers = held
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        cdef pcclSharedStateSyncStrategy_t c_strategy = <pcclSharedStateSyncStrategy_t>strategy
        self.users += 1
        with nogil:
            code = pcclStartSynchronizeSharedState(self.ptr, &request.state, c_strategy, &ptr)
        return self.started(request, ptr, code)

    def get_attribute(self, int attribute):
        self.ensure_alive("get_attribute")
        cdef int value = 0
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclGetAttribute(self.ptr, <pcclAttribute_t>attribute, &value)
        self.users -= 1
        _check_call(code, "get_attribute")
        return value

    def members(self):
        """(id, rank or None, peer_group, observer, self, address) of each member of the current epoch."""
        self.ensure_alive("members")
        cdef size_t capacity = 16
        cdef size_t count
        cdef size_t i
        cdef pcclMember_t *array
        cdef pcclResult_t code
        while True:
            array = <pcclMember_t *>calloc(capacity, sizeof(pcclMember_t))
            if array == NULL:
                raise MemoryError
            try:
                count = capacity
                self.users += 1
                with nogil:
                    code = pcclGetMembers(self.ptr, array, &count)
                self.users -= 1
                _check_call(code, "members")
                if count <= capacity:
                    return [(array[i].id, None if array[i].rank == 0xFFFFFFFF else array[i].rank, array[i].peer_group,
                             bool(array[i].observer), bool(array[i].self), text(array[i].address))
                            for i in range(count)]
                capacity = count
            finally:
                free(array)

    def stats(self):
        self.ensure_alive("stats")
        cdef pcclStats_t stats
        cdef pcclResult_t code
        memset(&stats, 0, sizeof(stats))
        self.users += 1
        with nogil:
            code = pcclGetStats(self.ptr, &stats)
        self.users -= 1
        _check_call(code, "stats")
        return {
            "epoch": stats.epoch, "peer_id": stats.peer_id, "ops_started": stats.ops_started,
            "ops_committed": stats.ops_committed, "ops_aborted": stats.ops_aborted,
            "tx_payload_bytes": stats.tx_payload_bytes, "rx_payload_bytes": stats.rx_payload_bytes,
            "tx_wire_bytes": stats.tx_wire_bytes, "rx_wire_bytes": stats.rx_wire_bytes,
            "frames_dropped": stats.frames_dropped, "links_lost": stats.links_lost, "held_bytes": stats.held_bytes,
            "pool_bytes": stats.pool_bytes, "last_committed_us": stats.last_committed_us,
        }

    def abort(self):
        """Fails every call of this communicator at once and leaves the run. Needs no other peer."""
        self.ensure_alive("abort")
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclAbort(self.ptr)
        self.users -= 1
        _check_call(code, "abort")

    def close(self):
        """Leaves the run and frees everything; operations in flight are cancelled. May be called twice."""
        if self.closed or self.ptr == NULL or self.pid != getpid():
            return
        self.closed = True
        # Leaving first, so that the operations in flight end at the others as with a lost peer, which they can retry.
        cdef pcclComm_t *leaving = self.ptr
        if len(self.requests) + len(self.orphans) > 0:
            with nogil:
                pcclAbort(leaving)
        for request in [*self.requests, *self.orphans]:
            request.close()
        while self.users > 0:
            with nogil:
                nap(SHORT_NAP_NS)
        cdef pcclComm_t *ptr = self.ptr
        self.ptr = NULL
        cdef pcclResult_t code
        with nogil:
            code = pcclDestroyCommunicator(ptr)
        _check_call(code, "destroy_communicator")

    def __del__(self):
        self.close()


# ------------------------------------------------------------------------------------------------------------- master --

cdef class Master:
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
            _check(pcclInvalidUsage, "MasterNode", None, "already created")
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
        _check_call(code, "create_master")
        self.ptr = ptr
        live_masters.add(self)

    cdef int ensure_alive(self, str func_name) except -1:
        if self.pid != getpid():
            _check(pcclForked, func_name, None, "this master belongs to the parent process")
        if self.ptr == NULL:
            _check(pcclInvalidUsage, func_name, None, "the master is closed")
        return 0

    @property
    def port(self):
        self.ensure_alive("port")
        cdef uint16_t port = 0
        _check_call(pcclGetMasterPort(self.ptr, &port), "port")
        return port

    def run(self):
        """Returns at once. A daemon thread waits for the end, so that ``wait`` can do it in slices and even while the
        interpreter is being finalized."""
        from _thread import start_new_thread
        self.ensure_alive("run_master")
        cdef pcclResult_t code
        with nogil:
            code = pcclRunMaster(self.ptr)
        _check_call(code, "run_master")
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
        _check_call(code, "interrupt_master")

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
        _check_call(code, "destroy_master")


# ---------------------------------------------------------------------------------------------------------- functions --

def query_status(str master not None, bytes run_key=None, uint32_t timeout_ms=0):
    """The master's state as JSON text."""
    ensure_initialized()
    master_b = encoded(master)
    cdef const char *address = c_string(master_b)
    cdef const uint8_t *key = NULL if run_key is None else <const uint8_t *><const char *>run_key
    cdef size_t key_len = 0 if run_key is None else len(run_key)
    cdef char *json = NULL
    cdef pcclResult_t code
    with nogil:
        code = pcclQueryStatus(address, key, key_len, timeout_ms, &json)
    try:
        _check_call(code, "query_status")
        return text(json)
    finally:
        free(json)


def sim_run(uint64_t seed, uint32_t peers_min, uint32_t peers_max, uint32_t ops, bint faults=True, bint trace=False):
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
    options.trace = trace
    cdef pcclResult_t code
    with nogil:
        code = pcclSimRun(&options, &report)
    try:
        _check_call(code, "sim_run")
        return {
            "seed": seed, "ok": bool(report.ok), "peers": report.peers, "events": report.events,
            "ops_committed": report.ops_committed, "ops_aborted": report.ops_aborted, "epochs": report.epochs,
            "virtual_ns": report.virtual_ns, "trace_hash": report.trace_hash, "verdict": text(report.verdict),
            "log": "" if report.log == NULL else text(report.log),
        }
    finally:
        free(report.log)


cdef void write_log_line(void *user, pcclLogLevel_t level, const char *line) noexcept nogil:
    fputs(line, <FILE *>user)
    fputs(b"\n", <FILE *>user)
    fflush(<FILE *>user)


def set_log(int level, str path=None):
    """Log level 0 (off) to 6 (trace), and the file that lines are appended to (None: standard error)."""
    global log_file
    cdef FILE *file = NULL
    if path is None:
        _check_call(pcclSetLog(<pcclLogLevel_t>level, NULL, NULL), "set_log")
        return
    file = fopen(path.encode(), "a")
    if file == NULL:
        _check(pcclInvalidArgument, "set_log", None, f"cannot write to {path!r}")
    # The old file stays open: another thread may be writing to it, and a process changes it once or twice in its life.
    log_file = file
    _check_call(pcclSetLog(<pcclLogLevel_t>level, write_log_line, file), "set_log")


def has_cuda_support():
    cdef pcclBuildInfo_t info
    memset(&info, 0, sizeof(info))
    _check_call(pcclGetBuildInfo(&info), "get_build_info")
    return bool(info.has_cuda_support)


def result_name(int code):
    return text(pcclGetResultName(<pcclResult_t>code))


def result_text(int code):
    return text(pcclGetResultText(<pcclResult_t>code))
