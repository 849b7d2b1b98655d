"""C programs as users write them: compiled against the installed headers and library, and run with a real master."""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import time

import psutil
import pytest
from cluster import Cluster, eventually
from proxy import Proxy

import pccl
from pccl.config import VARIABLES

CC = shlex.split(os.environ.get("CC") or "cc")

# A program in the style of PCCL 1.0's own examples: plain C99, loop over steps, retry, shared state.
PROGRAM = r"""
#include <ccoip.h>
#include <ccoip_inet.h>
#include <pccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        pcclResult_t status = (call);                                                                                  \
        if (status != pcclSuccess) {                                                                                   \
            fprintf(stderr, "%s: %d\n", #call, (int) status);                                                          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define N 1024
#define STEPS 5

int main(int argc, char **argv) {
    const int world = atoi(argv[2]);
    const float own = (float) atof(argv[3]);
    (void) argc;
    pcclComm_t *communicator = NULL;
    pcclCommCreateParams_t params = {
        .master_address = {.inet = {.protocol = inetIPv4, .ipv4 = {.data = {127, 0, 0, 1}}},
                           .port = (uint16_t) atoi(argv[1])},
        .peer_group = 0,
        .p2p_connection_pool_size = 0};
    if (pcclCreateCommunicator(&params, &communicator) != pcclNotInitialized) return 2;
    if (pcclDestroyCommunicator(NULL) != pcclNotInitialized) return 2;
    CHECK(pcclInit());
    CHECK(pcclInit());
    CHECK(pcclCreateCommunicator(&params, &communicator));
    int world_size = 0;
    bool pending = false;
    if (pcclArePeersPending(communicator, &pending) != pcclInvalidUsage) return 3;
    CHECK(pcclConnect(communicator));
    if (pcclConnect(communicator) != pcclInvalidUsage) return 4;
    CHECK(pcclGetAttribute(communicator, PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE, &world_size));
    while (world_size < world) {
        CHECK(pcclArePeersPending(communicator, &pending));
        if (pending) CHECK(pcclUpdateTopology(communicator));
        CHECK(pcclGetAttribute(communicator, PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE, &world_size));
    }

    static float weights[N], gradients[N];
    memset(weights, 0, sizeof weights);
    pcclTensorInfo_t infos[1] = {{.name = "weights",
                                  .data = weights,
                                  .count = N,
                                  .datatype = pcclFloat,
                                  .device_type = pcclDeviceCpu,
                                  .allow_content_inequality = false}};
    pcclSharedState_t state = {.revision = 0, .count = 1, .infos = infos};
    for (int step = 0; step < STEPS; step++) {
        pcclSharedStateSyncInfo_t sync_info;
        CHECK(pcclSynchronizeSharedState(communicator, &state, PCCL_SHARED_STATE_SYNC_STRATEGY_ENFORCE_POPULAR,
                                         &sync_info));
        if (sync_info.tx_bytes != 0 || sync_info.rx_bytes != 0) return 5;
        for (int i = 0; i < N; i++) gradients[i] = own * (float) (step + 1);
        pcclReduceDescriptor_t descriptor = {
            .count = N,
            .op = pcclSum,
            .tag = 0,
            .src_descriptor = {.datatype = pcclFloat, .distribution_hint = pcclDistributionNone},
            .quantization_options = {.quantized_datatype = pcclFloat, .algorithm = pcclQuantNone}};
        pcclAsyncReduceOp_t handle;
        pcclReduceInfo_t info;
        static float result[N];
        CHECK(pcclAllReduceAsync(gradients, result, &descriptor, communicator, &handle));
        CHECK(pcclAwaitAsyncReduce(&handle, &info));
        if (pcclAwaitAsyncReduce(&handle, &info) != pcclRankConnectionLost) return 6;
        if (info.local_world_size != (uint32_t) world) return 7;
        for (int i = 0; i < N; i++) weights[i] += result[i];
        state.revision++;
    }
    pcclReduceOpDescriptor_t ops[3];
    static uint32_t buffers[3][N];
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < N; i++) buffers[k][i] = (uint32_t) (i + k);
        ops[k] = (pcclReduceOpDescriptor_t){
            .sendbuf = buffers[k],
            .recvbuf = buffers[k],
            .descriptor = {.count = N, .op = pcclMax, .tag = (uint64_t) k, .src_descriptor = {pcclUint32, 0}}};
        ops[k].descriptor.quantization_options.quantized_datatype = pcclUint32;
    }
    CHECK(pcclAllReduceMultipleWithRetry(ops, 3, communicator, NULL, 2));
    if (buffers[2][N - 1] != N + 1) return 8;
    printf("%g %g\n", (double) weights[0], (double) weights[N - 1]);
    CHECK(pcclDestroyCommunicator(communicator));
    return CCOIP_PROTOCOL_PORT_MASTER == 48148 ? 0 : 9;
}
"""

