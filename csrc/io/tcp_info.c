/*
 * TCP counts what its other end acknowledges; the figures cost nothing but to read them. Linux keeps the rate of a time
 * when there was enough to send until a later one is higher or was measured so too, but the first bytes of a connection
 * leave it a low one: who asks has to know whether much was ever sent. The kernel's own header, unlike the C library's,
 * knows all fields, and the two exclude each other: hence this file.
 */
#include "io/tcp_info.h"

#if defined(__linux__)
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

struct pc_tcp_info pc_tcp_info(int fd) {
    struct tcp_info info = {0};
    socklen_t len_bytes = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len_bytes) != 0) return (struct pc_tcp_info){0};
    const bool rated = len_bytes >= offsetof(struct tcp_info, tcpi_delivery_rate) + sizeof info.tcpi_delivery_rate;
    const uint64_t bytes_per_ms = rated ? info.tcpi_delivery_rate / 1000 : 0;
    struct pc_tcp_info found = {info.tcpi_rtt, bytes_per_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)bytes_per_ms, {0}};
    if (len_bytes < offsetof(struct tcp_info, tcpi_bytes_retrans) + sizeof info.tcpi_bytes_retrans) return found;
    found.pace = (struct pc_pace_counters){.sent_bytes = info.tcpi_bytes_sent,
                                           .again_bytes = info.tcpi_bytes_retrans,
                                           .acked_bytes = info.tcpi_bytes_acked,
                                           .busy_us = info.tcpi_busy_time};
    return found;
}
#else
struct pc_tcp_info pc_tcp_info(int fd) {
    (void)fd;
    return (struct pc_tcp_info){0};
}
#endif
