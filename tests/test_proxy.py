"""The fault proxy and the process helper themselves: what the other tests stand on."""

import contextlib
import socket
import threading
import time

import pytest
from proxy import Proxy


@pytest.fixture
def echo():
    """A proxy before a server that sends everything back."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                threading.Thread(target=answer, args=(client,), daemon=True).start()

    def answer(client):
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    proxy = Proxy(lambda: server.getsockname()[1])
    yield proxy
    proxy.close()
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def dial(proxy):
    host, port = proxy.address.split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def receive(end, count):
    got = b""
    while len(got) < count:
        data = end.recv(count - len(got))
        if not data:
            break
        got += data
    return got


def test_bytes_pass(echo):
    with dial(echo) as end:
        end.sendall(b"hello")
        assert receive(end, 5) == b"hello"


def test_hold_lets_exactly_so_many_pass(echo):
    with dial(echo) as end:
        echo.gates["up"].hold(after_bytes=3)
        end.sendall(b"abcdef")
        assert echo.gates["up"].reached.wait(5)
        assert receive(end, 3) == b"abc"
        end.settimeout(0.1)
        with pytest.raises(TimeoutError):
            end.recv(1)
        end.settimeout(5)
        echo.gates["up"].open()
        assert receive(end, 3) == b"def"


def test_flip_changes_one_bit(echo):
    with dial(echo) as end:
        echo.gates["down"].flip_bit(after_bytes=2)
        end.sendall(b"aaaa")
        assert receive(end, 4) == b"aa`a"


@pytest.mark.parametrize("reset", [False, True])
def test_cut_ends_both_ends(echo, reset):
    with dial(echo) as end:
        end.sendall(b"x")
        assert receive(end, 1) == b"x"
        (connection,) = echo.connections()
        connection.cut(reset)
        try:
            assert end.recv(1) == b""
        except ConnectionResetError:
            assert reset
        assert echo.connections() == []


def test_a_gate_of_its_own_holds_only_its_connections(echo):
    with dial(echo) as first, dial(echo) as second:
        for end in (first, second):
            end.sendall(b"1")
            assert receive(end, 1) == b"1"
        (held,) = [c for c in echo.connections() if c.dialler_port == first.getsockname()[1]]
        gate = echo.gate("up", [held])
        gate.hold()
        first.sendall(b"2")
        second.sendall(b"3")
        assert receive(second, 1) == b"3"
        assert gate.reached.wait(5)
        held.cut()


def test_a_narrow_connection_keeps_its_pace(echo):
    with dial(echo) as end:
        end.sendall(b"1")
        assert receive(end, 1) == b"1"
        (connection,) = echo.connections()
        connection.narrow(200_000)
        start = time.monotonic()
        end.sendall(bytes(40_000))
        assert receive(end, 40_000) == bytes(40_000)
        end.sendall(b"2")
        assert receive(end, 1) == b"2"
        assert time.monotonic() - start > 0.15  # 0.2 s, less what may be made good
        assert [connection.gates[direction].passed_bytes for direction in ("up", "down")] == [40_001, 40_001]