# A master and a peer in one process, the functions beyond PCCL 1.0, in C++.
PROGRAM_CPP = r"""
#include <pccl.h>
#include <cstdint>
#include <cstdio>
#include <cstring>

int main() {
    pcclMasterInstance_t *master = nullptr;
    pcclMasterOptions_t options{};
    options.listen = "127.0.0.1:0";
    if (pcclCreateMasterWithOptions(&options, &master) != pcclSuccess) return 1;
    if (pcclRunMaster(master) != pcclSuccess) return 2;
    std::uint16_t port = 0;
    if (pcclGetMasterPort(master, &port) != pcclSuccess || port == 0) return 3;
    if (pcclInit() != pcclSuccess) return 4;
    char address[64];
    std::snprintf(address, sizeof address, "127.0.0.1:%u", unsigned{port});
    pcclCommOptions_t comm_options{};
    comm_options.master = address;
    pcclComm_t *comm = nullptr;
    if (pcclCreateCommunicatorWithOptions(&comm_options, &comm) != pcclSuccess) return 5;
    if (pcclConnect(comm) != pcclSuccess) return 6;
    float x = 1;
    pcclReduceDescriptor_t descriptor{};
    descriptor.count = 1;
    descriptor.src_descriptor.datatype = pcclFloat;
    if (pcclAllReduce(&x, &x, &descriptor, comm, nullptr) != pcclTooFewPeers) return 7;
    pcclErrorRecord_t record{};
    if (pcclGetLastError(&record) != pcclSuccess || record.code != pcclTooFewPeers) return 8;
    if (std::strcmp(pcclGetResultName(record.code), "TOO_FEW_PEERS") != 0 || record.message[0] == 0) return 9;
    descriptor.quantization_options.algorithm = static_cast<pcclQuantizationAlgorithm_t>(5);
    if (pcclAllReduce(&x, &x, &descriptor, comm, nullptr) != pcclInvalidArgument) return 10;
    if (pcclAllReduce(nullptr, &x, &descriptor, comm, nullptr) != pcclInvalidArgument) return 11;
    if (pcclDestroyCommunicator(comm) != pcclSuccess) return 12;
    if (pcclInterruptMaster(master) != pcclSuccess) return 13;
    if (pcclMasterAwaitTermination(master) != pcclSuccess) return 14;
    if (pcclDestroyMaster(master) != pcclSuccess) return 15;
    std::puts("well");
}
"""

