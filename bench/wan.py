"""All-reduce over wide-area links, ours and Gloo's in the same run: python bench/wan.py [--scenario NAME] [--quick]

Each scenario is a network of wan/emulator.py with a peer in each of its namespaces and the master beside peer 0. Before
each run of peers the network itself is measured: round trip, and what plain TCP reaches one way with the same bytes,
connections and congestion control, from their slow start on; a cell of that size says what share of its rate our data
reached (of_plain_tcp; with a codec, data before coding). Where iperf3 measures that rate, our own sender measures it
too: iperf3 counts until its sender is done, so it leaves out what is under way then; our own counts to the last byte.

Operations run back to back, in place, ours either each with its verdict (strict) or all of a size as one step, by TCP.
Peers begin with each size at the same time. A sample is one operation's time, the mean of all peers': without a verdict
a peer that is done early begins the next one early and waits there, so that the slowest peer's times of all operations
are more than the whole took; their median stands beside (slowest_median_ms). The last result of each size is verified,
and each one comes from the one before.

While it measures, what runs in the nodes comes before everything else on the machine, and no core sleeps (the
emulator's "precise").

The ideal is the least time that any algorithm needs: one hop with (n-1)B bytes, or two with 2(n-1)/n B, through each
node's access link, headers included. Strict operations back to back have to add the time that DONE takes to the master
and its verdict to the peer that starts the next one: a round trip, of which two peers can hide half, because the master
is beside one of them.

Scenarios of links that differ compare the automatic choice with each algorithm instead: wan/choice.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import signal
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path as FilePath
from typing import Any

from harness import RESULTS, commit, machine, save, sysctl
from wan import calibrate, choice
from wan.emulator import Access, Path, Wan, why_not
from wan.launch import run_peers, start_master, stop_master

HEADERS_BYTES = 52  # IPv4, TCP and its timestamps, of each packet
KIB, MIB = 1 << 10, 1 << 20
# Of the frames, more than 1 ms late: a virtual machine's host takes a core away now and then. Nothing behind a late one
# becomes late by it, so that such a share moves a time by much less than a hundredth.
LATE_SHARE_LIMIT = 0.05
ATTEMPTS = 3  # a run that is void is done again


@dataclass(frozen=True)
class Cell:
    bytes: int
    samples: int = 9
    warmups: int = 1


@dataclass(frozen=True)
class Run:
    """What is measured. The last three are for pccl."""

    library: str
    connections: int  # per pair of peers; Gloo has one
    samples: int = 0  # of each cell; 0: what the cell says
    mode: str = "strict"  # or step: the samples of a cell are one step
    codec: str | None = None
    algorithm: str | None = None

    @property
    def name(self) -> str:
        options = (self.mode, self.codec, self.algorithm) if self.library == "pccl" else ()
        return " ".join([self.library, *filter(None, options)])


@dataclass(frozen=True)
class Scenario:
    title: str
    nodes: int
    rate_bps: float
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    delay_s: float = 0.025
    queue_s: float = 0.05
    loss: float = 0.0
    congestion: str | None = None
    limit_s: float = 120.0  # of one run of peers
    note: str = ""


SIZES = (Cell(KIB), Cell(MIB), Cell(64 * MIB))
STRICT = tuple(Run("pccl", connections) for connections in (1, 4, 16))
STEP = tuple(replace(run, mode="step") for run in STRICT)
GLOO = Run("gloo", 1)
SCENARIOS = {
    "1g": Scenario("2 peers, 50 ms, 1 Gbit/s", 2, 1e9, SIZES, (*STRICT, *STEP, GLOO)),
    "200m": Scenario("2 peers, 50 ms, 200 Mbit/s", 2, 200e6, SIZES, (*STRICT, GLOO), limit_s=240),
    "loss": Scenario(
        "2 peers, 50 ms, 1 Gbit/s, 0.5 % loss, cubic", 2, 1e9, (Cell(8 * MIB, warmups=0),),
        (Run("pccl", 1, samples=3), Run("pccl", 16), Run("gloo", 1, samples=3)),
        loss=0.005, congestion="cubic", limit_s=240,
        note="no warm-up, and 3 samples over one connection: an operation takes half a minute there",
    ),
    "eight": Scenario(
        "8 peers, 50 ms, 1 Gbit/s", 8, 1e9, (Cell(MIB),),
        (*STRICT[:2], STEP[1], replace(STEP[1], algorithm="ring"), GLOO), limit_s=180,
    ),
    "quant": Scenario(
        "2 peers, 50 ms, 200 Mbit/s, codecs", 2, 200e6, (Cell(64 * MIB),),
        tuple(Run("pccl", 4, mode="step", codec=codec) for codec in (None, "int8", "int4")), limit_s=240,
    ),
}  # fmt: skip


def quick(scenario: Scenario) -> Scenario:
    cells = tuple(replace(cell, bytes=min(cell.bytes, 8 * MIB), samples=3) for cell in scenario.cells)
    runs = tuple(replace(run, samples=0) for run in scenario.runs if run.connections != 4 or run.mode == "step")
    return replace(scenario, cells=cells, runs=runs, note="quick: 3 samples, nothing above 8 MiB")


def ideal_s(scenario: Scenario, bytes_: int, mtu: int) -> float:
    n = scenario.nodes
    payload_bps = scenario.rate_bps * (mtu - HEADERS_BYTES) / mtu
    one_hop = scenario.delay_s + (n - 1) * bytes_ * 8 / payload_bps
    two_hops = 2 * scenario.delay_s + 2 * (n - 1) / n * bytes_ * 8 / payload_bps
    return min(one_hop, two_hops)


def verdict_s(scenario: Scenario) -> float:
    """What a verdict adds. Of two peers the one beside the master is done when the other's data are there, so only the
    way of the verdict remains; of more, two are far from the master, and their DONE has to come first."""
    return scenario.delay_s * (1 if scenario.nodes == 2 else 2)


# --------------------------------------------------------------------------------------------------------- scenarios --


def joined(scenario: Scenario, cell: Cell, measured: list[dict[str, Any]], mtu: int) -> dict[str, Any]:
    of_peers_ms = [[second * 1000 for second in peer["seconds"]] for peer in measured]
    samples_ms = [statistics.fmean(times) for times in zip(*of_peers_ms, strict=True)]
    least_ms = ideal_s(scenario, cell.bytes, mtu) * 1000
    return {
        "bytes": cell.bytes,
        "median_ms": statistics.median(samples_ms),
        "min_ms": min(samples_ms),
        "max_ms": max(samples_ms),
        "slowest_median_ms": statistics.median(map(max, zip(*of_peers_ms, strict=True))),
        "ideal_ms": least_ms,
        "ideal_strict_ms": least_ms + verdict_s(scenario) * 1000,
        "wrong": sum(peer["wrong"] for peer in measured),
        "cpu_s_of_peers": [peer["cpu_s"] for peer in measured],
        "samples_ms": samples_ms,
        "samples_ms_of_peers": of_peers_ms,
    }


def bus_mbit_per_s(scenario: Scenario, cell: dict[str, Any]) -> float:
    """What each peer has to send at least, by the median; of two peers, the buffer."""
    n = scenario.nodes
    return float(2 * (n - 1) / n * cell["bytes"] * 8 / (cell["median_ms"] * 1000))


def counted(wan: Wan) -> dict[str, Any]:
    return {**wan.report(), "kernel_drops": wan.kernel_drops()}


def emulator_share(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the emulator did between two reports."""
    counters = ("packets", "delivered", "frames", "queue_drops", "losses")
    counters += ("overflow", "refused", "kernel_drops", "late_over_1ms")
    wall_s = after["wall_s"] - before["wall_s"]
    return {
        **{name: after[name] - before[name] for name in counters},
        "cores": (after["cpu_s"] - before["cpu_s"]) / wall_s,
        "wall_s": wall_s,
        "late_max_us": after["late_recent_us"],
    }


