"""Real processes on loopback: a master and peers, each a child of the test that never outlives it.

    with Cluster() as cluster:
        peers = cluster.join(3)
        assert [p.wait() for p in cluster.start(peers, reduce_once, value=2)] == [6, 6, 6]

A function that a peer runs is sent to it as source text: it uses nothing but its arguments and the names of worker.py.
"""

import contextlib
import inspect
import json
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
from proxy import Proxy

import pccl

TESTS = Path(__file__).resolve().parent
PATIENCE_S = 30.0


class RemoteError(Exception):
    """A peer's function raised. ``type`` is the exception's name, ``record`` its error record as a dict."""

    def __init__(self, peer, error):
        super().__init__(f"{peer}: {error['type']}: {error['text']}")
        self.type = error["type"]
        self.text = error["text"]
        self.code = error["code"]
        self.record = error["record"]


class Process:
    """A child whose output lines are read by a thread."""

    def __init__(self, command, environment, name):
        self.name = name
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment},
        )
        self.pid = self.popen.pid
        self.lines = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.popen.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def line(self, timeout=PATIENCE_S):
        """The next line; None when the process has closed its output."""
        try:
            return self.lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"{self.name}: no answer within {timeout} s") from None

    def send_signal(self, number):
        self.popen.send_signal(number)

    def kill(self):
        self.popen.kill()

    def close(self):
        with contextlib.suppress(OSError):
            self.popen.stdin.close()
        self.popen.send_signal(signal.SIGCONT)
        self.popen.kill()
        self.popen.wait()
        self._reader.join(5)
        self.popen.stdout.close()

    def __repr__(self):
        return self.name


class Peer(Process):
    """A worker process. ``start`` sends it a function, ``wait`` gets what that returned or raised."""

    def __init__(self, name, environment, prefix=()):
        super().__init__([*prefix, sys.executable, str(TESTS / "worker.py")], environment, name)
        self._events = []

    def start(self, function, **arguments):
        request = {
            "source": textwrap.dedent(inspect.getsource(function)),
            "name": function.__name__,
            "arguments": arguments,
        }
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()
        return self

    def _answer(self, timeout):
        line = self.line(timeout)
        if line is None:
            raise EOFError(f"{self.name} has ended with status {self.popen.wait()}")
        return json.loads(line)

    def wait(self, timeout=PATIENCE_S):
        deadline = time.monotonic() + timeout
        while True:
            answer = self._answer(max(0.0, deadline - time.monotonic()))
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise RemoteError(self.name, answer["error"])
            else:
                return answer["result"]

    def outcome(self, timeout=PATIENCE_S):
        """Like ``wait``, but an error is returned."""
        try:
            return self.wait(timeout)
        except RemoteError as error:
            return error

    def call(self, function, timeout=PATIENCE_S, **arguments):
        return self.start(function, **arguments).wait(timeout)

    def event(self, name, timeout=PATIENCE_S):
        """The next event of that name, of those that ``emit`` sends while a function runs."""
        deadline = time.monotonic() + timeout
        for event in self._events:
            if event["event"] == name:
                self._events.remove(event)
                return event
        while True:
            answer = self._answer(max(0.0, deadline - time.monotonic()))
            if "event" not in answer:
                raise AssertionError(f"{self.name} ended before {name!r}: {answer}")
            if answer["event"] == name:
                return answer
            self._events.append(answer)

    def listening_port(self):
        """Where its links are accepted."""

        def ports():
            return [c.laddr.port for c in psutil.Process(self.pid).net_connections("tcp") if c.status == "LISTEN"]

        return eventually(ports)[0]


def connect(peer, master, n_attempts=5, **options):
    peer.connect(master, n_attempts, **options)
    return peer.comm.stats()["peer_id"]


def gather(peer, world):
    peer.gather(world)


def world_sizes(peer):
    return peer.comm.get_attribute(pccl.Attribute.GLOBAL_WORLD_SIZE), peer.comm.world_size


class Cluster:
    """A master and its peers. Settings are environment variables of all of them, such as PCCL_DEAD_TIMEOUT="1"."""

    def __init__(self, master_prefix=(), listen="127.0.0.1:0", **settings):
        self.settings = settings
        self._stack = contextlib.ExitStack()
        self._count = 0
        self.master = self._stack.enter_context(
            contextlib.closing(
                Process(
                    [*master_prefix, sys.executable, "-m", "pccl.master", "--listen-address", listen],
                    settings,
                    "master",
                )
            )
        )
        line = self.master.line()
        if line is None:
            self._stack.close()
            raise AssertionError("the master did not start")
        self.address = line.split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def spawn(self, prefix=(), **environment):
        """A peer process that has not connected yet."""
        peer = Peer(f"peer {self._count}", {**self.settings, **environment}, prefix)
        self._count += 1
        self._stack.enter_context(contextlib.closing(peer))
        return peer

    def connect(self, peers, members=(), world=None, **options):
        """Connect ``peers`` while ``members`` admit them; returns when all see ``world`` members."""
        world = len(peers) + len(members) if world is None else world
        for peer in members:
            peer.start(gather, world=world)
        for peer in peers:
            peer.start(connect, master=self.address, **options)
            # Whoever is in polls too: those admitted first are members for those after them.
            peer.start(gather, world=world)
        for peer in peers:
            peer.id = peer.wait()
        for peer in [*members, *peers]:
            peer.wait()

    def join(self, count, members=(), **options):
        """``count`` new peers, as members beside ``members``, in the order of their ids."""
        peers = [self.spawn() for _ in range(count)]
        self.connect(peers, members, **options)
        return sorted(peers, key=lambda peer: peer.id)

    def spawn_behind_proxy(self, **environment):
        """A peer that others reach through a proxy of its own, ``peer.proxy``."""
        proxy = self._stack.enter_context(contextlib.closing(Proxy(lambda: peer.listening_port())))
        peer = self.spawn(PCCL_ADVERTISE=proxy.address, PCCL_PORT_RANGE="10000-30000", **environment)
        peer.proxy = proxy
        return peer

    def join_in_order(self, peers, **options):
        """Connect these one after the other, so that their ids and ranks grow as listed."""
        for at, peer in enumerate(peers):
            self.connect([peer], peers[:at], **options)

    @staticmethod
    def start(peers, function, **arguments):
        for peer in peers:
            peer.start(function, **arguments)
        return peers

    @classmethod
    def call(cls, peers, function, timeout=PATIENCE_S, **arguments):
        """Run on all of them at once; what each returned."""
        cls.start(peers, function, **arguments)
        return [peer.wait(timeout) for peer in peers]

    @classmethod
    def outcomes(cls, peers, function, timeout=PATIENCE_S, **arguments):
        cls.start(peers, function, **arguments)
        return [peer.outcome(timeout) for peer in peers]


def everywhere(peers, function, **arguments):
    """The results of ``function`` at all peers, which get their rank."""
    for rank, peer in enumerate(peers):
        peer.start(function, rank=rank, size=len(peers), **arguments)
    return [peer.wait() for peer in peers]


def eventually(condition, timeout=10.0, pause=0.01):
    """Wait until ``condition()`` is true, and return its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {inspect.getsource(condition).strip()}")
        time.sleep(pause)
    return value