# Two peers, and a batch with retry that begins at a word on stdin. Prints how many operations the batch took.
PROGRAM_RETRY = r"""
#include <pccl.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != pcclSuccess) {                                                                                   \
            pcclErrorRecord_t record;                                                                                  \
            pcclGetLastError(&record);                                                                                 \
            fprintf(stderr, "%s: %s\n", #call, record.message);                                                        \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { N = 1000000, OPS = 4 };
static float buffers[OPS][N];

int main(int argc, char **argv) {
    pcclCommOptions_t options = {0};
    pcclComm_t *comm = NULL;
    (void) argc;
    options.master = argv[1];
    CHECK(pcclInit());
    CHECK(pcclCreateCommunicatorWithOptions(&options, &comm));
    CHECK(pcclConnect(comm));
    puts("connected");
    fflush(stdout);
    for (int world = 0; world < 2;) {
        CHECK(pcclGetAttribute(comm, PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE, &world));
        if (world < 2) CHECK(pcclUpdateTopology(comm));
    }
    pcclReduceOpDescriptor_t ops[OPS];
    for (int k = 0; k < OPS; k++) {
        pcclReduceDescriptor_t descriptor = {0};
        for (int i = 0; i < N; i++) buffers[k][i] = 1;
        descriptor.count = N;
        descriptor.op = pcclSum;
        descriptor.tag = (uint64_t) k;
        descriptor.src_descriptor.datatype = pcclFloat;
        ops[k] = (pcclReduceOpDescriptor_t){buffers[k], buffers[k], descriptor};
    }
    CHECK(pcclAllReduceMultipleWithRetry(ops, OPS, comm, NULL, OPS)); /* a young link that breaks costs its peer */
    puts("ready");
    fflush(stdout);
    if (getchar() == EOF) return 2;
    pcclStats_t before, after;
    CHECK(pcclGetStats(comm, &before));
    CHECK(pcclAllReduceMultipleWithRetry(ops, OPS, comm, NULL, OPS));
    CHECK(pcclGetStats(comm, &after));
    for (int k = 0; k < OPS; k++) {
        for (int i = 0; i < N; i++) {
            if (buffers[k][i] != 4) return 3;
        }
    }
    printf("%d %d\n", (int) (after.ops_started - before.ops_started), (int) (after.links_lost - before.links_lost));
    fflush(stdout);
    while (getchar() != EOF) continue; /* who leaves takes a link with it */
    CHECK(pcclDestroyCommunicator(comm));
    return 0;
}
"""

# Master and two peers in one process; each round ends with requests and asynchronous operations that nobody waited for.
PROGRAM_DESTROY = r"""
#include <malloc.h>
#include <pccl.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != pcclSuccess) {                                                                                   \
            fprintf(stderr, "%s\n", #call);                                                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static float buffer[2][1000];

static void run_once(const char *address) {
    pcclCommOptions_t options = {0};
    pcclComm_t *comms[2];
    pcclRequest_t *requests[2], *own;
    pcclReduceDescriptor_t descriptor = {0};
    pcclAsyncReduceOp_t handle;
    bool pending = false;
    options.master = address;
    for (int i = 0; i < 2; i++) CHECK(pcclCreateCommunicatorWithOptions(&options, &comms[i]));
    CHECK(pcclConnect(comms[0]));
    CHECK(pcclStartConnect(comms[1], &requests[1]));
    while (!pending) CHECK(pcclArePeersPending(comms[0], &pending));
    CHECK(pcclUpdateTopology(comms[0]));
    CHECK(pcclWaitRequest(requests[1], 10000, NULL));
    CHECK(pcclFreeRequest(requests[1]));
    descriptor.count = 1000;
    descriptor.op = pcclSum;
    descriptor.src_descriptor.datatype = pcclFloat;
    for (descriptor.tag = 0; descriptor.tag < 4; descriptor.tag++) {
        CHECK(pcclAllReduceAsync(buffer[0], buffer[0], &descriptor, comms[0], &handle));
    }
    descriptor.tag = 9;
    CHECK(pcclStartAllReduce(comms[1], buffer[1], buffer[1], &descriptor, 0, &own));
    CHECK(pcclDestroyCommunicator(comms[1]));
    CHECK(pcclDestroyCommunicator(comms[0]));
    /* Of a communicator that is gone: it has ended, can be asked, and is freed. */
    if (pcclWaitRequest(own, 0, NULL) != pcclCancelled || pcclWaitRequest(own, 1000, NULL) != pcclCancelled) exit(2);
    CHECK(pcclCancelRequest(own));
    CHECK(pcclFreeRequest(own));
}

int main(void) {
    pcclMasterOptions_t options = {0};
    pcclMasterInstance_t *master = NULL;
    uint16_t port = 0;
    char address[64];
    long before = 0;
    options.listen = "127.0.0.1:0";
    CHECK(pcclInit());
    CHECK(pcclCreateMasterWithOptions(&options, &master));
    CHECK(pcclRunMaster(master));
    CHECK(pcclGetMasterPort(master, &port));
    snprintf(address, sizeof address, "127.0.0.1:%u", (unsigned) port);
    for (int round = 0; round < 60; round++) {
        run_once(address);
        if (round == 9) before = (long) mallinfo2().uordblks;
    }
    printf("%ld\n", ((long) mallinfo2().uordblks - before) / 50);
    CHECK(pcclInterruptMaster(master));
    CHECK(pcclMasterAwaitTermination(master));
    CHECK(pcclDestroyMaster(master));
    return 0;
}
"""