def run_once(wan: Wan, scenario: Scenario, run: Run) -> dict[str, Any]:
    """The network first, then the peers."""
    cells = [replace(cell, samples=run.samples or cell.samples) for cell in scenario.cells]
    trip = calibrate.round_trip(wan)
    most_bytes = max(cell.bytes for cell in cells)
    plain = calibrate.throughput(wan, most_bytes, run.connections, timeout=scenario.limit_s)
    whole = plain  # the tool that counts to the last byte
    if plain["tool"] == "iperf3":
        whole = calibrate.throughput(wan, most_bytes, run.connections, own=True, timeout=scenario.limit_s)
    master = start_master(wan) if run.library == "pccl" else None
    before = counted(wan)
    settings = {**asdict(run), "cells": [asdict(cell) for cell in cells]}
    lines, failure = run_peers(wan, "wan_peer.py", settings, scenario.limit_s)
    emulator = emulator_share(before, counted(wan))
    if master is not None:
        stop_master(master)
    done = min(len(of_peer) for of_peer in lines)
    measured = [
        joined(scenario, cell, [of_peer[i] for of_peer in lines], wan.mtu) for i, cell in enumerate(cells[:done])
    ]
    for cell in measured:
        if cell["bytes"] == most_bytes:
            cell["of_plain_tcp"] = bus_mbit_per_s(scenario, cell) / plain["mbit_per_s"]
            cell["of_plain_tcp_own"] = bus_mbit_per_s(scenario, cell) / whole["mbit_per_s"]
    options = {"mode": run.mode, "codec": run.codec, "algorithm": run.algorithm} if run.library == "pccl" else {}
    return {
        "library": run.library,
        "name": run.name,
        "connections": run.connections,
        **options,
        "round_trip": trip,
        "plain_tcp": plain,
        "plain_tcp_own": whole,
        "cells": measured,
        "failure": failure,
        "emulator": emulator,
        "void": why_void(emulator),
    }


