/* K4: what TCP has measured of a connection by itself. */
#ifndef PC_TCP_INFO_H
#define PC_TCP_INFO_H

#include "io/pace.h"

#include <stdint.h>

struct pc_tcp_info {
    uint32_t rtt_us; /* round trip; 0: unknown */
    uint32_t bytes_per_ms; /* lately delivered, no more than there was to send; 0: unknown */
    struct pc_pace_counters pace; /* zeros: unknown */
};

struct pc_tcp_info pc_tcp_info(int fd);

#endif