# What is beyond PCCL 1.0: collectives by one structure, blocks, a receive from anybody, a step with its vote, a group.
PROGRAM_COLLECTIVES = r"""
#include <pccl.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        pcclResult_t status = (call);                                                                                  \
        if (status != pcclSuccess) {                                                                                   \
            fprintf(stderr, "%s: %s\n", #call, pcclGetResultName(status));                                             \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { WORLD = 3, N = 50000 };
static float data[N], blocks[WORLD * 4];

/* The ids by rank. */
static void read_ids(const pcclComm_t *comm, uint64_t ids[WORLD]) {
    pcclMember_t members[WORLD];
    size_t count = WORLD;
    CHECK(pcclGetMembers(comm, members, &count));
    for (size_t i = 0; i < count; i++) ids[members[i].rank] = members[i].id;
}

/* Ranks 2 and 0 of all, in this order: what rank 2 sends to rank 0, which is 1 there. The others get 0. */
static float exchange_in_group(pcclComm_t *comm, uint32_t rank) {
    uint64_t ids[WORLD];
    read_ids(comm, ids);
    const uint64_t listed[2] = {ids[2], ids[0]};
    uint32_t group = 99;
    CHECK(pcclCreateGroup(comm, listed, 2, &group));
    if (rank == 1) return group == 0 ? 0 : 1;
    float value = rank == 2 ? 2.5f : 0;
    pcclCollectiveArgs_t broadcast = {.collective = PCCL_COLLECTIVE_BROADCAST, .recvbuf = &value, .count = 1,
                                      .datatype = pcclFloat, .root = 0, .group = group};
    CHECK(pcclBeginStep(comm, group));
    CHECK(pcclRunCollective(comm, &broadcast, NULL));
    if (pcclDestroyGroup(comm, group) != pcclInvalidUsage) exit(3);
    CHECK(pcclEndStep(comm, group, true));
    CHECK(pcclDestroyGroup(comm, group));
    if (pcclRunCollective(comm, &broadcast, NULL) != pcclInvalidUsage) exit(4);
    if (pcclDestroyGroup(comm, group) != pcclInvalidUsage) exit(5);
    return value;
}

static uint32_t own_rank(const pcclComm_t *comm) {
    pcclMember_t members[WORLD];
    size_t count = WORLD;
    CHECK(pcclGetMembers(comm, members, &count));
    for (size_t i = 0; i < count; i++) {
        if (members[i].self) return members[i].rank;
    }
    exit(2);
}

int main(int argc, char **argv) {
    (void) argc;
    pcclComm_t *comm = NULL;
    const pcclCommOptions_t options = {.master = argv[1]};
    CHECK(pcclInit());
    CHECK(pcclCreateCommunicatorWithOptions(&options, &comm));
    CHECK(pcclConnect(comm));
    for (int world = 0; world < WORLD;) {
        bool pending = false;
        CHECK(pcclGetAttribute(comm, PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE, &world));
        if (world == WORLD) break;
        CHECK(pcclArePeersPending(comm, &pending));
        if (pending) CHECK(pcclUpdateTopology(comm));
    }
    const uint32_t rank = own_rank(comm);

    for (int i = 0; i < N; i++) data[i] = rank == 1 ? 7 : 0;
    pcclCollectiveArgs_t broadcast = {.collective = PCCL_COLLECTIVE_BROADCAST, .recvbuf = data, .count = N,
                                      .datatype = pcclFloat, .root = 1};
    CHECK(pcclRunCollective(comm, &broadcast, NULL));

    const float own[4] = {rank, rank, rank, rank};
    const uint64_t counts[WORLD] = {1, 4, 2};
    pcclCollectiveArgs_t gather = {.collective = PCCL_COLLECTIVE_ALL_GATHER, .sendbuf = own, .recvbuf = blocks,
                                   .datatype = pcclFloat, .counts = counts, .tag = 5};
    CHECK(pcclRunCollective(comm, &gather, NULL));

    pcclOutcome_t outcome = {.source = 99};
    float one = (float) rank;
    pcclCollectiveArgs_t message = {.count = 1, .datatype = pcclFloat, .tag = 6};
    if (rank == 2) {
        message.collective = PCCL_COLLECTIVE_SEND;
        message.sendbuf = &one;
    } else {
        message.collective = PCCL_COLLECTIVE_RECV;
        message.recvbuf = &one;
        message.root = PCCL_RANK_ANY;
    }
    if (rank != 1) CHECK(pcclRunCollective(comm, &message, &outcome));

    pcclCollectiveArgs_t reduce = {.collective = PCCL_COLLECTIVE_ALL_REDUCE, .sendbuf = data, .recvbuf = data,
                                   .count = N, .datatype = pcclFloat, .op = pcclAvg, .weighted = true,
                                   .weight = rank};
    pcclRequest_t *request = NULL;
    CHECK(pcclBeginStep(comm, 0));
    CHECK(pcclStartCollective(comm, &reduce, &request));
    CHECK(pcclWaitRequest(request, UINT32_MAX, NULL));
    CHECK(pcclFreeRequest(request));
    CHECK(pcclEndStep(comm, 0, true));
    CHECK(pcclBeginStep(comm, 0));
    const pcclResult_t vote = pcclEndStep(comm, 0, rank != 0);
    const pcclCollectiveArgs_t barrier = {.collective = PCCL_COLLECTIVE_BARRIER, .tag = 7};
    CHECK(pcclRunCollective(comm, &barrier, NULL));
    printf("%g %g %g %g %g %s\n", (double) data[0], (double) data[N - 1], (double) blocks[0], (double) blocks[4],
           (double) blocks[6], pcclGetResultName(vote));
    const float grouped = exchange_in_group(comm, rank);
    if (rank == 0) printf("%u %g %g\n", (unsigned) outcome.source, (double) one, (double) grouped);
    CHECK(pcclDestroyCommunicator(comm));
    return 0;
}
"""

