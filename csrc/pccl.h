/*
 * pccl: fault-tolerant collective communication over TCP.
 *
 * The first part is the interface of PCCL 1.0: names, values, field order and semantics are kept, so that a program
 * written for it compiles and runs unchanged. The second part ("Beyond PCCL 1.0") adds what it lacks: error records,
 * requests that can be waited for in slices and cancelled, options, statistics, the simulator.
 *
 * Threads: every function may be called from any thread, also while others are in calls with the same handle; only the
 * one that frees a handle (pcclDestroyCommunicator, pcclDestroyMaster, pcclFreeRequest) must be the last to begin. One
 * communicator runs one I/O thread of its own, and a thread that waits in a call may do that one's work meanwhile: it
 * needs 128 KiB of stack, and a signal handler on it should not take long. A caller's buffers belong to the library from
 * the start of a call until it has returned (or, for an asynchronous one, until it has been awaited), and to nobody else
 * in between.
 *
 * Fork: a child has none of the parent's handles. Its copies of the sockets are closed in fork() itself, so the parent
 * goes on undisturbed; every call with an inherited handle returns pcclForked at once, except destroying and freeing,
 * which succeed and do nothing. The child may create handles of its own. Programs started with exec inherit nothing.
 */
#ifndef PCCL_H
#define PCCL_H

#include "ccoip_inet.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PCCL_EXPORT __attribute__((visibility("default")))
#else
#define PCCL_EXPORT
#endif
#define PCCL_NULLABLE

