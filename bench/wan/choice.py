"""Whether the chosen algorithm is a good one over links that differ: some of the matrices of topology.py as networks of
the emulator. For each collective and payload the time with the automatic choice beside those with each algorithm.

With cubic unless another is asked for: as the cost model assumes, a connection that was idle begins with ten packets
again. With bbr it begins with what it had, so that an exchange of some ten KiB takes a round trip less.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import calibrate
from .emulator import Access, Path, Wan
from .launch import run_peers, start_master, stop_master

KIB, MIB = 1 << 10, 1 << 20
LIMIT_S = 240.0
ALL_REDUCE = ("ring", "tree", "direct")
CELLS = (
    ("all_reduce", 16 * KIB, (*ALL_REDUCE, "exchange")),
    ("all_reduce", MIB, (*ALL_REDUCE, "exchange")),
    ("all_reduce", 4 * MIB, ALL_REDUCE),
    ("broadcast", 16 * KIB, ("ring", "tree", "direct")),
    ("broadcast", 4 * MIB, ("ring", "tree", "direct")),
    ("all_gather", 16 * KIB, ("ring", "direct")),
    ("all_gather", MIB, ("ring", "direct")),
)


@dataclass(frozen=True)
class Matrix:
    title: str
    nodes: int
    path: Callable[[int, int], Path]
    access: Callable[[int], Access]


def _between_sites(node: int, to: int) -> Path:
    return Path(delay_s=0.0005) if (node < 3) == (to < 3) else Path(delay_s=0.020, rate_bps=50e6)


MATRICES = {
    "two_sites": Matrix(
        "2 sites of 3 peers, 1 ms and 400 Mbit/s within, 40 ms and 50 Mbit/s a pair between", 6,
        _between_sites, lambda node: Access(rate_bps=400e6),
    ),
    "slow_node": Matrix(
        "6 peers, 10 ms, 200 Mbit/s, one of them 40 Mbit/s", 6,
        lambda node, to: Path(delay_s=0.005), lambda node: Access(rate_bps=40e6 if node == 5 else 200e6),
    ),
}  # fmt: skip


def run(name: str, mtu: int, congestion: str | None, samples: int, cells: int | None) -> dict[str, Any]:
    """``cells``: how many of them; None: all."""
    matrix = MATRICES[name]
    congestion = congestion or "cubic"
    wanted = [{"op": op, "bytes": size, "algorithms": ways} for op, size, ways in CELLS[:cells]]
    with Wan(
        matrix.nodes, path=matrix.path, access=matrix.access(0), mtu=mtu, congestion=congestion, precise=True
    ) as wan:
        for node in range(matrix.nodes):
            wan.set_access(node, matrix.access(node))
        print(f"\n{matrix.title}", flush=True)
        calibration = [_calibrated(wan, 0, other) for other in (1, matrix.nodes - 1)]
        master = start_master(wan)
        before = wan.report()
        settings = {"connections": 1, "samples": samples, "cells": wanted}
        lines, failure = run_peers(wan, "choice_peer.py", settings, LIMIT_S)
        after = wan.report()
        stop_master(master)
    done = min(map(len, lines))
    rows = [row_of(cell, [of_peer[i] for of_peer in lines]) for i, cell in enumerate(wanted[:done])]
    for row in rows:
        print(_shown(row), flush=True)
    if failure:
        print(failure, flush=True)
    emulator = {key: after[key] - before[key] for key in ("frames", "packets", "queue_drops", "late_over_1ms")}
    return {
        "settings": {
            "title": matrix.title,
            "nodes": matrix.nodes,
            "mtu": mtu,
            "congestion": congestion,
        },
        "calibration": calibration,
        "runs": [],
        "choices": rows,
        "failure": failure,
        "emulator": {**emulator, "cores": (after["cpu_s"] - before["cpu_s"]) / (after["wall_s"] - before["wall_s"])},
    }


def _calibrated(wan: Wan, a: int, b: int) -> dict[str, Any]:
    trip = calibrate.round_trip(wan, a=a, b=b)
    plain = calibrate.throughput(wan, 8 * MIB, 1, a=a, b=b)
    print(f"{a} to {b}: round trip {trip['mean_ms']:.2f} ms, {plain['mbit_per_s']:.0f} Mbit/s by {plain['tool']}")
    return {"from": a, "to": b, "round_trip": trip, "plain_tcp": plain}


def row_of(cell: dict[str, Any], of_peers: list[dict[str, Any]]) -> dict[str, Any]:
    """An operation takes as long as its slowest peer."""
    samples_ms = {
        way: [1000 * max(times) for times in zip(*(peer["seconds"][way] for peer in of_peers), strict=True)]
        for way in of_peers[0]["seconds"]
    }
    medians = {way: statistics.median(times) for way, times in samples_ms.items()}
    best = min(cell["algorithms"], key=lambda way: medians[way])
    return {
        "op": cell["op"],
        "bytes": cell["bytes"],
        "chosen": of_peers[0]["chosen"],
        "best": best,
        "ratio": medians["auto"] / medians[best],
        "chosen_ratio": medians[of_peers[0]["chosen"]] / medians[best],
        "median_ms": medians,
        "samples_ms": samples_ms,
        "wrong": sum(peer["wrong"] for peer in of_peers),
    }


def _shown(row: dict[str, Any]) -> str:
    times = ", ".join(f"{way} {ms:.1f}" for way, ms in row["median_ms"].items())
    wrong = "  WRONG" if row["wrong"] else ""
    return f"{row['op']:10} {row['bytes']:>8}: {row['chosen']:8} {row['ratio']:.2f} of the best ({times} ms){wrong}"