# Two peers and their master in one process, and batches of one element each: eight small ones, a large one, and one to
# which a peer comes late. Prints the seconds of CPU that the eight took, and the large one.
PROGRAM_BATCH = r"""
#include <pccl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != pcclSuccess) {                                                                                   \
            pcclErrorRecord_t record;                                                                                  \
            pcclGetLastError(&record);                                                                                 \
            fprintf(stderr, "%s: %s\n", #call, record.message);                                                        \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

struct batch {
    pcclComm_t *comm;
    int count, window, late_us;
};

static void *run(void *argument) {
    const struct batch *batch = argument;
    usleep((useconds_t) batch->late_us);
    pcclReduceOpDescriptor_t *ops = calloc((size_t) batch->count, sizeof *ops);
    int32_t *values = calloc((size_t) batch->count, sizeof *values);
    for (int k = 0; k < batch->count; k++) {
        values[k] = k;
        ops[k].sendbuf = ops[k].recvbuf = &values[k];
        ops[k].descriptor = (pcclReduceDescriptor_t){.count = 1, .op = pcclSum, .tag = (uint64_t) k,
                                                     .src_descriptor = {.datatype = pcclInt32}};
    }
    CHECK(pcclAllReduceMultipleWithRetry(ops, (size_t) batch->count, batch->comm, NULL, batch->window));
    for (int k = 0; k < batch->count; k++) {
        if (values[k] != 2 * k) exit(2);
    }
    ops[batch->count - 2].descriptor.tag = 7;
    if (pcclAllReduceMultipleWithRetry(ops, (size_t) batch->count, batch->comm, NULL, 1) == pcclSuccess) exit(3);
    free(ops);
    free(values);
    return NULL;
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double) usage.ru_utime.tv_sec + (double) usage.ru_utime.tv_usec * 1e-6;
}

static void run_both(pcclComm_t *comms[2], int count, int window, int late_us) {
    struct batch batches[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        batches[i] = (struct batch){comms[i], count, window, i * late_us};
        if (pthread_create(&threads[i], NULL, run, &batches[i]) != 0) exit(4);
    }
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}

int main(void) {
    const pcclMasterOptions_t options = {.listen = "127.0.0.1:0"};
    pcclMasterInstance_t *master = NULL;
    pcclComm_t *comms[2];
    pcclRequest_t *request;
    uint16_t port = 0;
    char address[64];
    CHECK(pcclInit());
    CHECK(pcclCreateMasterWithOptions(&options, &master));
    CHECK(pcclRunMaster(master));
    CHECK(pcclGetMasterPort(master, &port));
    snprintf(address, sizeof address, "127.0.0.1:%u", (unsigned) port);
    const pcclCommOptions_t peer = {.master = address};
    for (int i = 0; i < 2; i++) CHECK(pcclCreateCommunicatorWithOptions(&peer, &comms[i]));
    CHECK(pcclConnect(comms[0]));
    CHECK(pcclStartConnect(comms[1], &request));
    for (bool pending = false; !pending;) CHECK(pcclArePeersPending(comms[0], &pending));
    CHECK(pcclUpdateTopology(comms[0]));
    CHECK(pcclWaitRequest(request, 10000, NULL));
    CHECK(pcclFreeRequest(request));
    const double start = cpu_seconds();
    for (int round = 0; round < 8; round++) run_both(comms, 2000, 4, 0);
    const double small = cpu_seconds();
    run_both(comms, 16000, 4, 0);
    printf("%f %f\n", small - start, cpu_seconds() - small);
    run_both(comms, 16000, 16000, 500000);
    for (int i = 0; i < 2; i++) CHECK(pcclDestroyCommunicator(comms[i]));
    CHECK(pcclDestroyMaster(master));
    return 0;
}
"""

