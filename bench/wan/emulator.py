"""A wide-area network on one machine: a namespace per node, joined by an emulator of our own.

    with Wan(2, path=Path(delay_s=0.025), access=Access(rate_bps=1e9, queue_s=0.05)) as wan:
        process = wan.run_in(1, ["ping", wan.addresses[0]])

Needs root, network namespaces and /dev/net/tun; no queueing discipline of the kernel, so also where netem is missing.
The namespaces have no names: they end with the emulator, and the emulator ends when its standard input does.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import select
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import TracebackType
from typing import Any

HERE = FilePath(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "wan"
SOURCES = ("emulator.c", "network.c", "packet_pool.c", "segments.c", "tun_device.c")
CFLAGS = ("-std=c11", "-O2", "-pthread", "-Wall", "-Wextra", "-Wconversion")
INTERFACE = "wan0"
NODES_MAX = 16
_ANSWER_S = 10.0
_TUN_QUEUE_PACKETS = 10000  # the kernel's, before the emulator: never the bottleneck
_FRAME_HEADER_BYTES = 10
_BURST_S = 0.0002
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Path:
    """One direction between two nodes. A rate of 0 is no limit; the queue is a time at that rate."""

    delay_s: float = 0.0
    rate_bps: float = 0.0
    queue_s: float = 0.05
    loss: float = 0.0


@dataclass(frozen=True)
class Access:
    """A node's own link, which all its paths share; the same limits out and in."""

    rate_bps: float = 0.0
    queue_s: float = 0.05


class WanError(RuntimeError):
    """The network could not be made, or the emulator ended."""


