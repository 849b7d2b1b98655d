/*
 * Several I/O threads at each of three peers of one process, over TCP: large and small operations at once, strict ones, a step,
 * asynchronous ones that are cancelled while their bytes move and whose buffers are the caller's at once, and a peer that
 * goes in the middle of one. Every result is checked, and so is every buffer after a failure.
 *
 * In place, a final value can arrive while the system has not yet said that the contribution before it has left: in order, but
 * only the system knows. ThreadSanitizer does not, so under it results have a place of their own.
 */
#define _DEFAULT_SOURCE 1
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PEERS = 3, COUNT = 400000, SMALL = 64, CALLS = 12, CANCELS = 10 };

#include "in_process.h"

#if defined(__SANITIZE_THREAD__)
enum { APART = COUNT };
#else
enum { APART = 0 };
#endif

static atomic_uint wrong, cancelled, lost;

static float *result_of(float *data, size_t count) {
    return count == COUNT ? data + APART : data;
}

static pcclCollectiveArgs_t args_of(float *data, size_t count, uint64_t tag) {
    return (pcclCollectiveArgs_t){.collective = PCCL_COLLECTIVE_ALL_REDUCE, .sendbuf = data,
                                  .recvbuf = result_of(data, count), .count = count, .datatype = pcclFloat, .op = pcclSum,
                                  .tag = tag};
}

static void fill(float *data, size_t count, float value) {
    for (size_t i = 0; i < count; i++) data[i] = value + (float)(i % 7);
}

static void check(const float *data, size_t count, float value, float times) {
    for (size_t i = 0; i < count; i++) {
        if (data[i] == value + times * (float)(i % 7)) continue;
        atomic_fetch_add(&wrong, 1);
        return;
    }
}

static void reduce(int peer, float *data, size_t count, uint64_t tag) {
    const pcclCollectiveArgs_t args = args_of(data, count, tag);
    fill(data, count, (float)(peer + 1));
    require(pcclRunCollective(comms[peer], &args, NULL) == pcclSuccess, "a call");
    check(result_of(data, count), count, 6.0f, (float)PEERS);
}

static float *buffer(void) {
    float *data = malloc((COUNT + APART) * sizeof *data);
    require(data != NULL, "memory");
    return data;
}

static void *large(void *argument) {
    const int peer = *(const int *)argument;
    float *data = buffer();
    for (int i = 0; i < CALLS; i++) reduce(peer, data, COUNT, 0);
    free(data);
    return NULL;
}

static void *small(void *argument) {
    float data[SMALL];
    for (int i = 0; i < 10 * CALLS; i++) reduce(*(const int *)argument, data, SMALL, 1);
    return NULL;
}

static void *step(void *argument) {
    const int peer = *(const int *)argument;
    float *data = buffer();
    for (int i = 0; i < CALLS / 3; i++) {
        require(pcclBeginStep(comms[peer], 0) == pcclSuccess, "a step");
        for (int k = 0; k < 3; k++) reduce(peer, data, COUNT, 2);
        require(pcclEndStep(comms[peer], 0, true) == pcclSuccess, "its end");
    }
    free(data);
    return NULL;
}

/*
 * One peer cancels, the others learn of it. What fails leaves the buffer as it was; then it is the caller's, and whatever is
 * still on its way must not reach it.
 */
static void *cancel(void *argument) {
    const int peer = *(const int *)argument;
    float *data = buffer();
    for (int i = 0; i < CANCELS; i++) {
        const pcclCollectiveArgs_t args = args_of(data, COUNT, 3);
        pcclRequest_t *request = NULL;
        fill(data, COUNT, (float)(peer + 1));
        require(pcclStartCollective(comms[peer], &args, &request) == pcclSuccess, "a call to be cancelled");
        (void)usleep((useconds_t)(200 * (i % 5)));
        if (peer == i % PEERS) require(pcclCancelRequest(request) == pcclSuccess, "cancel");
        const pcclResult_t code = pcclWaitRequest(request, UINT32_MAX, NULL);
        require(code == pcclSuccess || code == pcclCancelled, "a call that is cancelled");
        (void)pcclFreeRequest(request);
        if (code == pcclSuccess) check(result_of(data, COUNT), COUNT, 6.0f, (float)PEERS);
        else check(data, COUNT, (float)(peer + 1), 1.0f);
        atomic_fetch_add(&cancelled, code == pcclCancelled);
        fill(result_of(data, COUNT), COUNT, 100.0f);
        reduce(peer, (float[SMALL]){0}, SMALL, 4);
        check(result_of(data, COUNT), COUNT, 100.0f, 1.0f);
    }
    free(data);
    return NULL;
}

/* The last peer goes in the middle of a call that cannot end: the first one never makes it. */
static void *lose_one(void *argument) {
    const int peer = *(const int *)argument;
    if (peer == 0) return NULL;
    float *data = buffer();
    const pcclCollectiveArgs_t args = args_of(data, COUNT, 5);
    pcclRequest_t *request = NULL;
    fill(data, COUNT, (float)(peer + 1));
    require(pcclStartCollective(comms[peer], &args, &request) == pcclSuccess, "a call to be cut off");
    if (peer == PEERS - 1) {
        (void)usleep(2000);
        require(pcclDestroyCommunicator(comms[peer]) == pcclSuccess, "destroy in the middle of a call");
    }
    atomic_fetch_add(&lost, pcclWaitRequest(request, UINT32_MAX, NULL) != pcclSuccess);
    check(data, COUNT, (float)(peer + 1), 1.0f);
    (void)pcclFreeRequest(request);
    free(data);
    return NULL;
}

int main(void) {
    (void)setenv("PCCL_NTHREADS", "3", 1);
    (void)setenv("PCCL_SHM", "0", 1);
    start_all(0);
    run_all((void *(*const[])(void *)){large, small}, 2);
    run_all((void *(*const[])(void *)){step}, 1);
    run_all((void *(*const[])(void *)){cancel}, 1);
    run_all((void *(*const[])(void *)){lose_one}, 1);
    for (int i = 0; i < PEERS - 1; i++) require(pcclDestroyCommunicator(comms[i]) == pcclSuccess, "destroy");
    end_master();
    (void)printf("%u wrong, %s cancelled, %u cut off\n", atomic_load(&wrong), atomic_load(&cancelled) > 0 ? "some" : "none",
                 atomic_load(&lost));
    return 0;
}