# For each pair of a variable and a value, in a child of its own: what making a peer and a master comes to.
PROGRAM_ENVIRONMENT = r"""
#include <pccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pcclResult_t make_both(void) {
    pcclCommOptions_t peer = {.master = "127.0.0.1:1"};
    pcclMasterOptions_t options = {.listen = "127.0.0.1:0"};
    pcclComm_t *comm = NULL;
    pcclMasterInstance_t *master = NULL;
    pcclResult_t status = pcclInit();
    if (status == pcclSuccess) status = pcclCreateCommunicatorWithOptions(&peer, &comm);
    if (status == pcclSuccess) status = pcclCreateMasterWithOptions(&options, &master);
    return status;
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        pcclErrorRecord_t record = {0};
        fflush(stdout);
        if (fork() != 0) {
            wait(NULL);
            continue;
        }
        setenv(argv[i], argv[i + 1], 1);
        if (make_both() != pcclSuccess) pcclGetLastError(&record);
        printf("%s %s%c", pcclGetResultName(record.code), record.message, 0);
        return 0;
    }
    return 0;
}
"""

PYTHON_ENVIRONMENT = """
import os, sys
import pccl
for name, value in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    if os.fork() != 0:
        os.wait()
        continue
    os.environ[name] = value
    try:
        pccl.Communicator("127.0.0.1:1").close()
        pccl.MasterNode("127.0.0.1:0").close()
        print("SUCCESS ", end="\\0", flush=True)
    except pccl.PCCLError as error:
        print(error.result.name, error.record.message, end="\\0", flush=True)
    os._exit(0)
"""

