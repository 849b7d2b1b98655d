/* A master and PEERS peers in one process, for programs that define PEERS. */
#ifndef IN_PROCESS_H
#define IN_PROCESS_H

#include "pccl.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static pcclComm_t *comms[PEERS];
static pcclMasterInstance_t *master;

static void require(bool condition, const char *what) {
    if (condition) return;
    pcclErrorRecord_t record = {0};
    (void)pcclGetLastError(&record);
    (void)fprintf(stderr, "%s: %s\n", what, record.message);
    _Exit(1);
}

/* Each of the functions at each of the peers at once; the argument points to the peer's index. */
static void run_all(void *(*const *functions)(void *), int count) {
    static int peers[PEERS];
    pthread_t threads[PEERS * 4];
    for (int i = 0; i < PEERS; i++) peers[i] = i;
    for (int i = 0; i < PEERS * count; i++) {
        if (pthread_create(&threads[i], NULL, functions[i / PEERS], &peers[i % PEERS]) != 0) _Exit(2);
    }
    for (int i = 0; i < PEERS * count; i++) (void)pthread_join(threads[i], NULL);
}

static void *join(void *argument) {
    const int peer = *(const int *)argument;
    int size = 0;
    require(pcclConnect(comms[peer]) == pcclSuccess, "connect");
    while (pcclGetAttribute(comms[peer], PCCL_ATTRIBUTE_GLOBAL_WORLD_SIZE, &size) == pcclSuccess && size < PEERS) {
        bool pending = false;
        require(pcclArePeersPending(comms[peer], &pending) == pcclSuccess, "are peers pending");
        if (pending) require(pcclUpdateTopology(comms[peer]) == pcclSuccess, "update topology");
    }
    return NULL;
}

/* All are members of one run afterwards. */
static void start_all(uint32_t dead_timeout_ms) {
    uint16_t port = 0;
    char address[32];
    require(pcclInit() == pcclSuccess, "init");
    const pcclMasterOptions_t master_options = {.listen = "127.0.0.1:0", .dead_timeout_ms = dead_timeout_ms};
    require(pcclCreateMasterWithOptions(&master_options, &master) == pcclSuccess, "master");
    require(pcclRunMaster(master) == pcclSuccess && pcclGetMasterPort(master, &port) == pcclSuccess, "master");
    (void)snprintf(address, sizeof address, "127.0.0.1:%u", (unsigned)port);
    const pcclCommOptions_t options = {.master = address, .dead_timeout_ms = dead_timeout_ms};
    for (int i = 0; i < PEERS; i++) {
        require(pcclCreateCommunicatorWithOptions(&options, &comms[i]) == pcclSuccess, "communicator");
    }
    run_all((void *(*const[])(void *)){join}, 1);
}

static void end_master(void) {
    require(pcclInterruptMaster(master) == pcclSuccess && pcclMasterAwaitTermination(master) == pcclSuccess, "interrupt");
    require(pcclDestroyMaster(master) == pcclSuccess, "destroy the master");
}

#endif
