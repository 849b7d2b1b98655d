# The C interface as the bindings use it: csrc/pccl.h and nothing else. Enums are ints here; the C compiler has the real
# types.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<stdbool.h>" nogil:
    ctypedef bint c_bool "bool"


cdef extern from "pccl.h" nogil:
    ctypedef enum pcclResult_t:
        pcclSuccess
        pcclInvalidArgument
        pcclInvalidUsage
        pcclInProgress
        pcclCancelled
        pcclForked

    ctypedef enum pcclDataType_t:
        pass

    ctypedef enum pcclDeviceType_t:
        pcclDeviceCpu

    ctypedef enum pcclRedOp_t:
        pass

    ctypedef enum pcclAttribute_t:
        pass

    ctypedef enum pcclSharedStateSyncStrategy_t:
        pass

    ctypedef enum pcclQuantizationAlgorithm_t:
        pass

    ctypedef struct pcclComm_t:
        pass

    ctypedef struct pcclRequest_t:
        pass

    ctypedef struct pcclMasterInstance_t:
        pass

    ctypedef struct pcclReduceInfo_t:
        uint32_t local_world_size
        uint64_t tx_bytes
        uint64_t rx_bytes

    ctypedef struct pcclTensorInfo_t:
        const char *name
        void *data
        size_t count
        pcclDataType_t datatype
        pcclDeviceType_t device_type
        c_bool allow_content_inequality

    ctypedef struct pcclSharedState_t:
        uint64_t revision
        size_t count
        pcclTensorInfo_t *infos

    ctypedef struct pcclSharedStateSyncInfo_t:
        uint64_t tx_bytes
        uint64_t rx_bytes

    ctypedef struct pcclBuildInfo_t:
        c_bool has_cuda_support

    ctypedef struct pcclErrorRecord_t:
        pcclResult_t code
        int32_t sys_errno
        uint64_t peer_id
        char peer_address[64]
        char phase[32]
        uint64_t epoch
        uint64_t tag
        uint64_t seq
        uint64_t bytes_done
        uint64_t bytes_total
        uint64_t last_heard_ms
        char message[768]
        char hint[256]

    ctypedef struct pcclOutcome_t:
        pcclReduceInfo_t reduce
        pcclSharedStateSyncInfo_t sync
        uint64_t revision
        c_bool pending
        uint32_t group
        uint32_t source
        pcclErrorRecord_t error

    ctypedef enum pcclCollective_t:
        pass

    ctypedef struct pcclCodecOptions_t:
        pcclQuantizationAlgorithm_t algorithm
        pcclDataType_t quantized_datatype
        int32_t exponent
        uint32_t block
        c_bool stochastic
        c_bool finite_only
        void *residual
        double residual_decay

    ctypedef struct pcclCollectiveArgs_t:
        pcclCollective_t collective
        const void *sendbuf
        void *recvbuf
        size_t count
        pcclDataType_t datatype
        pcclRedOp_t op
        uint32_t root
        uint64_t tag
        const uint64_t *counts
        const uint64_t *recv_counts
        c_bool weighted
        uint64_t weight
        double scale
        c_bool scaled
        pcclAlgorithm_t algorithm
        pcclCodecOptions_t codec
        uint32_t timeout_ms
        uint32_t group
        uint32_t made_for_size
        uint32_t made_for_rank
        c_bool awaited

    ctypedef struct pcclCommOptions_t:
        const char *master
        uint32_t peer_group
        uint32_t connections
        const char *advertise
        const char *ifname
        uint16_t port_min
        uint16_t port_max
        const uint8_t *run_key
        size_t run_key_len
        uint32_t dead_timeout_ms
        uint32_t op_timeout_ms
        uint32_t connect_timeout_ms
        const char *congestion
        c_bool observer

    ctypedef struct pcclMember_t:
        uint64_t id
        uint32_t rank
        uint32_t peer_group
        c_bool observer
        c_bool self
        char address[64]

    ctypedef enum pcclAlgorithm_t:
        pass

    ctypedef struct pcclStats_t:
        uint64_t epoch
        uint64_t peer_id
        uint64_t ops_started
        uint64_t ops_committed
        uint64_t ops_aborted
        uint64_t tx_payload_bytes
        uint64_t rx_payload_bytes
        uint64_t tx_wire_bytes
        uint64_t rx_wire_bytes
        uint64_t frames_dropped
        uint64_t links_lost
        uint64_t held_bytes
        uint64_t eager_bytes
        uint64_t pool_bytes
        uint64_t last_committed_us
        uint32_t rtt_us
        pcclAlgorithm_t last_algorithm
        c_bool last_chosen
        uint32_t last_peers
        uint64_t last_bytes
        uint32_t shm_links

    ctypedef struct pcclMasterOptions_t:
        const char *listen
        const uint8_t *run_key
        size_t run_key_len
        uint32_t dead_timeout_ms
        uint32_t join_timeout_ms

    ctypedef struct pcclSimOptions_t:
        uint64_t seed
        uint32_t peers_min
        uint32_t peers_max
        uint32_t ops
        c_bool faults
        c_bool io_threads
        c_bool trace
        uint64_t crash_event
        uint32_t crash_peer

    ctypedef struct pcclSimReport_t:
        c_bool ok
        uint32_t peers
        uint64_t events
        uint64_t ops_committed
        uint64_t ops_aborted
        uint64_t epochs
        uint64_t virtual_ns
        uint64_t trace_hash
        char verdict[512]
        char *log

    const char *pcclGetResultName(pcclResult_t result)
    const char *pcclGetResultText(pcclResult_t result)
    pcclResult_t pcclGetLastError(pcclErrorRecord_t *record_out)

    pcclResult_t pcclInit()
    pcclResult_t pcclCheckEnvironment()
    pcclResult_t pcclGetBuildInfo(pcclBuildInfo_t *info)
    pcclResult_t pcclCreateCommunicatorWithOptions(const pcclCommOptions_t *options, pcclComm_t **comm_out)
    pcclResult_t pcclDestroyCommunicator(pcclComm_t *comm)
    pcclResult_t pcclAbort(pcclComm_t *comm)
    pcclResult_t pcclGetAttribute(const pcclComm_t *comm, pcclAttribute_t attribute, int *value_out)
    pcclResult_t pcclCheckInRun(const pcclComm_t *comm)
    pcclResult_t pcclGetMembers(const pcclComm_t *comm, pcclMember_t *members_out, size_t *count_inout)
    pcclResult_t pcclGetStats(const pcclComm_t *comm, pcclStats_t *stats_out)
    pcclResult_t pcclGetOpTimeout(const pcclComm_t *comm, uint32_t *timeout_ms_out)

    pcclResult_t pcclStartConnect(pcclComm_t *comm, pcclRequest_t **request_out)
    pcclResult_t pcclStartUpdateTopology(pcclComm_t *comm, pcclRequest_t **request_out)
    pcclResult_t pcclStartArePeersPending(pcclComm_t *comm, pcclRequest_t **request_out)
    pcclResult_t pcclStartOptimizeTopology(pcclComm_t *comm, pcclRequest_t **request_out)
    pcclResult_t pcclStartCollective(pcclComm_t *comm, const pcclCollectiveArgs_t *args, pcclRequest_t **request_out)
    pcclResult_t pcclBeginStep(pcclComm_t *comm, uint32_t group)
    pcclResult_t pcclStartEndStep(pcclComm_t *comm, uint32_t group, c_bool commit, pcclRequest_t **request_out)
    pcclResult_t pcclStartCreateGroup(pcclComm_t *comm, const uint64_t *ids, size_t count, pcclRequest_t **request_out)
    pcclResult_t pcclDestroyGroup(pcclComm_t *comm, uint32_t group)
    pcclResult_t pcclStartSynchronizeSharedState(pcclComm_t *comm, const pcclSharedState_t *shared_state,
                                                 pcclSharedStateSyncStrategy_t strategy,
                                                 pcclRequest_t **request_out)
    pcclResult_t pcclWaitRequest(pcclRequest_t *request, uint32_t timeout_ms, pcclOutcome_t *outcome_out)
    pcclResult_t pcclCancelRequest(pcclRequest_t *request)
    pcclResult_t pcclFreeRequest(pcclRequest_t *request)

    pcclResult_t pcclCreateMasterWithOptions(const pcclMasterOptions_t *options, pcclMasterInstance_t **master_out)
    pcclResult_t pcclGetMasterPort(const pcclMasterInstance_t *master, uint16_t *port_out)
    pcclResult_t pcclRunMaster(pcclMasterInstance_t *master)
    pcclResult_t pcclInterruptMaster(pcclMasterInstance_t *master)
    pcclResult_t pcclMasterAwaitTermination(pcclMasterInstance_t *master)
    pcclResult_t pcclDestroyMaster(pcclMasterInstance_t *master)

    pcclResult_t pcclQueryStatus(const char *master, const uint8_t *run_key, size_t run_key_len, uint32_t timeout_ms,
                                 char **json_out)
    pcclResult_t pcclSimRun(const pcclSimOptions_t *options, pcclSimReport_t *report_out)
