"""The benchmarks run, and their results hold what they say; README's figures are made from them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import harness  # noqa: E402
import table  # noqa: E402
from wan import wan_peer  # noqa: E402


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


@pytest.mark.serial
def test_collectives(tmp_path):
    path = tmp_path / "result.json"
    options = ("--peers", "2", "--sizes", "1K", "--samples", "3", "--mode", "step,strict")
    run("collectives.py", *options, "--compare", "limit", "--ops", "all_reduce,all_gather", "--output", path)
    rows = saved(path)["rows"]
    measured = {(row["op"], row["library"]) for row in rows if "ms" in row}
    ways = ("step", "step-shm", "strict", "strict-shm")
    ours = {(op, f"pccl-{way}") for op in ("all_reduce", "all_gather") for way in ways}
    assert measured == ours | {("all_reduce", "limit")}
    assert all(len(row["ms"]["samples"]) == 3 and row["ms"]["median"] > 0 for row in rows if "ms" in row)
    assert [row["failure"] for row in rows if "ms" not in row] == ["error only all_reduce"]


@pytest.mark.serial
def test_connect_state_and_recovery(tmp_path):
    run("connect.py", "--peers", "2", "--runs", "2", "--output", tmp_path / "connect.json")
    run("state.py", "--peers", "2", "--runs", "2", "--bytes", 1 << 20, "--output", tmp_path / "state.json")
    run("recovery.py", "--runs", "1", "--stops", "0", "--bytes", 1 << 20, "--output", tmp_path / "recovery.json")
    assert [row["peers"] for row in saved(tmp_path / "connect.json")["rows"]] == [2]
    assert [row["what"] for row in saved(tmp_path / "state.json")["rows"]] == ["same", "differ"]
    (row,) = saved(tmp_path / "recovery.json")["rows"]
    assert row["success_ms"]["median"] > 0


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
    """World 2, rank 0: its data are 1, 2, 3, and the sums 3, 5, 7."""

    def all_reduce(data):
        data *= 2
        data += 1
        data[0] *= 1.01
        data[1] = np.nan

    cell = {"bytes": 400, "samples": 2, "warmups": 1}
    assert wan_peer.measure(all_reduce, 0, 2, cell)["wrong"] == 3 * 2
    found = wan_peer.measure(all_reduce, 0, 2, cell, wan_peer.CODEC_TOLERANCE)
    assert found["wrong"] == 3 * 1
    assert len(found["seconds"]) == 2


def test_table(tmp_path):
    machine = {"cpu": "Z80", "cores": 2, "memory_gib": 1, "kernel": "6.18", "congestion": "reno"}
    row = {"op": "all_reduce", "peers": 2, "bytes": 1 << 20}
    rows = [
        {**row, "library": "pccl-step", "ms": harness.summary([2.0])},
        {**row, "library": "gloo", "ms": harness.summary([3.0])},
    ]
    result = {"what": "collectives-reno", "machine": machine, "commit": "abc", "date": "2026-01-01", "rows": rows}
    (tmp_path / "collectives-reno-x-2.json").write_text(json.dumps(result))
    assert table.text(tmp_path).splitlines() == [
        "| reno, ms | pccl, step | Gloo | step : Gloo |",
        "| --- | --- | --- | --- |",
        "| all_reduce, 1 MiB, 2 peers | 2.0 | 3.0 | 1.50x |",
        "",
        "In place, float32, TCP over loopback. 2 cores (Z80), Linux 6.18, reno, commit abc, 2026-01-01.",
    ]
    readme = tmp_path / "README.md"
    readme.write_text(f"head\n{table.START}\nold\n{table.END}\ntail\n")
    run("table.py", "--results", tmp_path, "--readme", readme)
    assert "1.50x" in readme.read_text()
    assert readme.read_text().startswith("head\n")
    assert readme.read_text().endswith("\ntail\n")
    run("table.py", "--check", "--results", tmp_path, "--readme", readme)


def test_readme_is_made_from_the_results():
    run("table.py", "--check")
