/*
 * Who runs a communicator's loop: callers that wait, one after the other and beside asynchronous ones, its own thread
 * between and after them, and nobody when it is destroyed under a caller. Callers whose calls end at once keep the peer
 * alive, and what is computed depends on no caller's rounding. A master and two peers in one process.
 */
#define _DEFAULT_SOURCE 1
#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { PEERS = 2, COUNT = 64, CALLS = 400, ASYNC_CALLS = 150, FORGETFUL_CALLS = 20, DEAD_MS = 2000, POISONED_S = 3 };

#include "in_process.h"

static atomic_uint wrong, ended;

static double seconds(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void fill(float *data, int peer, int call) {
    for (int i = 0; i < COUNT; i++) data[i] = (float)(call + i) * (peer == 0 ? 1.0f : 2.0f);
}

static void check(const float *data, int call) {
    for (int i = 0; i < COUNT; i++) {
        if (data[i] != 3.0f * (float)(call + i)) atomic_fetch_add(&wrong, 1);
    }
}

static pcclCollectiveArgs_t args_of(float *data, uint64_t tag) {
    return (pcclCollectiveArgs_t){.collective = PCCL_COLLECTIVE_ALL_REDUCE, .sendbuf = data, .recvbuf = data,
                                  .count = COUNT, .datatype = pcclFloat, .op = pcclSum, .tag = tag};
}

/* One call after another; now and then a pause longer than the loop's thread rests. */
static void *call(void *argument) {
    const int peer = *(const int *)argument;
    float data[COUNT];
    for (int i = 0; i < CALLS; i++) {
        const pcclCollectiveArgs_t args = args_of(data, 0);
        fill(data, peer, i);
        require(pcclRunCollective(comms[peer], &args, NULL) == pcclSuccess, "a call");
        check(data, i);
        if (i % 50 == 49) (void)usleep(3000);
    }
    return NULL;
}

/* Nobody waits while these begin, and then in short slices. */
static void *start_and_wait(void *argument) {
    const int peer = *(const int *)argument;
    float data[COUNT];
    for (int i = 0; i < ASYNC_CALLS; i++) {
        const pcclCollectiveArgs_t args = args_of(data, 1);
        pcclRequest_t *request = NULL;
        fill(data, peer, i);
        require(pcclStartCollective(comms[peer], &args, &request) == pcclSuccess, "an asynchronous call");
        if (i % 3 == 0) (void)usleep(500);
        pcclResult_t code;
        while ((code = pcclWaitRequest(request, 1, NULL)) == pcclInProgress) continue;
        require(code == pcclSuccess, "its end");
        (void)pcclFreeRequest(request);
        check(data, i);
    }
    return NULL;
}

/* Says that it waits next, and does not: the loop's own thread must see to it. */
static void *promise(void *argument) {
    const int peer = *(const int *)argument;
    float data[COUNT];
    for (int i = 0; i < FORGETFUL_CALLS; i++) {
        pcclCollectiveArgs_t args = args_of(data, 2);
        args.awaited = true;
        pcclRequest_t *request = NULL;
        fill(data, peer, i);
        require(pcclStartCollective(comms[peer], &args, &request) == pcclSuccess, "a promise");
        for (int k = 0; k < 5000 && pcclWaitRequest(request, 0, NULL) == pcclInProgress; k++) (void)usleep(1000);
        require(pcclWaitRequest(request, 0, NULL) == pcclSuccess, "a promise that was not kept");
        (void)pcclFreeRequest(request);
        check(data, i);
    }
    return NULL;
}

/* Adds what only the default rounding leaves as it is. */
static void *round_otherwise(void *argument) {
    const int peer = *(const int *)argument;
    const int direction = peer == 0 ? FE_UPWARD : FE_DOWNWARD;
    float data[COUNT];
    require(fesetround(direction) == 0, "a rounding mode");
    for (int i = 0; i < CALLS; i++) {
        const pcclCollectiveArgs_t args = args_of(data, 4);
        for (int k = 0; k < COUNT; k++) data[k] = peer == 0 ? 1.0f : (k % 2 == 0 ? 1e-9f : -1e-9f);
        require(pcclRunCollective(comms[peer], &args, NULL) == pcclSuccess, "a call with another rounding");
        for (int k = 0; k < COUNT; k++) {
            if (data[k] != 1.0f) atomic_fetch_add(&wrong, 1);
        }
        if (fegetround() != direction) atomic_fetch_add(&wrong, 1);
    }
    return NULL;
}

/* In a step that has failed every call ends at once. One peer makes such calls for longer than the dead timeout. */
static void *call_in_vain(void *argument) {
    const int peer = *(const int *)argument;
    float data[COUNT] = {0};
    const pcclCollectiveArgs_t args = args_of(data, 5);
    const double end_s = seconds() + POISONED_S;
    pcclRequest_t *request = NULL;
    require(pcclBeginStep(comms[peer], 0) == pcclSuccess, "a step");
    if (peer == 0) {
        require(pcclStartCollective(comms[peer], &args, &request) == pcclSuccess, "a call that is given up");
        (void)pcclFreeRequest(request);
        while (seconds() < end_s) {
            require(pcclRunCollective(comms[peer], &args, NULL) == pcclCancelled, "a call of a step that has failed");
        }
    }
    require(pcclEndStep(comms[peer], 0, true) == pcclStepAborted, "the end of the step");
    return NULL;
}

static uint64_t started(void) {
    pcclStats_t stats = {0};
    require(pcclGetStats(comms[0], &stats) == pcclSuccess, "statistics");
    return stats.ops_started;
}

/* The other peer never makes this call. */
static void *wait_for_nothing(void *argument) {
    const int peer = *(const int *)argument;
    float data[COUNT] = {0};
    const pcclCollectiveArgs_t args = args_of(data, 3);
    require(pcclRunCollective(comms[peer], &args, NULL) == pcclCancelled, "a call that was cut off");
    atomic_fetch_add(&ended, 1);
    return NULL;
}

int main(void) {
    start_all(DEAD_MS);
    run_all((void *(*const[])(void *)){call}, 1);
    run_all((void *(*const[])(void *)){call, start_and_wait, promise}, 3);
    run_all((void *(*const[])(void *)){round_otherwise}, 1);
    run_all((void *(*const[])(void *)){call_in_vain}, 1);

    int first = 0;
    pthread_t thread;
    const uint64_t before = started();
    if (pthread_create(&thread, NULL, wait_for_nothing, &first) != 0) return 2;
    while (started() == before) (void)usleep(1000); /* destroying must be the last to begin */
    require(pcclDestroyCommunicator(comms[0]) == pcclSuccess, "destroy under a caller");
    (void)pthread_join(thread, NULL);
    require(pcclDestroyCommunicator(comms[1]) == pcclSuccess, "destroy");
    end_master();
    (void)printf("%u wrong, %u cut off\n", atomic_load(&wrong), atomic_load(&ended));
    return 0;
}
