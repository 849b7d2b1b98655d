"""Measures a network from inside, before it is used: round trip and throughput."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from .emulator import Wan

PROBE = str(Path(__file__).with_name("probe.py"))
_PORT = 5300


def serve(wan: Wan, node: int, *arguments: str) -> subprocess.Popen[Any]:
    """A server of the probe's that listens already."""
    process = wan.run_in(node, [sys.executable, PROBE, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"probe {arguments} did not start")
    return process


def ask(wan: Wan, node: int, *arguments: str, timeout: float = 60) -> Any:
    done = wan.check_in(node, [sys.executable, PROBE, *arguments], timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"probe {arguments}: {done.stderr}")
    return json.loads(done.stdout) if done.stdout else None


def answer(process: subprocess.Popen[Any], timeout: float = 60) -> Any:
    out, _ = process.communicate(timeout=timeout)
    return json.loads(out)


def round_trip(wan: Wan, count: int = 100, interval_s: float = 0.01, a: int = 0, b: int = 1) -> dict[str, Any]:
    server = serve(wan, b, "echo", str(_PORT))
    try:
        found = ask(wan, a, "ping", wan.addresses[b], str(_PORT), str(count), str(interval_s))
    finally:
        server.kill()
        server.communicate()
    times = sorted(found["round_trips_ms"])
    if not times:
        raise RuntimeError("no datagram came back")
    return {
        "sent": count,
        "came": len(times),
        "mean_ms": statistics.fmean(times),
        "median_ms": statistics.median(times),
        "p99_ms": times[min(len(times) - 1, round(0.99 * (len(times) - 1)))],
        "min_ms": times[0],
        "max_ms": times[-1],
    }


def throughput(
    wan: Wan,
    total_bytes: int,
    connections: int,
    congestion: str = "",
    *,
    a: int = 0,
    b: int = 1,
    own: bool = False,
    timeout: float = 120,
) -> dict[str, Any]:
    """One way, from a to b, over so many connections together. iperf3 where it is installed, else our own sender."""
    if not own and shutil.which("iperf3") is not None:
        return _iperf(wan, total_bytes, connections, congestion, a, b, timeout)
    server = serve(wan, b, "sink", str(_PORT), str(connections))
    target = (wan.addresses[b], str(_PORT), str(connections), str(total_bytes))
    ask(wan, a, "bulk", *target, *([congestion] if congestion else []), timeout=timeout)
    found = answer(server, timeout)
    return _result("bulk sender of our own", found["bytes"], found["seconds"], connections, congestion)


def _iperf(
    wan: Wan, total_bytes: int, connections: int, congestion: str, a: int, b: int, timeout: float
) -> dict[str, Any]:
    server = wan.run_in(
        b, ["iperf3", "--server", "--one-off", "--forceflush"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert server.stdout is not None
    while b"listening" not in (line := server.stdout.readline()):
        if not line:
            raise RuntimeError("iperf3 did not start")
    command = ["iperf3", "--client", wan.addresses[b], "--json", "--bytes", str(total_bytes), "--parallel"]
    command += [str(connections), *(["--congestion", congestion] if congestion else [])]
    done = wan.check_in(a, command, timeout=timeout)
    server.communicate(timeout=timeout)
    found = json.loads(done.stdout)
    if "error" in found:
        raise RuntimeError(f"iperf3: {found['error']}")
    end = found["end"]["sum_received"]
    return _result("iperf3", end["bytes"], end["seconds"], connections, congestion)


def _result(tool: str, total: int, seconds: float, connections: int, congestion: str) -> dict[str, Any]:
    return {
        "tool": tool,
        "bytes": total,
        "seconds": seconds,
        "connections": connections,
        "congestion": congestion or "the system's",
        "mbit_per_s": total * 8 / seconds / 1e6,
    }
