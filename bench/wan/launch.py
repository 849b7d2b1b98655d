"""Programs in the nodes of an emulated network: a master, and a peer in each of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from .emulator import Wan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MASTER_PORT = 5200  # none that the system gives to a connection of its own choice


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "GLOO_SOCKET_IFNAME": "wan0",
        "OMP_NUM_THREADS": "1",
        "PCCL_SHM": "0",
    }


def start_master(wan: Wan) -> subprocess.Popen[Any]:
    """Beside peer 0."""
    command = [sys.executable, "-m", "pccl.master", "--listen-address", f"{wan.addresses[0]}:{MASTER_PORT}"]
    process = wan.run_in(0, command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    if not process.stdout.readline().startswith("master listening"):
        raise RuntimeError("the master did not start")
    return process


def stop_master(master: subprocess.Popen[Any]) -> None:
    master.terminate()
    master.communicate()


def run_peers(wan: Wan, program: str, settings: dict[str, Any], limit_s: float) -> tuple[list[list[Any]], str | None]:
    """``program`` of this folder in each node, told the settings and what is its own: each one's lines of JSON, as far
    as it came, and what went wrong."""
    common = {
        **settings,
        "world": wan.nodes,
        "master": f"{wan.addresses[0]}:{MASTER_PORT}",
        "timeout_s": limit_s,
        "epoch_s": time.monotonic(),
    }
    with contextlib.ExitStack() as files:
        outputs, errors = [
            [files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(wan.nodes)] for _ in range(2)
        ]
        peers = []
        for rank in range(wan.nodes):
            own = json.dumps({**common, "rank": rank, "address": wan.addresses[rank]})
            command = [sys.executable, str(HERE / program), own]
            peers.append(wan.run_in(rank, command, stdout=outputs[rank], stderr=errors[rank], env=environment()))
        failure = _wait_for(peers, limit_s)
        for peer in peers:
            peer.kill()
            peer.wait()
        lines = [[json.loads(line) for line in _text(file).splitlines() if line.startswith("{")] for file in outputs]
        if failure is not None:
            failure += "".join(f"\npeer {rank}: {_text(file)[-500:]}" for rank, file in enumerate(errors))
    return lines, failure


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _wait_for(peers: list[subprocess.Popen[Any]], limit_s: float) -> str | None:
    """None when all have ended well; the first that fails ends the wait."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        codes = [peer.poll() for peer in peers]
        if any(code not in (None, 0) for code in codes):
            return f"exit codes {codes}"
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)
    return f"not done after {limit_s:.0f} s"
