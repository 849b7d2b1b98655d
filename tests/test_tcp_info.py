"""What TCP tells of a connection over loopback."""

from __future__ import annotations

import socket
import sys
import threading

import c_level
import pytest

lib = c_level.load(
    """
    struct pc_pace_counters { uint64_t sent_bytes, again_bytes, acked_bytes, busy_us; };
    struct pc_tcp_info { uint32_t rtt_us, bytes_per_ms; struct pc_pace_counters pace; };
    struct pc_tcp_info pc_tcp_info(int fd);
    """,
    only=("base",),
    extra='#include "io/tcp_info.c"',
)


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_traffic_shows_round_trip_and_rate():
    one, two = connected()
    with one, two:
        sender = threading.Thread(target=one.sendall, args=(bytes(16 << 20),))
        sender.start()
        left = 16 << 20
        while left > 0:
            left -= len(two.recv(1 << 20))
        sender.join()
        info = lib.pc_tcp_info(one.fileno())
        assert 0 < info.rtt_us < 10**6
        assert 1000 < info.bytes_per_ms < 10**9
        assert 16 << 20 <= info.pace.sent_bytes - info.pace.again_bytes <= (16 << 20) + 1
        assert (16 << 20) - (1 << 16) <= info.pace.acked_bytes <= (16 << 20) + 1
        assert 0 < info.pace.busy_us < 10**7


def test_no_connection_tells_nothing():
    with socket.socket() as unconnected:
        assert lib.pc_tcp_info(unconnected.fileno()).bytes_per_ms == 0
    assert lib.pc_tcp_info(-1).rtt_us == 0
