# cython: language_level=3, binding=True, freethreading_compatible=False
"""The communicator: options in, requests out, and a view of the run.

Threads: any thread may call any method. The handle is only freed under the GIL and when no thread is inside a C call
with it (``users``). A forked child gets ForkedError; its finalizers leave the parent's handle alone.
"""

import weakref

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport getpid

from pccl_c cimport *
from pccl._buffer cimport Buffer
from pccl._core cimport c_string, check, check_call, close_at_exit, encoded, ensure_initialized, text
from pccl._request cimport Keeper, Request
from slices cimport SHORT_NAP_NS, nap

from pccl.types import Collective

cdef tuple collective_names = tuple(collective.name.lower() for collective in Collective)


cdef class Comm(Keeper):
    """A communicator's C handle. It outlives its requests: closing it cancels them."""

    cdef pcclComm_t *ptr
    cdef int users
    cdef int pid
    cdef object requests
    cdef object __weakref__

    def __cinit__(self):
        self.ptr = NULL
        self.users = 0
        self.pid = getpid()
        self.requests = weakref.WeakSet()

    def __init__(self, str master not None, *, uint32_t peer_group=0, uint32_t connections=0, str advertise=None,
                 str ifname=None, uint16_t port_min=0, uint16_t port_max=0, bytes run_key=None,
                 uint32_t dead_timeout_ms=0, uint32_t op_timeout_ms=0, uint32_t connect_timeout_ms=0,
                 str congestion=None, bint observer=False):
        ensure_initialized()
        if self.ptr != NULL:
            check(pcclInvalidUsage, "Communicator", None, "already created")
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
        check_call(code, "create_communicator")
        self.ptr = ptr
        close_at_exit(self)

    cdef int ensure_alive(self, str func_name) except -1:
        if self.pid != getpid():
            check(pcclForked, func_name, None,
                   "this communicator belongs to the parent process; create one after the fork")
        if self.ptr == NULL or self.closed:
            check(pcclInvalidUsage, func_name, None, "the communicator is closed")
        return 0

    cdef Request prepare(self, str func_name):
        self.ensure_alive(func_name)
        for request in list(self.orphans):
            (<Request>request).step(0)
        cdef Request request_ = Request.__new__(Request)
        request_.keeper = self
        request_.func_name = func_name
        return request_

    cdef Request started(self, Request request, pcclRequest_t *ptr, pcclResult_t code):
        """Takes over what a start gave. ``users`` falls last: until then a close() in another thread waits."""
        try:
            if code != pcclSuccess:
                request.release()
                check_call(code, request.func_name)
            request.ptr = ptr
            self.requests.add(request)
            if self.closed:
                request.close()
        except BaseException:  # an interrupt
            request.close()
            raise
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

    def start_collective(self, int collective, Buffer send, Buffer recv, size_t count, int datatype, int op,
                         uint32_t root, uint64_t tag, counts, recv_counts, weight, scale, int algorithm,
                         codec, Buffer residual, uint32_t timeout_ms, uint32_t group, uint32_t size, uint32_t rank,
                         bint awaited):
        """``counts`` and ``recv_counts``: array('Q') or None. ``weight``: None for none. ``codec``: None, or algorithm,
        data type, exponent, block, stochastic, finite_only and residual decay. ``size`` and ``rank``: what buffers and
        counts are made for; 0 and 0: what the group is now. ``awaited``: the caller waits for it next."""
        cdef Request request = self.prepare(collective_names[collective])
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
        args.scaled = scale is not None
        args.scale = scale if scale is not None else 0.0
        args.algorithm = <pcclAlgorithm_t>algorithm
        if codec is not None:
            args.codec.algorithm = <pcclQuantizationAlgorithm_t><int>codec[0]
            args.codec.quantized_datatype = <pcclDataType_t><int>codec[1]
            args.codec.exponent = codec[2]
            args.codec.block = codec[3]
            args.codec.stochastic = codec[4]
            args.codec.finite_only = codec[5]
            args.codec.residual_decay = codec[6]
        if residual is not None:
            args.codec.residual = residual.data
        args.timeout_ms = timeout_ms
        args.group = group
        args.made_for_size = size
        args.made_for_rank = rank
        args.awaited = awaited
        request.buffers = (send, recv, counts, recv_counts, residual)
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartCollective(self.ptr, &args, &ptr)
        return self.started(request, ptr, code)

    def start_create_group(self, ids):
        """``ids``: array('Q')."""
        cdef Request request = self.prepare("new_group")
        cdef uint64_t[::1] view
        cdef const uint64_t *first = NULL
        cdef size_t count = len(ids)
        if count > 0:
            view = ids
            first = &view[0]
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartCreateGroup(self.ptr, first, count, &ptr)
        return self.started(request, ptr, code)

    def destroy_group(self, uint32_t group):
        self.ensure_alive("destroy_group")
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclDestroyGroup(self.ptr, group)
        self.users -= 1
        check_call(code, "destroy_group")

    def begin_step(self, uint32_t group):
        self.ensure_alive("begin_step")
        check_call(pcclBeginStep(self.ptr, group), "begin_step")

    def start_end_step(self, uint32_t group, bint commit):
        cdef Request request = self.prepare("end_step")
        cdef pcclRequest_t *ptr = NULL
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclStartEndStep(self.ptr, group, commit, &ptr)
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

    @property
    def op_timeout_ms(self):
        self.ensure_alive("op_timeout")
        cdef uint32_t timeout_ms = 0
        check_call(pcclGetOpTimeout(self.ptr, &timeout_ms), "op_timeout")
        return timeout_ms

    def get_attribute(self, int attribute):
        self.ensure_alive("get_attribute")
        cdef int value = 0
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclGetAttribute(self.ptr, <pcclAttribute_t>attribute, &value)
        self.users -= 1
        check_call(code, "get_attribute")
        return value

    def check_in_run(self):
        """Raises the error that ended the run for this peer, if it is out of it."""
        self.ensure_alive("rank")
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclCheckInRun(self.ptr)
        self.users -= 1
        check_call(code, "rank")

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
                check_call(code, "members")
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
        check_call(code, "stats")
        return {
            "epoch": stats.epoch, "peer_id": stats.peer_id, "ops_started": stats.ops_started,
            "ops_committed": stats.ops_committed, "ops_aborted": stats.ops_aborted,
            "tx_payload_bytes": stats.tx_payload_bytes, "rx_payload_bytes": stats.rx_payload_bytes,
            "tx_wire_bytes": stats.tx_wire_bytes, "rx_wire_bytes": stats.rx_wire_bytes,
            "frames_dropped": stats.frames_dropped, "links_lost": stats.links_lost, "held_bytes": stats.held_bytes,
            "eager_bytes": stats.eager_bytes,
            "pool_bytes": stats.pool_bytes, "last_committed_us": stats.last_committed_us,
            "rtt_us": stats.rtt_us, "last_algorithm": <int>stats.last_algorithm,
            "last_chosen": bool(stats.last_chosen), "last_peers": stats.last_peers, "last_bytes": stats.last_bytes,
            "shm_links": stats.shm_links,
        }

    def abort(self):
        """Fails every call of this communicator at once and leaves the run. Needs no other peer."""
        self.ensure_alive("abort")
        cdef pcclResult_t code
        self.users += 1
        with nogil:
            code = pcclAbort(self.ptr)
        self.users -= 1
        check_call(code, "abort")

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
        check_call(code, "destroy_communicator")

    def __del__(self):
        self.close()