def why_void(emulator: dict[str, Any]) -> str | None:
    """What makes a measurement say something about the emulator instead."""
    if emulator["overflow"] or emulator["refused"] or emulator["kernel_drops"]:
        return f"lost inside: {[emulator[name] for name in ('overflow', 'refused', 'kernel_drops')]}"
    if emulator["late_over_1ms"] > LATE_SHARE_LIMIT * emulator["frames"]:
        return f"{emulator['late_over_1ms']} of {emulator['frames']} deliveries were more than 1 ms late"
    return None


def run_scenario(scenario: Scenario, arguments: argparse.Namespace) -> dict[str, Any]:
    congestion = arguments.congestion or scenario.congestion
    access = Access(rate_bps=scenario.rate_bps, queue_s=scenario.queue_s)
    path = Path(delay_s=scenario.delay_s, loss=scenario.loss)
    found = []
    with Wan(
        scenario.nodes,
        path=path,
        access=access,
        mtu=arguments.mtu,
        seed=arguments.seed,
        congestion=congestion,
        precise=True,
    ) as wan:
        print(
            f"\n{scenario.title} (seed {wan.seed}, {congestion or sysctl('net/ipv4/tcp_congestion_control')})",
            flush=True,
        )
        print(f"{'':16} {'conns':>5} {'bytes':>9} {'median':>9} {'ideal':>8} {'strict':>8}  of plain TCP", flush=True)
        for run in scenario.runs:
            voids = []
            for _ in range(ATTEMPTS):
                result = run_once(wan, scenario, run)
                print_run(result)
                if result["void"] is None:
                    break
                voids.append(result["void"])
            found.append({**result, "voids": voids})
        seed = wan.seed
    settings = asdict(scenario)
    settings.update(congestion=congestion or sysctl("net/ipv4/tcp_congestion_control"), mtu=arguments.mtu, seed=seed)
    return {"settings": settings, "runs": found, "emulator": wan.final_report, "segments": wan.segments}


def print_run(run: dict[str, Any]) -> None:
    tools = ["plain_tcp", "plain_tcp_own"] if run["plain_tcp"] != run["plain_tcp_own"] else ["plain_tcp"]
    for cell in run["cells"]:
        shares = [
            f"{cell[f'of_{tool}']:.2f} of {run[tool]['mbit_per_s']:.0f} Mbit/s ({run[tool]['tool']})"
            for tool in tools
            if f"of_{tool}" in cell
        ]
        print(
            f"{run['name']:16} {run['connections']:>5} {cell['bytes']:>9} {cell['median_ms']:>9.1f}"
            f" {cell['ideal_ms']:>8.1f} {cell['ideal_strict_ms']:>8.1f}  {', '.join(shares)}"
            + ("  WRONG" if cell["wrong"] else ""),
            flush=True,
        )
    emulator, trip = run["emulator"], run["round_trip"]
    late = f"late at most {emulator['late_max_us'] / 1000:.2f} ms ({emulator['late_over_1ms']} over 1 ms)"
    print(
        f"{'':16} round trip {trip['mean_ms']:.2f} ms, p99 {trip['p99_ms']:.2f};"
        f" emulator {emulator['cores']:.2f} cores, {late},"
        f" {emulator['queue_drops']} dropped, {emulator['losses']} lost of {emulator['packets']}",
        flush=True,
    )
    for problem in (run["failure"], run["void"] and f"VOID: {run['void']}"):
        if problem:
            print(f"{'':16} {problem}", flush=True)


# ------------------------------------------------------------------------------------------------------------ result --


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Save the rows in the place of the last ones of their scenarios; the others stay. Each has its own commit and
    date."""
    file = arguments.out or RESULTS / f"wan-{platform.machine()}-{machine()['cores']}.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    now = {row["scenario"]: row for row in [*before, *rows]}
    save("wan", arguments, [now[name] for name in names() if name in now], file)


def names() -> list[str]:
    return [*SCENARIOS, *choice.MATRICES]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=sorted(names()), help="may be repeated; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="few samples, small sizes; writes a result only with --out"
    )
    parser.add_argument("--out", type=FilePath, metavar="FILE", help="default: results/wan-<architecture>-<cores>.json")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--seed", type=int, help="of the losses; default: a random one, printed")
    parser.add_argument("--congestion", help="for all connections; default: the scenario's, else the system's")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"wan: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    measured = commit()  # before a result is written, which would mark the tree
    for name in dict.fromkeys(arguments.scenario or names()):
        about = {"scenario": name, "commit": measured, "date": datetime.date.today().isoformat()}
        if name in SCENARIOS:
            found = run_scenario(quick(SCENARIOS[name]) if arguments.quick else SCENARIOS[name], arguments)
        else:
            found = choice.run(name, arguments.mtu, arguments.congestion, *((2, 2) if arguments.quick else (5, None)))
        row = {**about, **found}
        if arguments.out is not None or not arguments.quick:
            write([row], arguments)


if __name__ == "__main__":
    main()