#ifdef __cplusplus
extern "C" {
#endif

/* The one list of result codes: enum, names and texts are made from it. 0 to 12 are PCCL 1.0's. */
#define PCCL_RESULT_LIST(X)                                                                                            \
    X(pcclSuccess, 0, SUCCESS, "success")                                                                              \
    X(pcclNotInitialized, 1, NOT_INITIALIZED, "pcclInit has not been called")                                          \
    X(pcclInternalError, 2, INTERNAL_ERROR, "internal error")                                                          \
    X(pcclInvalidArgument, 3, INVALID_ARGUMENT, "invalid argument")                                                    \
    X(pcclInvalidUsage, 4, INVALID_USAGE, "invalid usage")                                                             \
    X(pcclTooFewPeers, 5, TOO_FEW_PEERS, "too few peers in the group")                                                 \
    X(pcclMasterConnectionFailed, 6, MASTER_CONNECTION_FAILED, "no connection to the master")                          \
    X(pcclRankConnectionFailed, 7, RANK_CONNECTION_FAILED, "no connection to a peer")                                  \
    X(pcclRankConnectionLost, 8, RANK_CONNECTION_LOST, "connection to a peer lost")                                    \
    X(pcclNoSharedStateAvailable, 9, NO_SHARED_STATE_AVAILABLE, "no shared state available")                           \
    X(pcclPendingAsyncOps, 10, PENDING_ASYNC_OPS, "asynchronous operations are in flight")                             \
    X(pcclUpdateTopologyFailed, 11, UPDATE_TOPOLOGY_FAILED, "topology update failed")                                  \
    X(pcclTopologyOptimizationFailed, 12, TOPOLOGY_OPTIMIZATION_FAILED, "topology optimization failed")                \
    X(pcclTimeout, 64, TIMEOUT, "the call's own time limit has passed")                                                \
    X(pcclInProgress, 65, IN_PROGRESS, "not finished yet")                                                             \
    X(pcclEvicted, 66, EVICTED, "this peer was removed from the run")                                                  \
    X(pcclOutcomeUnknown, 67, OUTCOME_UNKNOWN, "the outcome of the operation is unknown to this peer")                 \
    X(pcclMismatch, 68, MISMATCH, "the peers called the same operation with different descriptors")                    \
    X(pcclDeadlock, 69, DEADLOCK, "all peers wait in calls that cannot match")                                         \
    X(pcclCancelled, 70, CANCELLED, "cancelled by the caller")                                                         \
    X(pcclRefused, 71, REFUSED, "the master refused this peer")                                                        \
    X(pcclProtocolError, 72, PROTOCOL_ERROR, "malformed or unexpected bytes from the other end")                       \
    X(pcclNoMemory, 73, NO_MEMORY, "out of memory")                                                                    \
    X(pcclSystemError, 74, SYSTEM_ERROR, "a system call failed")                                                       \
    X(pcclForked, 75, FORKED, "this handle belongs to the parent process")                                              \
    X(pcclStepAborted, 76, STEP_ABORTED, "the step was aborted: nothing of it counts at any peer")                     \
    X(pcclNotEncodable, 77, NOT_ENCODABLE, "the payload holds values that the codec cannot stand for")

typedef enum pcclResult_t {
#define PCCL_RESULT_ENUM(name, value, upper, text) name = value,
    PCCL_RESULT_LIST(PCCL_RESULT_ENUM)
#undef PCCL_RESULT_ENUM
} pcclResult_t;

typedef enum pcclDataType_t {
    pcclUint8 = 0,
    pcclInt8 = 1,
    pcclInt16 = 2,
    pcclUint16 = 3,
    pcclUint32 = 4,
    pcclInt32 = 5,
    pcclUint64 = 6,
    pcclInt64 = 7,
    pcclFloat16 = 8,
    pcclBFloat16 = 9,
    pcclFloat = 10,
    pcclDouble = 11
} pcclDataType_t;

typedef enum pcclDeviceType_t { pcclDeviceCpu = 0, pcclDeviceCuda = 1 } pcclDeviceType_t;

/* pcclAvg divides the sum once, at the end, by how many peers took part; on integers it truncates toward 0. */
typedef enum pcclRedOp_t {
    pcclSum = 0,
    pcclAvg = 1,
    pcclProd = 2,
    pcclMax = 3,
    pcclMin = 4,
    /* beyond PCCL 1.0, for integers */
    pcclBand = 5,
    pcclBor = 6,
    pcclBxor = 7
} pcclRedOp_t;

typedef enum pcclAttribute_t {
    PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE = 1,
    PCCL_ATTRIBUTE_PEER_GROUP_WORLD_SIZE = 2,
    PCCL_ATTRIBUTE_NUM_DISTINCT_PEER_GROUPS = 3,
    PCCL_ATTRIBUTE_LARGEST_PEER_GROUP_WORLD_SIZE = 4
} pcclAttribute_t;

typedef enum pcclSharedStateSyncStrategy_t {
    PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR = 0,
    PCCL_SHARED_STATE_SYNC_STRATEGY_RECEIVE_ONLY = 1,
    PCCL_SHARED_STATE_SYNC_STRATEGY_SEND_ONLY = 2
} pcclSharedStateSyncStrategy_t;

typedef enum pcclDistributionHint_t {
    pcclDistributionNone = 0,
    pcclDistributionNormal = 1,
    pcclDistributionUniform = 2
} pcclDistributionHint_t;

typedef enum pcclQuantizationAlgorithm_t {
    pcclQuantNone = 0,
    pcclQuantMinMax = 1,
    pcclQuantZeroPointScale = 2,
    /* Beyond PCCL 1.0: codecs by blocks, each with a scale of its own. quantized_datatype is not read. */
    pcclQuantBf16 = 16,
    pcclQuantFp16 = 17,
    pcclQuantInt8 = 18,
    pcclQuantInt4 = 19,
    pcclQuantFp8E4M3 = 20,
    pcclQuantE3M0 = 21, /* sign and a power of two */
    pcclQuantTopK = 22, /* of every 64 elements the largest, with two bits */
    pcclQuantIntSum = 23 /* 16-bit multiples of a power of two that all share: their sums are exact */
} pcclQuantizationAlgorithm_t;

typedef struct pcclCommCreateParams_t {
    ccoip_socket_address_t master_address;
    uint32_t peer_group;
    uint32_t p2p_connection_pool_size; /* stripes per link; 0: the library chooses */
} pcclCommCreateParams_t;

typedef struct pcclReduceInfo_t {
    uint32_t local_world_size; /* how many took part: the divisor of pcclAvg */
    uint64_t tx_bytes, rx_bytes; /* payload, without framing */
} pcclReduceInfo_t;

typedef struct pcclReduceOperandDescriptor_t {
    pcclDataType_t datatype;
    pcclDistributionHint_t distribution_hint;
} pcclReduceOperandDescriptor_t;

typedef struct pcclQuantizationOptions_t {
    pcclDataType_t quantized_datatype;
    pcclQuantizationAlgorithm_t algorithm;
} pcclQuantizationOptions_t;

typedef struct pcclReduceDescriptor_t {
    size_t count;
    pcclRedOp_t op;
    uint64_t tag;
    pcclReduceOperandDescriptor_t src_descriptor;
    pcclQuantizationOptions_t quantization_options;
} pcclReduceDescriptor_t;

typedef struct pcclReduceSingleDescriptor_t {
    void *sendbuf;
    void *recvbuf;
    pcclReduceDescriptor_t descriptor;
} pcclReduceSingleDescriptor_t, pcclReduceOpDescriptor_t;

typedef struct pcclComm_t pcclComm_t;
typedef struct pcclRankInfo_t pcclRankInfo_t;
typedef struct pcclMasterInstanceState_t pcclMasterInstance_t;

typedef struct pcclAsyncReduceOp_t {
    pcclComm_t *comm;
    uint64_t tag;
} pcclAsyncReduceOp_t;

typedef struct pcclRankUuid_t {
    uint8_t data[16];
} pcclRankUuid_t;

typedef struct pcclTensorInfo_t {
    const char *name;
    void *data;
    size_t count;
    pcclDataType_t datatype;
    pcclDeviceType_t device_type;
    bool allow_content_inequality;
} pcclTensorInfo_t;

typedef struct pcclSharedState_t {
    uint64_t revision;
    size_t count;
    pcclTensorInfo_t *infos;
} pcclSharedState_t;

typedef struct pcclSharedStateSyncInfo_t {
    uint64_t tx_bytes, rx_bytes;
} pcclSharedStateSyncInfo_t;

typedef struct pcclBuildInfo_t {
    bool has_cuda_support;
} pcclBuildInfo_t;

PCCL_EXPORT pcclResult_t pcclInit(void);
PCCL_EXPORT pcclResult_t pcclGetBuildInfo(pcclBuildInfo_t *info);

PCCL_EXPORT pcclResult_t pcclCreateCommunicator(const pcclCommCreateParams_t *params, pcclComm_t **comm_out);
PCCL_EXPORT pcclResult_t pcclGetAttribute(const pcclComm_t *comm, pcclAttribute_t attribute, int *value_out);
/*
 * Leaves the run and ends the I/O thread, within about a second and without any other peer. Calls that other threads
 * are in, and operations in flight, end with pcclCancelled; after it has returned nobody touches their buffers.
 * Asynchronous operations that were not awaited are given up. Requests stay the user's: each can still be asked, and
 * must be freed.
 */
PCCL_EXPORT pcclResult_t pcclDestroyCommunicator(pcclComm_t *comm);

/* One attempt. Fails at once where no master listens, and after connect_timeout_ms where nobody answers; the
 * communicator can be connected again then, as it can after it was removed from the run. */
PCCL_EXPORT pcclResult_t pcclConnect(pcclComm_t *comm);
PCCL_EXPORT pcclResult_t pcclUpdateTopology(pcclComm_t *comm);
PCCL_EXPORT pcclResult_t pcclArePeersPending(const pcclComm_t *comm, bool *pending_out);
PCCL_EXPORT pcclResult_t pcclOptimizeTopology(const pcclComm_t *comm);

PCCL_EXPORT pcclResult_t pcclAllReduce(const void *sendbuf, void *recvbuf, const pcclReduceDescriptor_t *descriptor,
                                       const pcclComm_t *comm, pcclReduceInfo_t *PCCL_NULLABLE info_out);
PCCL_EXPORT pcclResult_t pcclAllReduceAsync(const void *sendbuf, void *recvbuf,
                                            const pcclReduceDescriptor_t *descriptor, const pcclComm_t *comm,
                                            pcclAsyncReduceOp_t *handle_out);
/* An operation that loses a peer or a link is done again with the survivors, until none has succeeded for the time
 * limit of an operation. The tags must differ. More than 1024 are never in flight. */
PCCL_EXPORT pcclResult_t pcclAllReduceMultipleWithRetry(const pcclReduceOpDescriptor_t *descriptors, size_t count,
                                                        const pcclComm_t *comm,
                                                        pcclReduceInfo_t *PCCL_NULLABLE info_out, int max_in_flight);
PCCL_EXPORT pcclResult_t pcclAwaitAsyncReduce(const pcclAsyncReduceOp_t *handle,
                                              pcclReduceInfo_t *PCCL_NULLABLE info_out);

PCCL_EXPORT pcclResult_t pcclSynchronizeSharedState(const pcclComm_t *comm, pcclSharedState_t *shared_state,
                                                    pcclSharedStateSyncStrategy_t strategy,
                                                    pcclSharedStateSyncInfo_t *PCCL_NULLABLE info_out);

PCCL_EXPORT pcclResult_t pcclCreateMaster(ccoip_socket_address_t listen_address, pcclMasterInstance_t **master_out);
PCCL_EXPORT pcclResult_t pcclRunMaster(pcclMasterInstance_t *master); /* returns at once */
PCCL_EXPORT pcclResult_t pcclInterruptMaster(pcclMasterInstance_t *master);
PCCL_EXPORT pcclResult_t pcclMasterAwaitTermination(pcclMasterInstance_t *master);
PCCL_EXPORT pcclResult_t pcclDestroyMaster(pcclMasterInstance_t *master);

/* ---------------------------------------------------------------------------------------------- Beyond PCCL 1.0 -- */

/* What went wrong, where and why. Fields that do not apply are zero or empty. Texts are NUL-terminated UTF-8. */
typedef struct pcclErrorRecord_t {
    pcclResult_t code;
    int32_t sys_errno;
    uint64_t peer_id; /* the peer that is the cause; 0: none or this one */
    char peer_address[64];
    char phase[32]; /* the call or the phase of it: "connect", "all_reduce", "sync_shared_state", ... */
    uint64_t epoch;
    uint64_t tag, seq;
    uint64_t bytes_done, bytes_total;
    uint64_t last_heard_ms; /* age of the last sign of life of that peer */
    char message[768];
    char hint[256];
} pcclErrorRecord_t;

/* The SCREAMING_CASE name and a short text of a code; "UNKNOWN" for one that is not in the list. Never NULL. */
PCCL_EXPORT const char *pcclGetResultName(pcclResult_t result);
PCCL_EXPORT const char *pcclGetResultText(pcclResult_t result);

/* The record of the last failure of a call on this thread; code pcclSuccess if there was none. */
PCCL_EXPORT pcclResult_t pcclGetLastError(pcclErrorRecord_t *record_out);

typedef enum pcclLogLevel_t {
    pcclLogOff = 0,
    pcclLogFatal = 1,
    pcclLogError = 2,
    pcclLogWarn = 3,
    pcclLogInfo = 4,
    pcclLogDebug = 5,
    pcclLogTrace = 6
} pcclLogLevel_t;

/* Set the level, and where lines go (NULL: stderr); wins over PCCL_LOG_LEVEL and PCCL_DEBUG_FILE, which are read by
 * pcclInit or with the first master, whichever is first. The callback is called from any thread, one line at a time, and
 * must not call this library. */
typedef void (*pcclLogCallback_t)(void *user, pcclLogLevel_t level, const char *line);
PCCL_EXPORT pcclResult_t pcclSetLog(pcclLogLevel_t level, pcclLogCallback_t callback, void *user);

/* Reads every PCCL_* variable as whoever uses it would, and changes nothing. The record names the first one whose value
 * cannot be used, and says what it should be. */
PCCL_EXPORT pcclResult_t pcclCheckEnvironment(void);

/* Zero-initialise, then set what differs from the default. Strings are copied. Times are milliseconds; 0: default. What
 * is not set comes from the environment (`pccl env`), if it is there. */
typedef struct pcclCommOptions_t {
    const char *master; /* "host:port", "1.2.3.4:port", "[::1]:port"; a missing port means 48148 */
    uint32_t peer_group;
    uint32_t connections; /* stripes per link */
    const char *advertise; /* "host:port" or "host" at which other peers reach this one; NULL: found out */
    const char *ifname; /* interface names as NCCL writes them: prefix, "=exact", "^exclude"; NULL: any */
    uint16_t port_min, port_max; /* range to listen in; 0, 0: the system chooses */
    const uint8_t *run_key; /* secret shared by all of the run; NULL: none */
    size_t run_key_len;
    uint32_t dead_timeout_ms; /* silence after which a peer or the master counts as dead; default 5000 */
    uint32_t op_timeout_ms; /* how long a call may wait for a peer that is alive; default 1800000 */
    uint32_t connect_timeout_ms; /* one attempt of connecting, up to registration with the master; default 5000 */
    const char *congestion; /* TCP congestion control; NULL: the library's choice per link, "system": the system's */
    bool observer; /* follow the shared state only */
} pcclCommOptions_t;

PCCL_EXPORT pcclResult_t pcclCreateCommunicatorWithOptions(const pcclCommOptions_t *options, pcclComm_t **comm_out);

/*
 * Requests: every joint call can be started, waited for in slices, and cancelled. A start that fails gives no request;
 * each request that it gives is freed exactly once, before or after its communicator is destroyed.
 *
 * pcclWaitRequest returns pcclInProgress when timeout_ms (UINT32_MAX: for ever) passed first; else the call's result,
 * again and again, until the request is freed. pcclCancelRequest returns at once; the call ends soon, with
 * pcclCancelled or with what it had come to. Both may be called from any thread, by several at a time. pcclFreeRequest
 * cancels one that is unfinished and waits until nobody touches its buffers; it needs no other peer, and no thread may
 * be in or begin a call with that request.
 */
typedef struct pcclRequest_t pcclRequest_t;

typedef struct pcclOutcome_t {
    pcclReduceInfo_t reduce;
    pcclSharedStateSyncInfo_t sync;
    uint64_t revision; /* of the shared state after a synchronisation */
    bool pending; /* answer of are_peers_pending */
    uint32_t group; /* number of the group that was made; 0 where this peer is not in it */
    uint32_t source; /* rank that a receive got its elements from */
    pcclErrorRecord_t error;
} pcclOutcome_t;

PCCL_EXPORT pcclResult_t pcclStartConnect(pcclComm_t *comm, pcclRequest_t **request_out);
PCCL_EXPORT pcclResult_t pcclStartUpdateTopology(pcclComm_t *comm, pcclRequest_t **request_out);
PCCL_EXPORT pcclResult_t pcclStartArePeersPending(pcclComm_t *comm, pcclRequest_t **request_out);
PCCL_EXPORT pcclResult_t pcclStartOptimizeTopology(pcclComm_t *comm, pcclRequest_t **request_out);
PCCL_EXPORT pcclResult_t pcclStartAllReduce(pcclComm_t *comm, const void *sendbuf, void *recvbuf,
                                            const pcclReduceDescriptor_t *descriptor, uint32_t timeout_ms,
                                            pcclRequest_t **request_out);
/* Of shared_state, the struct and the array of infos are copied before it returns. The names and the tensors' memory
 * stay with the library until the request has ended; nobody may write to the tensors until then. The tensors are
 * digested before it returns, which takes time. The new revision is in the outcome: shared_state is not written to. */
PCCL_EXPORT pcclResult_t pcclStartSynchronizeSharedState(pcclComm_t *comm, const pcclSharedState_t *shared_state,
                                                         pcclSharedStateSyncStrategy_t strategy,
                                                         pcclRequest_t **request_out);

/* Collectives. "Block" is what belongs to one rank: count elements, or counts[rank] where counts is given. */
typedef enum pcclCollective_t {
    PCCL_COLLECTIVE_ALL_REDUCE = 0, /* count elements, combined, to all */
    PCCL_COLLECTIVE_BROADCAST = 1, /* count elements of root to all; sendbuf NULL: recvbuf, which root sends from */
    PCCL_COLLECTIVE_REDUCE = 2, /* count elements, combined, to root; recvbuf elsewhere unused */
    PCCL_COLLECTIVE_ALL_GATHER = 3, /* a block of each, to all, by rank */
    PCCL_COLLECTIVE_REDUCE_SCATTER = 4, /* all blocks combined, to each rank its own */
    PCCL_COLLECTIVE_GATHER = 5, /* a block of each, to root, by rank */
    PCCL_COLLECTIVE_SCATTER = 6, /* the blocks of root, to each rank its own */
    PCCL_COLLECTIVE_ALL_TO_ALL = 7, /* a block from each to each */
    PCCL_COLLECTIVE_SEND = 8, /* count elements to rank root */
    PCCL_COLLECTIVE_RECV = 9, /* count elements from rank root, or from whoever sends first: PCCL_RANK_ANY */
    PCCL_COLLECTIVE_BARRIER = 10 /* returns when all have called it */
} pcclCollective_t;

typedef enum pcclAlgorithm_t {
    PCCL_ALGORITHM_AUTO = 0,
    PCCL_ALGORITHM_RING = 1,
    PCCL_ALGORITHM_TREE = 2,
    PCCL_ALGORITHM_DIRECT = 3, /* each rank owns a share: two hops */
    PCCL_ALGORITHM_EXCHANGE = 4 /* everything to everybody: one hop */
} pcclAlgorithm_t;

#define PCCL_RANK_ANY UINT32_MAX

/*
 * How payloads of floating-point types travel. Zero-initialised: as they are. Algorithm, type,
 * exponent and block must be the same at all peers. Everything else is each peer's own affair.
 */
typedef struct pcclCodecOptions_t {
    pcclQuantizationAlgorithm_t algorithm;
    pcclDataType_t quantized_datatype; /* of MinMax and ZeroPointScale: an integer type, whose bits a code has */
    int32_t exponent; /* of IntSum: codes are multiples of 2^exponent, which is from -100 to 100 */
    uint32_t block; /* elements with one scale: a power of two from 32 to 4096; 0: the codec's own */
    bool stochastic; /* rounds up or down with odds that make the mean exact */
    bool finite_only; /* a NaN, an infinity or a range beyond the codec's is an error; else such blocks travel as they are */
    /*
     * Error feedback, for all_reduce: what coding left out of this peer's contributions so far, as many elements as the
     * buffer, float64 for float64 and else float32; zeros at first. Times residual_decay (0: 1) it is added to the
     * contribution, and what is left out now replaces it when the operation succeeds. NULL: none.
     */
    void *residual;
    double residual_decay;
} pcclCodecOptions_t;

/*
 * Zero-initialise, then set what applies. Buffers of rank-ordered blocks are packed. In place: all_reduce and reduce with
 * sendbuf == recvbuf; all_gather and gather (at root) with sendbuf at the own block of recvbuf; reduce_scatter and scatter
 * (at root) with recvbuf at the own block of sendbuf. Other overlaps are refused. After a failure outside of a step a
 * buffer that was reduced in place or that a broadcast was to fill is as before; other receive buffers are unspecified.
 */
typedef struct pcclCollectiveArgs_t {
    pcclCollective_t collective;
    const void *sendbuf;
    void *recvbuf;
    size_t count;
    pcclDataType_t datatype;
    pcclRedOp_t op;
    uint32_t root; /* rank */
    uint64_t tag;
    /*
     * By rank, read during the call. all_gather, reduce_scatter: the same at all. gather, scatter: at root; elsewhere
     * count is the own block. all_to_all: counts is what goes to each rank, recv_counts what comes from there.
     */
    const uint64_t *counts, *recv_counts;
    /*
     * With weighted, pcclAvg gives sum(weight * x) / sum(weight) over floating-point types. Weight 0 leaves out this
     * peer's contribution, which is then never read, for every type and reduction. All weights 0 is an error at all.
     */
    bool weighted;
    uint64_t weight; /* at most 2^48 */
    /* With scaled, or if scale is not 0, the own contribution is multiplied by it first (pcclSum of floating-point types). */
    double scale;
    bool scaled;
    /*
     * AUTO: PCCL_ALGO if it is set, else the library's choice. One that the collective does not have, or that a lost link
     * makes impossible, is replaced by one that works. All members must ask for the same.
     */
    pcclAlgorithm_t algorithm;
    pcclCodecOptions_t codec; /* of floating-point types; all but a barrier */
    uint32_t timeout_ms; /* 0: the communicator's */
    uint32_t group; /* 0: the peer group; else one that pcclCreateGroup has made: ranks are those in it */
    /*
     * The size of the group, and the own rank, that buffers, counts and root are made for. If the group has another size
     * by now, or this peer another rank, nothing is read or written, and the call fails for all with
     * pcclRankConnectionLost. Size 0: they are made for what the group is now.
     */
    uint32_t made_for_size, made_for_rank;
    bool awaited; /* pcclStartCollective: this thread calls pcclWaitRequest next, and may do the work itself there */
} pcclCollectiveArgs_t;

PCCL_EXPORT pcclResult_t pcclStartCollective(pcclComm_t *comm, const pcclCollectiveArgs_t *args,
                                             pcclRequest_t **request_out);
/* The blocking form; outcome_out may be NULL. */
PCCL_EXPORT pcclResult_t pcclRunCollective(pcclComm_t *comm, const pcclCollectiveArgs_t *args,
                                           pcclOutcome_t *PCCL_NULLABLE outcome_out);

/*
 * Step consistency. Between pcclBeginStep and the end of the step, collectives return when they are complete here,
 * without waiting for the verdict of all; one vote at the end decides on all of them. The first failure poisons the step:
 * what is in flight or started later fails at once, at all members. Buffers that were reduced in place are not restored.
 * All members make the same collective calls in a step, and receive in it what is sent in it; else it is aborted.
 * pcclEndStep is a joint call of the group; commit false votes against. It returns pcclSuccess or pcclStepAborted, the
 * same at all members. group: as in pcclCollectiveArgs_t; each group has steps of its own.
 */
PCCL_EXPORT pcclResult_t pcclBeginStep(pcclComm_t *comm, uint32_t group);
PCCL_EXPORT pcclResult_t pcclStartEndStep(pcclComm_t *comm, uint32_t group, bool commit, pcclRequest_t **request_out);
PCCL_EXPORT pcclResult_t pcclEndStep(pcclComm_t *comm, uint32_t group, bool commit);

/*
 * Groups of some members of the peer group, ranked as listed. A joint call of the whole peer group: all call it with the
 * same ids, those that are not among them too; else it fails with pcclMismatch at all. *group_out (outcome.group): its
 * number, used once in a run; 0 where this peer is not in it. A peer may be in many groups, whose operations do not
 * disturb each other: tags, steps and failures are each group's own. When a member is lost, the groups that it was in are
 * broken: all that is in flight or started later in them fails with pcclRankConnectionLost. Groups end with the
 * connection. There are at most 1024 in a run, of which broken ones do not count, and destroyed ones as soon as all
 * members have destroyed them.
 */
PCCL_EXPORT pcclResult_t pcclCreateGroup(pcclComm_t *comm, const uint64_t *ids, size_t count, uint32_t *group_out);
PCCL_EXPORT pcclResult_t pcclStartCreateGroup(pcclComm_t *comm, const uint64_t *ids, size_t count,
                                              pcclRequest_t **request_out);
/* Ends this peer's part in a group; needs no other peer. Its calls of the group must have ended. */
PCCL_EXPORT pcclResult_t pcclDestroyGroup(pcclComm_t *comm, uint32_t group);

PCCL_EXPORT pcclResult_t pcclWaitRequest(pcclRequest_t *request, uint32_t timeout_ms,
                                         pcclOutcome_t *PCCL_NULLABLE outcome_out);
PCCL_EXPORT pcclResult_t pcclCancelRequest(pcclRequest_t *request);
PCCL_EXPORT pcclResult_t pcclFreeRequest(pcclRequest_t *request);

/* Fails every call of this communicator at once with pcclCancelled and leaves the run. Needs no other peer. */
PCCL_EXPORT pcclResult_t pcclAbort(pcclComm_t *comm);

typedef struct pcclMember_t {
    uint64_t id; /* registration number: unique in a run, never used again */
    uint32_t rank; /* index in its group, by id; UINT32_MAX for an observer */
    uint32_t peer_group;
    bool observer;
    bool self;
    char address[64];
} pcclMember_t;

/* pcclSuccess while this peer is in the run; else the error that ended it, which calls that need the others give too. */
PCCL_EXPORT pcclResult_t pcclCheckInRun(const pcclComm_t *comm);
/* Copies at most *count_inout members of the current epoch, and sets it to how many there are; 0 when not connected. */
PCCL_EXPORT pcclResult_t pcclGetMembers(const pcclComm_t *comm, pcclMember_t *members_out, size_t *count_inout);

typedef struct pcclStats_t {
    uint64_t epoch;
    uint64_t peer_id;
    uint64_t ops_started, ops_committed, ops_aborted;
    uint64_t tx_payload_bytes, rx_payload_bytes;
    uint64_t tx_wire_bytes, rx_wire_bytes;
    uint64_t frames_dropped; /* of older epochs or decided operations */
    uint64_t links_lost;
    uint64_t held_bytes; /* what waits here for its call, with 256 bytes for each part of it */
    uint64_t eager_bytes; /* the same at the other ends, of what this one has sent, as far as it knows */
    uint64_t pool_bytes; /* memory that the communicator keeps for reuse */
    uint64_t last_committed_us; /* duration of the last committed operation */
    uint32_t rtt_us; /* longest round trip of the group's links, as measured when they were made; 0: unknown */
    /* How the last collective was carried out, and what decided that. */
    pcclAlgorithm_t last_algorithm;
    bool last_chosen; /* by the library; false: it was asked for */
    uint32_t last_peers;
    uint64_t last_bytes; /* of the buffer, or of a block */
    uint32_t shm_links; /* links to peers of this host that use shared memory */
} pcclStats_t;

PCCL_EXPORT pcclResult_t pcclGetStats(const pcclComm_t *comm, pcclStats_t *stats_out);
/* How long a call may wait for a peer that is alive: the option, PCCL_OP_TIMEOUT or the default. */
PCCL_EXPORT pcclResult_t pcclGetOpTimeout(const pcclComm_t *comm, uint32_t *timeout_ms_out);

typedef struct pcclMasterOptions_t {
    const char *listen; /* "host:port"; port 0: the system chooses */
    const uint8_t *run_key;
    size_t run_key_len;
    uint32_t dead_timeout_ms; /* default 5000 */
    uint32_t join_timeout_ms; /* how long a newcomer may stay pending; default 1800000 */
} pcclMasterOptions_t;

PCCL_EXPORT pcclResult_t pcclCreateMasterWithOptions(const pcclMasterOptions_t *options,
                                                     pcclMasterInstance_t **master_out);
/* The port it listens on; known as soon as it was created. */
PCCL_EXPORT pcclResult_t pcclGetMasterPort(const pcclMasterInstance_t *master, uint16_t *port_out);

/* Asks a master for its state: members, epoch, operations in flight, who waits for whom. Blocks for timeout_ms (0:
 * 5000) at most, and for as long as the system takes to resolve a name. *json_out is freed with free(). */
PCCL_EXPORT pcclResult_t pcclQueryStatus(const char *master, const uint8_t *run_key, size_t run_key_len,
                                         uint32_t timeout_ms, char **json_out);

/* The simulator: the production machines under a virtual clock and a seeded network. One schedule a call. */
typedef struct pcclSimOptions_t {
    uint64_t seed;
    uint32_t peers_min, peers_max; /* 2 to 64 */
    uint32_t ops; /* steps of a peer's program, of one to three operations and those of its groups */
    bool faults; /* false: delays only */
    bool io_threads; /* payload moves while a peer goes on with other events, as with several I/O threads */
    bool trace; /* keep a readable event log */
    uint64_t crash_event; /* not 0: peer crash_peer, counted from 1, crashes after so many events */
    uint32_t crash_peer;
} pcclSimOptions_t;

typedef struct pcclSimReport_t {
    bool ok;
    uint32_t peers;
    uint64_t events, ops_committed, ops_aborted, epochs, virtual_ns;
    uint64_t trace_hash;
    char verdict[512]; /* the law that broke, and where; empty if none */
    char *log; /* with trace: freed with free() */
} pcclSimReport_t;

PCCL_EXPORT pcclResult_t pcclSimRun(const pcclSimOptions_t *options, pcclSimReport_t *report_out);

#ifdef __cplusplus
}
#endif

#endif
