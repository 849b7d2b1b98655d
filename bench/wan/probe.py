"""What a network does, seen from inside: run in its namespaces as ``python probe.py VERB ...``.

    echo PORT                                   answers every UDP datagram; until killed
    ping HOST PORT COUNT INTERVAL_S             JSON: round trips in ms of those that came back
    count PORT SECONDS                          JSON: how many UDP datagrams came, until so long nothing does
    flood HOST PORT COUNT INTERVAL_S            sends UDP datagrams
    sink PORT CONNECTIONS                       reads TCP connections to their ends; JSON: bytes, seconds
    bulk HOST PORT CONNECTIONS BYTES [CONGESTION]   sends so many bytes over so many TCP connections in all

The servers print "ready" when they listen. Nothing but the standard library, so that it starts fast.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import sys
import threading
import time

_LAST_S = 1.0
_BLOCK = bytes(1 << 18)


def bound_udp(port: int) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    end.bind(("0.0.0.0", port))
    return end


def echo(port: int) -> None:
    end = bound_udp(port)
    print("ready", flush=True)
    while True:
        data, sender = end.recvfrom(2048)
        end.sendto(data, sender)


def ping(host: str, port: int, count: int, interval_s: float) -> None:
    """Sends at fixed times without waiting for answers, so that a hundred take a second."""
    end = bound_udp(0)
    end.connect((host, port))
    end.settimeout(_LAST_S)

    def send() -> None:
        for _ in range(count):
            end.send(struct.pack("d", time.monotonic()))
            time.sleep(interval_s)

    sender = threading.Thread(target=send)
    sender.start()
    round_trips_ms = []
    try:
        while len(round_trips_ms) < count:
            data = end.recv(64)
            round_trips_ms.append((time.monotonic() - struct.unpack("d", data)[0]) * 1000)
    except TimeoutError:
        pass
    sender.join()
    print(json.dumps({"sent": count, "round_trips_ms": round_trips_ms}))


def count_datagrams(port: int, quiet_s: float) -> None:
    end = bound_udp(port)
    print("ready", flush=True)
    came = 0
    try:
        while True:
            end.recv(2048)
            came += 1
            end.settimeout(quiet_s)
    except TimeoutError:
        print(json.dumps({"came": came}))


def flood(host: str, port: int, count: int, interval_s: float) -> None:
    end = bound_udp(0)
    end.connect((host, port))
    start = time.monotonic()
    for i in range(count):
        end.send(bytes(100))
        ahead_s = start + (i + 1) * interval_s - time.monotonic()
        if ahead_s > 0.001:
            time.sleep(ahead_s)


def sink(port: int, connections: int) -> None:
    """The time is counted from the first byte to the last."""
    server = socket.create_server(("0.0.0.0", port), backlog=connections)
    print("ready", flush=True)
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        selector.register(server.accept()[0], selectors.EVENT_READ)
    buffer = bytearray(1 << 18)
    total, first_s, last_s = 0, 0.0, 0.0
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            count = key.fileobj.recv_into(buffer)
            last_s = time.monotonic()
            first_s = first_s or last_s
            total += count
            if count == 0:
                selector.unregister(key.fileobj)
                key.fileobj.close()
    print(json.dumps({"bytes": total, "seconds": last_s - first_s}))


def bulk(host: str, port: int, connections: int, total: int, congestion: str = "") -> None:
    """The connections take blocks of one quantity, so that a fast one does more of it."""
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        end = socket.socket()
        if congestion:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        end.connect((host, port))
        end.setblocking(False)
        selector.register(end, selectors.EVENT_WRITE)
    left = total
    while left > 0:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            left -= key.fileobj.send(memoryview(_BLOCK)[: min(left, len(_BLOCK))])
            if left == 0:
                break
    for key in list(selector.get_map().values()):
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()


def main(verb: str, *arguments: str) -> None:
    if verb == "echo":
        echo(int(arguments[0]))
    elif verb == "ping":
        ping(arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3]))
    elif verb == "count":
        count_datagrams(int(arguments[0]), float(arguments[1]))
    elif verb == "flood":
        flood(arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3]))
    elif verb == "sink":
        sink(int(arguments[0]), int(arguments[1]))
    elif verb == "bulk":
        bulk(arguments[0], int(arguments[1]), int(arguments[2]), int(arguments[3]), *arguments[4:])
    else:
        raise SystemExit(f"no such verb: {verb}")


if __name__ == "__main__":
    main(*sys.argv[1:])