# A master whose creation makes the log warn of a misspelt variable; with an argument, that goes to a callback.
PROGRAM_LOG = r"""
#include <pccl.h>
#include <stdio.h>

static void on_line(void *user, pcclLogLevel_t level, const char *line) {
    (void) user;
    printf("%d %s\n", (int) level, line);
}

int main(int argc, char **argv) {
    (void) argv;
    if (argc > 1 && pcclSetLog(pcclLogWarn, on_line, NULL) != pcclSuccess) return 1;
    if (pcclInit() == pcclSuccess) return 0;
    pcclErrorRecord_t record;
    pcclGetLastError(&record);
    puts(record.message);
    return 2;
}
"""

CXX = shlex.split(os.environ.get("CXX") or "c++")


def build(tmp_path, compiler, source, name, *flags):
    path = tmp_path / name
    path.write_text(source)
    library = pccl.get_library_dir()
    target = tmp_path / "program"
    compile_flags = [*flags, "-Wall", "-Wextra", "-Werror", f"-I{pccl.get_include()}"]
    link_flags = [f"-L{library}", "-lpccl", f"-Wl,-rpath,{library}"]
    command = [*compiler, *compile_flags, str(path), *link_flags, "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def test_program_of_pccl_1_0(tmp_path):
    program = build(tmp_path, CC, PROGRAM, "program.c", "-std=c99", "-pedantic")
    with Cluster() as cluster:
        port = cluster.address.rpartition(":")[2]
        running = [
            subprocess.Popen([program, port, "3", str(own)], stdout=subprocess.PIPE, text=True) for own in (1, 2, 4)
        ]
        try:
            answers = [process.communicate(timeout=30)[0] for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        assert [process.returncode for process in running] == [0, 0, 0]
        assert answers == ["105 105\n"] * 3  # (1 + 2 + 4) * (1 + ... + 5)


def test_program_with_collectives_and_steps(tmp_path):
    program = build(tmp_path, CC, PROGRAM_COLLECTIVES, "program.c", "-std=c99", "-pedantic")
    with Cluster() as cluster:
        running = [subprocess.Popen([program, cluster.address], stdout=subprocess.PIPE, text=True) for _ in range(3)]
        try:
            answers = [process.communicate(timeout=30)[0] for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        assert [process.returncode for process in running] == [0, 0, 0]
        # The broadcast's 7 averages to itself; blocks of one, four and two elements; one voted against the last step.
        line = "7 7 0 1 2 STEP_ABORTED\n"
        assert sorted(answers) == sorted([line, line, line + "2 2 2.5\n"])


def listening_port(process):
    """Where its links are accepted; one where nobody listens when it is about to end."""
    connections = psutil.Process(process.pid).net_connections("tcp")
    return next((c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN), 1)


def test_retry_waits_for_the_link(tmp_path):
    """While a link is down, for a second and a half here, a retried operation waits for it: one retry for one loss."""
    program = build(tmp_path, CC, PROGRAM_RETRY, "program.c", "-std=c99", "-pedantic", "-O2")
    running = []
    behind = Proxy(lambda: listening_port(eventually(lambda: running)[0]))
    with Cluster() as cluster, contextlib.closing(behind) as proxy:
        try:
            for environment in ({"PCCL_ADVERTISE": proxy.address, "PCCL_PORT_RANGE": "10000-30000"}, {}):
                running.append(
                    subprocess.Popen(
                        [program, cluster.address],
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
                    )
                )  # fmt: skip
                assert running[-1].stdout.readline() == "connected\n"
            assert [process.stdout.readline() for process in running] == ["ready\n"] * 2
            (link,) = proxy.connections(running[1].pid)
            proxy.gates["up"].hold(1_000_000)
            for process in running:
                process.stdin.write("go\n")
                process.stdin.flush()
            assert proxy.gates["up"].reached.wait(10)
            proxy.gates["up"].hold()
            link.cut()
            eventually(lambda: proxy.connections(running[1].pid))
            time.sleep(1.5)
            proxy.gates["up"].open()
            answers = [process.stdout.readline() for process in running]
            for process in running:
                process.communicate(timeout=30)
        finally:
            for process in running:
                process.kill()
                process.wait()
    assert [process.returncode for process in running] == [0, 0]
    assert answers == ["8 1\n"] * 2


def test_a_batch_of_many(tmp_path):
    """It takes a time that grows with their number, not with its square; there may be more than can be in flight."""
    program = build(tmp_path, CC, PROGRAM_BATCH, "program.c", "-std=gnu11", "-pthread")
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    small, large = map(float, done.stdout.split())
    assert large < 2 * small, "as many operations; it was four times the time"


@pytest.mark.skipif(sys.platform != "linux", reason="reads glibc's counters")
def test_destroy_with_operations_in_flight(tmp_path):
    """Frees what nobody can reach any more, and leaves alone what the user still holds."""
    program = build(tmp_path, CC, PROGRAM_DESTROY, "program.c", "-std=gnu11")
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3000, "bytes a round; that leak is 8,000"


def test_program_in_cpp(tmp_path):
    program = build(tmp_path, CXX, PROGRAM_CPP, "program.cpp", "-std=c++17")
    done = subprocess.run([program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF symbols")
def test_the_library_exports_its_interface_only():
    library = os.path.join(pccl.get_library_dir(), "libpccl.so")
    listing = subprocess.run(["nm", "--dynamic", "--defined-only", library], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listing.stdout.splitlines()]
    assert [name for name in names if not name.startswith("pccl")] == []
    assert "pcclAllReduce" in names


SPELLINGS = (
    "", " ", "1", " 1", "1 ", "1\n", "+1", "01", "1.0", "1.", ".5", "1e3", "0x10", "1s", "1 s", "1_0", "\u0661", "1,5",
    "0", "-1", "true", "TRUE", "yes", "on", "nan", "inf", "9" * 30, "4-5", " 4-5", "4 - 5", "+4-5", "4-5-6",
    "0000000004-5",
    "ring", "Ring", "ring ", "info", "Info", "\u0130nfo", "system", "lo", "127.0.0.1", "127.0.0.1:1 ",
)  # fmt: skip


def test_python_reads_the_environment_as_c_programs_do(tmp_path):
    """Each spelling of each variable, and what is said of those that are refused."""
    program = build(tmp_path, CC, PROGRAM_ENVIRONMENT, "program.c", "-std=gnu11")
    pairs = [text for variable in VARIABLES for value in SPELLINGS for text in (variable.name, value)]
    answers = []
    for command in ([program], [sys.executable, "-c", PYTHON_ENVIRONMENT]):
        done = subprocess.run([*command, *pairs], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
        answers.append(done.stdout.removesuffix("\0").split("\0"))
    differing = [
        (name, value, *both)
        for name, value, *both in zip(pairs[::2], pairs[1::2], *answers, strict=True)
        if both[0] != both[1]
    ]
    assert differing == []


def test_debug_file(tmp_path):
    """Lines go there as they would to stderr, and are appended."""
    program = build(tmp_path, CC, PROGRAM_LOG, "program.c", "-std=c99", "-pedantic")
    (tmp_path / "logs").mkdir()

    def run(path, *arguments):
        settings = {"PCCL_DEBUG_FILE": str(path), "PCCL_LOGLEVEL": "1"}
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **settings}
        )

    line = r"\d\d:\d\d:\d\d\.\d{3} pccl WARN unknown environment variable PCCL_LOGLEVEL; did you mean .*\n"
    for times in (1, 2):
        done = run(tmp_path / "logs" / "log-%h")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert re.fullmatch(line * times, (tmp_path / "logs" / f"log-{socket.gethostname()}").read_text())
    run(tmp_path / "logs" / "%p%%p")
    assert [path.name for path in (tmp_path / "logs").iterdir() if re.fullmatch(r"(\d+)%\1", path.name)] != []

    said = f"PCCL_DEBUG_FILE='{tmp_path}/none/log': No such file or directory\n"
    assert run(tmp_path / "none" / "log").stdout == said
    assert run(tmp_path / "none" / "log", "callback").stdout.startswith("3 unknown environment variable PCCL_LOGLEVEL")
    assert re.fullmatch(line, run("").stderr)
