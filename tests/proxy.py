"""A TCP proxy of our own for faults on the way: bytes held back at an exact place, one changed, connections cut.

A peer that runs with PCCL_ADVERTISE=proxy.address is reached through the proxy by all who dial it. Directions are seen
from the dialling end: "up" goes to the peer behind the proxy, "down" comes from it.
"""

import contextlib
import socket
import struct
import threading
import time

import psutil

_CHUNK_BYTES = 1 << 16
_NARROW_BUFFER_BYTES = 1 << 15
_LATE_S = 0.01  # a pump that wakes up late makes good for at most so long


class Gate:
    """Lets bytes of one direction pass, of all connections that share it. Closed, it holds back what is left."""

    def __init__(self, allow=None):
        self._condition = threading.Condition()
        self._allow = allow
        self.passed_bytes = 0
        self.reached = threading.Event()  # all that was allowed has passed, and more waits
        self._flip_at = None
        self._bytes_per_s = None
        self._due_s = 0.0

    def open(self):
        with self._condition:
            self._allow = None
            self._condition.notify_all()

    def hold(self, after_bytes=0):
        """Let so many more bytes pass, then none."""
        with self._condition:
            self._allow = after_bytes
            self.reached.clear()

    def flip_bit(self, after_bytes):
        """Change one bit of the byte that comes after so many more."""
        with self._condition:
            self._flip_at = self.passed_bytes + after_bytes

    def pace(self, bytes_per_s):
        """Let no more than so many bytes pass in a second."""
        self._bytes_per_s = bytes_per_s

    def rest(self, passed_bytes):
        """Wait for as long as the pace wants between these bytes and the next."""
        if self._bytes_per_s is None:
            return
        now = time.monotonic()
        self._due_s = max(self._due_s, now - _LATE_S) + passed_bytes / self._bytes_per_s
        if self._due_s > now:
            time.sleep(self._due_s - now)

    def take(self, data, is_gone):
        """The part of ``data`` that may pass now; waits for at least a byte, unless ``is_gone`` meanwhile."""
        with self._condition:
            while self._allow == 0:
                self.reached.set()
                self._condition.wait(0.05)
                if is_gone():
                    return b""
            part = data if self._allow is None else data[: self._allow]
            if self._allow is not None:
                self._allow -= len(part)
            at = -1 if self._flip_at is None else self._flip_at - self.passed_bytes
            if 0 <= at < len(part):
                part = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
                self._flip_at = None
            self.passed_bytes += len(part)
            return part


class Connection:
    """One accepted connection and the one made for it."""

    def __init__(self, dialler, target, up, down):
        self.dialler_port = dialler.getpeername()[1]
        self._sockets = (dialler, target)
        self._gone = False
        self.gates = {"up": up, "down": down}
        self._threads = [
            threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True)
            for source, sink, direction in ((dialler, target, "up"), (target, dialler, "down"))
        ]

    def start(self):
        for thread in self._threads:
            thread.start()

    @property
    def alive(self):
        return not self._gone

    def _pump(self, source, sink, direction):
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                while data and not self._gone:
                    part = self.gates[direction].take(data, lambda: self._gone)
                    sink.sendall(part)
                    self.gates[direction].rest(len(part))
                    data = data[len(part) :]
        self.cut()

    def narrow(self, bytes_per_s):
        """A slow path, with gates of its own: so many bytes a second each way, and few on the way."""
        for end in self._sockets:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                end.setsockopt(socket.SOL_SOCKET, option, _NARROW_BUFFER_BYTES)
        self.gates = {direction: Gate() for direction in self.gates}
        for gate in self.gates.values():
            gate.pace(bytes_per_s)

    def cut(self, reset=False):
        """End it at both ends; with a reset, as a router does."""
        if self._gone:
            return
        self._gone = True
        for end in self._sockets:
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)  # wakes the pump without a word to the other end
                    end.close()
                else:
                    end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for end in self._sockets:
            end.close()


class Proxy:
    """Listens on a port of its own; ``target`` gives the port behind it, asked at each connection."""

    def __init__(self, target):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.gates = {"up": Gate(), "down": Gate()}
        self._connections = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                dialler, _ = self._listener.accept()
            except OSError:
                return
            try:
                target = socket.create_connection(("127.0.0.1", self._target()), timeout=5)
            except (OSError, psutil.Error):  # the peer behind is no more
                dialler.close()
                continue
            target.settimeout(None)
            for end in (dialler, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(dialler, target, self.gates["up"], self.gates["down"])
            self._connections.append(connection)
            connection.start()

    def connections(self, pid=None):
        """Those that are alive; with ``pid``, those that this process dialled."""
        alive = [connection for connection in self._connections if connection.alive]
        if pid is None:
            return alive
        ports = {c.laddr.port for c in psutil.Process(pid).net_connections("tcp")}
        return [connection for connection in alive if connection.dialler_port in ports]

    def gate(self, direction, connections):
        """A gate of their own for these connections."""
        made = Gate()
        for connection in connections:
            connection.gates[direction] = made
        return made

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._connections:
            connection.close()
