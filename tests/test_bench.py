"""The benchmarks run, and their results hold what they say; README's figures are made from them."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import harness
import numpy as np
import pytest
import table
from wan import choice, wan_peer

ROOT = Path(__file__).resolve().parent.parent


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def saved(path):
    result = json.loads(path.read_text())
    assert result["machine"]["cores"] >= 1
    assert result["commit"]
    return result


def kernel(codec, operation, gbs):
    row = {"what": "kernel", "codec": codec, "operation": operation, "stochastic": False, "cached": False}
    return {**row, "gbs": harness.summary([gbs])}


def write(folder, what, rows):
    """A result of a machine without a name."""
    machine = {"cpu": "Z80", "cores": 2, "memory_gib": 1, "kernel": "6.18", "congestion": "reno"}
    result = {"what": what, "machine": machine, "commit": "abc", "date": "2999-01-01", "rows": rows}
    (folder / f"{what}-x-2.json").write_text(json.dumps(result))


def quant_rows():
    reduced = {"what": "all_reduce", "bytes": 1 << 20, "peers": 2}
    return [
        kernel("none", "copy", 9.0),
        kernel("int8", "encode", 8.0),
        kernel("int8", "decode and add", 7.0),
        {**reduced, "library": "pccl-step-plain", "ms": harness.summary([3.0])},
        {**reduced, "library": "pccl-step-int8", "ms": harness.summary([2.0])},
        {**reduced, "bytes": 1 << 10, "library": "pccl-step-int8", "ms": harness.summary([0.1])},
    ]


def wan_run(library, ms, connections=1, void=None, **options):
    cell = {"bytes": 1 << 20, "median_ms": ms, "wrong": 0}
    return {"library": library, "connections": connections, "cells": [cell], "void": void, **options}


@pytest.mark.serial
def test_collectives(tmp_path):
    path = tmp_path / "result.json"
    options = ("--peers", "2", "--sizes", "1K", "--samples", "3", "--mode", "step,strict")
    run("collectives.py", *options, "--compare", "limit,limit-shm", "--ops", "all_reduce,all_gather", "--output", path)
    rows = saved(path)["rows"]
    measured = {(row["op"], row["library"]) for row in rows if "ms" in row}
    ways = ("step", "step-shm", "strict", "strict-shm")
    ours = {(op, f"pccl-{way}") for op in ("all_reduce", "all_gather") for way in ways}
    assert measured == ours | {("all_reduce", "limit"), ("all_reduce", "limit-shm")}
    assert all(len(row["ms"]["samples"]) == 3 and row["ms"]["median"] > 0 for row in rows if "ms" in row)
    failures = [row["failure"] for row in rows if "ms" not in row]
    assert len(failures) == 2
    assert all(failure.startswith("error only all_reduce") for failure in failures)


@pytest.mark.serial
def test_connect_state_and_recovery(tmp_path):
    run("connect.py", "--peers", "2", "--runs", "2", "--output", tmp_path / "connect.json")
    run("state.py", "--peers", "2", "--runs", "2", "--bytes", 1 << 20, "--output", tmp_path / "state.json")
    run("recovery.py", "--runs", "1", "--stops", "0", "--bytes", 1 << 20, "--output", tmp_path / "recovery.json")
    assert [row["peers"] for row in saved(tmp_path / "connect.json")["rows"]] == [2]
    assert [row["what"] for row in saved(tmp_path / "state.json")["rows"]] == ["same", "differ"]
    (row,) = saved(tmp_path / "recovery.json")["rows"]
    assert row["success_ms"]["median"] > 0


@pytest.mark.serial
def test_quant(tmp_path):
    run("quant.py", "--sizes", "64K", "--samples", "1", "--output", tmp_path / "quant.json")
    rows = saved(tmp_path / "quant.json")["rows"]
    assert {row["library"] for row in rows if row["what"] == "all_reduce"} >= {"pccl-step-plain", "pccl-step-int8"}
    kernels = {(row["codec"], row["operation"]) for row in rows if row["what"] == "kernel"}
    assert {("int8", "encode"), ("int8", "decode and add"), ("bf16", "encode")} <= kernels


@pytest.mark.serial
def test_threads(tmp_path):
    run("threads.py", "--bytes", "1M", "--turns", "1", "--rounds", "2", "--output", tmp_path / "threads.json")
    rows = saved(tmp_path / "threads.json")["rows"]
    bare, library = ([row for row in rows if row["what"] == what] for what in ("bare", "library"))
    assert [(row["connections"], row["threads"]) for row in bare] == [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)]
    assert [(row["peers"], row["threads"]) for row in library] == [
        (n, threads) for n in (2, 4) for threads in (1, 2, 3, 4)
    ]
    assert all(row["ms"]["median"] > 0 for row in rows)


def test_memory(tmp_path):
    run("memory.py", "--peers", "2", "--bytes", "16M", "--output", tmp_path / "memory.json")
    rows = saved(tmp_path / "memory.json")["rows"]
    assert len(rows) == 10
    strict_in_place = [row["mib"] for row in rows if row["what"] == "in place, strict"]
    assert all(16 <= mib <= 16 + 32 for mib in strict_in_place)  # the copy for undo
    assert all(row["mib"] <= 32 for row in rows if row["what"].startswith("out of place"))


def test_topology(tmp_path):
    path = tmp_path / "topology.json"
    options = ("--quick", "--links", "even,two_sites,asymmetric", "--search-s", "0")
    run("topology.py", *options, "--output", path)
    rows = saved(path)["rows"]
    chosen = [row for row in rows if "chosen" in row]
    assert len(chosen) == 3 * 5 * 3
    assert max(row["ratio"] for row in chosen) <= 1.15
    assert max(row["unknown_bandwidth_ratio"] for row in chosen) > 2
    rings = [row for row in rows if "ring" in row and "members" in row]
    assert {row["members"] for row in rings} == set(range(3, 9))
    assert all(row["bottleneck"] == row["best"] for row in rings)


def test_summary():
    found = harness.summary([3.0, 1.0, 2.0])
    assert found == {"median": 2.0, "p10": 1.0, "p90": 3.0, "samples": [3.0, 1.0, 2.0]}


def test_wan_peer_notices_wrong_results():
    """World 2, rank 0: the data are 1, and the sums 3, 6, 12."""
    sums = []

    def all_reduce(data):
        data[:] = 3 if not sums else data * 2
        sums.append(float(data[2]))
        if len(sums) == 1:
            data[0] *= 1.01
        if len(sums) == 3:
            data[1] = np.nan

    cell = {"bytes": 400, "samples": 2, "warmups": 1}
    found = wan_peer.measure(all_reduce, 0, 2, cell)
    assert sums == [3, 6, 12]
    assert found["wrong"] == 2
    assert len(found["seconds"]) == 2
    sums.clear()
    assert wan_peer.measure(all_reduce, 0, 2, cell, wan_peer.CODEC_TOLERANCE)["wrong"] == 1
    assert wan_peer.measure(lambda data: None, 0, 2, cell)["wrong"] == 100


def test_table(tmp_path):
    row = {"op": "all_reduce", "peers": 2, "bytes": 1 << 20}
    rows = [
        {**row, "library": "pccl-step", "ms": harness.summary([2.0])},
        {**row, "library": "gloo", "ms": harness.summary([3.0])},
    ]
    write(tmp_path, "collectives-reno", rows)
    assert table.text(tmp_path).splitlines() == [
        "| reno, ms | pccl, step | Gloo | step : Gloo |",
        "| --- | --- | --- | --- |",
        "| all_reduce, 1 MiB, 2 peers | 2.0 | 3.0 | 1.50x |",
        "",
        "In place, float32, TCP over loopback. 2 cores (Z80), Linux 6.18, reno, commit abc, 2999-01-01.",
    ]
    readme = tmp_path / "README.md"
    readme.write_text(f"head\n{table.START}\nold\n{table.END}\ntail\n")
    run("table.py", "--results", tmp_path, "--readme", readme)
    assert "1.50x" in readme.read_text()
    assert readme.read_text().startswith("head\n")
    assert readme.read_text().endswith("\ntail\n")
    run("table.py", "--check", "--results", tmp_path, "--readme", readme)


def test_table_of_shared_memory(tmp_path):
    row = {"op": "all_reduce", "peers": 2, "bytes": 1 << 20}
    times = {"pccl-step": 2.0, "pccl-step-shm": 1.0, "gloo": 3.0}
    rows = [{**row, "library": library, "ms": harness.summary([ms])} for library, ms in times.items()]
    write(tmp_path, "collectives-reno", rows)
    lines = table.text(tmp_path).splitlines()
    assert lines[0] == "| reno, ms | pccl, step | pccl, step, shm | Gloo | step : Gloo |"
    assert lines[2] == "| all_reduce, 1 MiB, 2 peers | 2.0 | 1.0 | 3.0 | 1.50x |"
    assert lines[-1].startswith("In place, float32, TCP over loopback; shm: shared memory. 2 cores")


def test_table_of_other_collectives(tmp_path):
    row = {"op": "broadcast", "peers": 2, "bytes": 1 << 20}
    rows = [
        {**row, "library": "pccl-step", "ms": harness.summary([2.0])},
        {**row, "library": "gloo", "ms": harness.summary([3.0])},
        {**row, "bytes": 1 << 30, "library": "pccl-step", "ms": harness.summary([9.0])},
        {**row, "bytes": 1 << 30, "library": "gloo", "failure": "error"},
    ]
    write(tmp_path, "others-reno", rows)
    lines = table.text(tmp_path).splitlines()
    assert lines[0] == "| reno, ms, pccl in a step : Gloo | 1 MiB | 1 GiB |"
    assert lines[2] == "| broadcast, 2 peers | 2.0 : 3.0, 1.5x |  |"


def test_table_of_memory(tmp_path):
    row = {"what": "in place, step", "peers": 2, "bytes": 1 << 20}
    write(tmp_path, "memory", [{**row, "shm": False, "mib": 3.25}, {**row, "shm": True, "mib": 5.0}])
    lines = table.text(tmp_path).splitlines()
    assert lines[0] == "| memory of an all_reduce, MiB | 2 peers, TCP | 2 peers, shm |"
    assert lines[2] == "| in place, step, 1 MiB | 3.2 | 5.0 |"


def test_table_of_steps_and_codecs_over_wide_areas(tmp_path):
    runs = [
        wan_run("pccl", 60.0),  # of the time before there were modes
        wan_run("pccl", 50.0, 4, mode="strict"),
        wan_run("pccl", 40.0, mode="step", codec=None, algorithm=None),
        wan_run("pccl", 20.0, 4, mode="step", codec=None, algorithm="ring"),
        wan_run("pccl", 10.0, 4, void="the emulator was late", mode="step", codec=None, algorithm=None),
        wan_run("gloo", 100.0),
    ]
    coded = [wan_run("pccl", ms, mode="step", codec=codec) for codec, ms in ((None, 90.0), ("int8", 30.0))]
    rows = [{"settings": {"title": "far"}, "runs": runs}, {"settings": {"title": "thin, codecs"}, "runs": coded}]
    write(tmp_path, "wan", rows)
    write(tmp_path, "quant", quant_rows())
    lines = table.text(tmp_path).splitlines()
    assert lines[0] == "| all_reduce over emulated links, ms | pccl, step | pccl, strict | Gloo | pccl : Gloo |"
    assert lines[2] == "| far, 1 MiB | 40.0 | 50.0 | 100.0 | 2.5x |"
    assert lines[3] == ""  # codecs have a table of their own
    start = lines.index(
        "| codec | encode, GB/s | decode and add, GB/s | 2 peers, loopback, 1 MiB, ms | thin, 1 MiB, ms |"
    )
    assert lines[start + 2 : start + 4] == ["| plain |  |  | 3.0 | 90.0 |", "| int8 | 8.0 | 7.0 | 2.0 | 30.0 |"]


def test_table_of_what_wide_areas_show(tmp_path):
    def of(title, *runs, **settings):
        return {"settings": {"title": title, **settings}, "runs": runs}

    def step(ms, connections=4, **options):
        return wan_run("pccl", ms, connections, mode="step", **options)

    whole = step(50.0, 16, codec=None, algorithm=None)
    whole["cells"][0]["of_plain_tcp"] = 0.95
    whole["plain_tcp"] = {"tool": "iperf3"}
    choices = [{"chosen_ratio": ratio, "ratio": ratio + 0.1} for ratio in (1.0, 1.1)]
    rows = [
        of("fast", whole, wan_run("pccl", 9.0, mode="strict"), step(1.0, void="the emulator was late")),
        of("lossy", step(80.0, 1), step(10.0, 16), loss=0.005),
        of("eight", step(20.0, algorithm=None), step(70.0, algorithm="ring")),
        of("thin", step(90.0, codec=None), step(30.0, codec="int8"), step(1.0, void="late", codec="int4")),
        {**of("sites"), "choices": choices},
    ]
    write(tmp_path, "wan", rows)
    lines = table.text(tmp_path).splitlines()
    start = lines.index("| emulated links |  |  |  |")
    assert lines[start + 2 : start + 7] == [
        "| fast | 1 MiB, step, connections: 16 | 50.0 ms | 0.95 of what iperf3 reaches |",
        "| lossy | 1 MiB, 16 connections | 10.0 ms | 8.0x faster than one |",
        "| eight | 1 MiB, step | 20.0 ms | 3.5x faster than our own ring |",
        "| thin | 1 MiB, int8 | 30.0 ms | 3.0x faster than plain |",
        "| sites | the algorithm that is chosen | 1.10 | of the time of the best, at worst; 1.20 in the samples with"
        " the automatic choice |",
    ]


def test_choice_of_the_emulator_is_compared():
    """An operation takes as long as its slowest peer; the choice is as good as what was chosen."""
    cell = {"op": "all_reduce", "bytes": 4096, "algorithms": ["ring", "direct"]}
    peers = [
        {"seconds": {"auto": [0.1, 0.2], "ring": [0.4, 0.4], "direct": [0.2, 0.2]}, "chosen": "direct", "wrong": 0},
        {"seconds": {"auto": [0.3, 0.1], "ring": [0.1, 0.1], "direct": [0.1, 0.1]}, "chosen": "direct", "wrong": 1},
    ]
    row = choice.row_of(cell, peers)
    assert row["samples_ms"]["auto"] == pytest.approx([300, 200])
    assert row["median_ms"] == pytest.approx({"auto": 250, "ring": 400, "direct": 200})
    assert (row["best"], row["chosen_ratio"], row["wrong"]) == ("direct", 1, 1)
    assert row["ratio"] == pytest.approx(1.25)


def test_plots(tmp_path):
    """Of the results in the tree; of what they lack, of a small one."""
    results, pictures = tmp_path / "results", tmp_path / "pictures"
    shutil.copytree(harness.RESULTS, results)
    write(results, "quant", quant_rows())
    run("plot.py", "--results", results, "--output", pictures)
    made = {path.name: path.read_bytes() for path in pictures.iterdir()}
    assert set(made) == {
        f"{name}.png" for name in ("collectives-reno", "collectives-system", "wan", "quant", "topology")
    }
    for name, content in made.items():
        assert content.startswith(b"\x89PNG\r\n\x1a\n"), name
        width, height = struct.unpack(">II", content[16:24])
        assert min(width, height) >= 300, name
        assert len(content) > 10_000, name


def test_readme_is_made_from_the_results():
    run("table.py", "--check")
