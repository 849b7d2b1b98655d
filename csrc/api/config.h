/*
 * K5: what a communicator or a master is told: explicit options first, then the environment, then defaults. Everything
 * is checked and copied when the handle is made.
 */
#ifndef PC_CONFIG_H
#define PC_CONFIG_H

#include "io/resolve.h"

enum {
    PC_DEFAULT_DEAD_MS = 5000,
    PC_DEFAULT_OP_MS = 1800000,
    PC_DEFAULT_JOIN_MS = 1800000,
    PC_DEFAULT_CONNECT_MS = 5000,
    PC_DEFAULT_CONNECTIONS = 1,
    PC_RUN_KEY_MAX = 4096
};

struct pc_settings {
    struct pc_endpoint master;
    struct pc_endpoint advertise; /* host empty: found out */
    char ifname[256];
    pcclAlgorithm_t algorithm; /* of collectives that do not ask for one */
    char congestion[16];
    uint32_t group, connections, threads;
    uint16_t port_min, port_max;
    uint8_t *run_key; /* owned */
    size_t run_key_len;
    uint32_t dead_timeout_ms, op_timeout_ms, connect_timeout_ms, join_timeout_ms;
    bool observer;
    bool shared_memory;
};

/* fini accepts zeroed memory. After a failure nothing is held. */
pc_status pc_settings_of_peer(const pcclCommOptions_t *options, struct pc_settings *settings, pc_error *error);
pc_status pc_settings_of_master(const pcclMasterOptions_t *options, struct pc_settings *settings, pc_error *error);
void pc_settings_fini(struct pc_settings *settings);

/* The process's part, once: log level and file, and a warning for each unknown PCCL_* variable. */
pc_status pc_config_process(pc_error *error);
/* Every variable's value, as whoever uses it would read it; nothing is opened or set. */
pc_status pc_config_check(pc_error *error);
/* Wins over the environment; callback NULL: stderr. */
void pc_config_set_log(pcclLogLevel_t level, pcclLogCallback_t callback, void *user);

#endif