def why_not() -> str | None:
    """Why no network can be made here; None: it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    for tool in ("nsenter", "unshare", "chrt", "ip", "cc"):
        if not any(os.access(os.path.join(folder, tool), os.X_OK) for folder in os.get_exec_path()):
            return f"needs {tool}"
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0 else 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        return "needs network namespaces"
    return None


def build() -> FilePath:
    """The emulator's program, compiled unless it is newer than its sources."""
    program = BUILD / "wan-emulator"
    newest = max(file.stat().st_mtime_ns for file in HERE.glob("*.[ch]"))
    if program.exists() and program.stat().st_mtime_ns >= newest:
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    partial = BUILD / f"wan-emulator.{os.getpid()}"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    done = subprocess.run(
        [*compiler, *CFLAGS, *(str(HERE / name) for name in SOURCES), "-o", str(partial)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise WanError(f"the emulator does not compile:\n{done.stderr}")
    partial.replace(program)
    return program


def _segments_for(rate_bps: float, mtu: int) -> int:
    """As many as the access link sends in a burst time, and an unlimited one as if it were fast."""
    if rate_bps == 0:
        return 16
    return int(min(max(rate_bps * _BURST_S / 8 / mtu, 1), 65000 // mtu, 42))


class Wan:
    """``path`` is one for all pairs, or a function of (from, to).

    A program may hand over up to ``segments`` TCP packets at once, as it does with real hardware. The emulator decides
    about each by itself but delivers them together, with the last; None: as many as take 0.2 ms.

    ``precise``, for measurements: cores are kept awake, since what is sent to a sleeping virtual one, or is due there,
    may be a millisecond late; and what the emulator delivers, the kernel's TCP takes in on the other cores, as if these
    had been interrupted by hardware, and not in the emulator's own time. What runs in the nodes comes before everything
    else on the machine: it waits for no work of others.
    """

    def __init__(
        self,
        nodes: int,
        *,
        path: Path | Callable[[int, int], Path] = Path(),
        access: Access = Access(),
        mtu: int = 1500,
        seed: int | None = None,
        congestion: str | None = None,
        prefix: str = "10.77.0",
        precise: bool = False,
        segments: int | None = None,
        slots: int = 1 << 18,
    ) -> None:
        if not 2 <= nodes <= NODES_MAX:
            raise ValueError(f"nodes must be 2 to {NODES_MAX}, not {nodes}")
        self.nodes = nodes
        self.mtu = mtu
        self.seed = secrets.randbits(32) if seed is None else seed
        self.congestion = congestion
        self.addresses = [f"{prefix}.{i + 1}" for i in range(nodes)]
        self.final_report: dict[str, Any] | None = None
        self._prefix = prefix
        self._path = path if callable(path) else lambda _from, _to: path
        self._access = access
        self.segments = segments or _segments_for(access.rate_bps, mtu)
        slot_bytes = _FRAME_HEADER_BYTES + mtu * self.segments
        self._header = f"nodes {nodes} {slots} {slot_bytes} {self.seed}"
        self.precise = precise
        self._emulator: subprocess.Popen[bytes] | None = None
        self._namespaces: list[str] = []
        self._children: list[subprocess.Popen[Any]] = []
        self._unread = b""

    # ----------------------------------------------------------------------------------------------------- lifetime --

    def __enter__(self) -> Wan:
        program = build()
        try:
            self._start(program)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what was run in the network, then the network. May be called twice."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
        self._children.clear()
        emulator, self._emulator = self._emulator, None
        if emulator is None:
            return
        assert emulator.stdin is not None
        assert emulator.stdout is not None
        emulator.stdin.close()
        try:
            emulator.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            emulator.kill()
            emulator.wait()
        lines = (self._unread + emulator.stdout.read()).splitlines()
        if emulator.returncode == 0 and lines and lines[-1].startswith(b"{"):
            self.final_report = json.loads(lines[-1])
        emulator.stdout.close()

    def _start(self, program: FilePath) -> None:
        # Out of reach of the terminal: a Ctrl-C is for us, and we end the program when we are done.
        self._emulator = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        self._tell(self._header)
        if self.precise:
            self._tell("awake")
        for i in range(self.nodes):
            self.set_access(i, self._access)
        for i in range(self.nodes):
            for j in range(self.nodes):
                if i != j:
                    self.set_path(i, j, self._path(i, j))
        self._tell(f"start {INTERFACE}")
        words = self._answer().split()
        if len(words) != self.nodes + 1:
            raise WanError(f"the emulator said {words!r}")
        self._namespaces = [f"/proc/{self._emulator.pid}/fd/{int(word)}" for word in words[1:]]
        for node in range(self.nodes):
            self._configure(node)
        cores = sorted(os.sched_getaffinity(0))
        if self.precise and len(cores) > 1:
            os.sched_setaffinity(self._emulator.pid, cores[:1])
            for node in range(self.nodes):
                self._receive_on(node, cores[1:])

    def _receive_on(self, node: int, cores: Sequence[int]) -> None:
        """A namespace's devices are only seen in a sysfs of its own."""
        mask = sum(1 << core for core in cores)
        words = [f"{mask >> shift & 0xFFFFFFFF:x}" for shift in range(0, mask.bit_length(), 32)]
        file = f"/sys/class/net/{INTERFACE}/queues/rx-0/rps_cpus"
        script = f"mount -t sysfs sysfs /sys && echo {','.join(reversed(words))} > {file}"
        done = self.check_in(node, ["unshare", "--mount", "sh", "-c", script], timeout=_ANSWER_S)
        if done.returncode != 0:
            raise WanError(f"node {node}: {done.stderr.strip()}")

    def _configure(self, node: int) -> None:
        settings = {
            "ipv6/conf/all/disable_ipv6": "1",
            "ipv4/tcp_no_metrics_save": "1",  # so that a connection doesn't start with what another has learnt
        }
        # A route's congestion control holds for every connection, and needs no permission beyond the namespace, where
        # a namespace's own default may only be one of those that the machine allows to everybody.
        congestion = f" congctl {self.congestion}" if self.congestion is not None else ""
        script = "\n".join(
            (
                "set -e",
                *(f"test ! -e /proc/sys/net/{name} || echo {value} > /proc/sys/net/{name}"
                  for name, value in settings.items()),
                "ip link set lo up",
                f"ip link set {INTERFACE} gso_max_size {self.mtu * self.segments} gso_max_segs {self.segments}",
                f"ip link set {INTERFACE} mtu {self.mtu} txqueuelen {_TUN_QUEUE_PACKETS} up",
                f"ip address add {self.addresses[node]}/24 dev {INTERFACE} noprefixroute",
                f"ip route add {self._prefix}.0/24 dev {INTERFACE} src {self.addresses[node]}{congestion}",
            )
        )  # fmt: skip
        done = self.check_in(node, ["sh", "-c", script], timeout=_ANSWER_S)
        if done.returncode != 0:
            raise WanError(f"node {node}: {done.stderr.strip()}")

    # ---------------------------------------------------------------------------------------------------------- use --

    @property
    def pid(self) -> int:
        assert self._emulator is not None
        return self._emulator.pid

    @property
    def namespaces(self) -> tuple[str, ...]:
        """A path of each node's network namespace, as nsenter takes it."""
        return tuple(self._namespaces)

    def command_in(self, node: int, command: Sequence[str]) -> list[str]:
        precedence = ["chrt", "--rr", "1"] if self.precise else []
        return [*precedence, "nsenter", f"--net={self._namespaces[node]}", *command]

    def run_in(self, node: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command in a node's namespace. It is killed when the network closes."""
        child = subprocess.Popen(self.command_in(node, command), **options)
        self._children.append(child)
        return child

    def check_in(self, node: int, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in a node's namespace to its end."""
        return subprocess.run(self.command_in(node, command), capture_output=True, text=True, check=False, **options)

    def set_path(self, node: int, to: int, path: Path) -> None:
        """Change one direction between two nodes, at any time."""
        rate_bps = round(path.rate_bps)
        queue_bytes = round(path.queue_s * path.rate_bps / 8)
        self._tell(f"path {node} {to} {rate_bps} {queue_bytes} {round(path.delay_s * 1e9)} {path.loss!r}")

    def set_access(self, node: int, access: Access) -> None:
        rate_bps = round(access.rate_bps)
        queue_bytes = round(access.queue_s * access.rate_bps / 8)
        self._tell(f"node {node} {self.addresses[node]} {rate_bps} {queue_bytes} {rate_bps} {queue_bytes}")

    def report(self) -> dict[str, Any]:
        """What the emulator has counted so far; "late_recent_us" is since the last report."""
        self._tell("report")
        found: dict[str, Any] = json.loads(self._answer())
        return found

    def kernel_drops(self) -> int:
        """Packets that a device dropped before the emulator saw them. Anything but 0 makes a measurement void."""
        drops = 0
        for node in range(self.nodes):
            done = self.check_in(node, ["ip", "-j", "-s", "link", "show", INTERFACE])
            stats = json.loads(done.stdout)[0]["stats64"]
            drops += stats["tx"]["dropped"] + stats["rx"]["dropped"]
        return drops

    # ---------------------------------------------------------------------------------------------------- internals --

    def _tell(self, line: str) -> None:
        assert self._emulator is not None
        assert self._emulator.stdin is not None
        try:
            self._emulator.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise WanError(f"the emulator ended: {self._emulator.wait()}") from None

    def _answer(self) -> str:
        assert self._emulator is not None
        assert self._emulator.stdout is not None
        while b"\n" not in self._unread:
            readable, _, _ = select.select([self._emulator.stdout], [], [], _ANSWER_S)
            data = os.read(self._emulator.stdout.fileno(), 1 << 16) if readable else b""
            if not data:
                raise WanError("the emulator ended" if readable else "the emulator doesn't answer")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()
