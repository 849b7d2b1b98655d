"""A master and four peers train a character model on real text. At one third of the steps a peer is killed with
SIGKILL, at two thirds a new one joins. At the end all must hold the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from charlm.report import History, Table, plot

EXAMPLES = Path(__file__).resolve().parent
PATIENCE_S = 60.0  # without a word from anybody for so long, the run has failed
STOP = "signal"  # the name under which a signal's handler speaks


class Processes:
    """The child processes of this run; leaving the block ends those that are left."""

    def __init__(self) -> None:
        self.lines: queue.SimpleQueue[tuple[str, dict[str, Any] | None]] = queue.SimpleQueue()
        self._children: list[subprocess.Popen[str]] = []
        # One thread a peer: the peers are the parallelism.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._environment = {**os.environ, **threads, "PYTHONPATH": str(EXAMPLES)}

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        self._children.append(child)
        return child

    def start_master(self) -> str:
        """Its address; the system chooses the port."""
        master = self.start("-m", "pccl.master", "--listen-address", "127.0.0.1:0")
        assert master.stdout is not None
        line = master.stdout.readline()
        if not line:
            raise SystemExit("the master did not start")
        return line.split()[-1]

    def start_peer(self, name: str, *arguments: object) -> subprocess.Popen[str]:
        peer = self.start("-m", "charlm.peer", *arguments)
        threading.Thread(target=self._read, args=(name, peer), daemon=True).start()
        return peer

    def _read(self, name: str, peer: subprocess.Popen[str]) -> None:
        assert peer.stdout is not None
        for line in peer.stdout:
            self.lines.put((name, json.loads(line)))
        self.lines.put((name, None))

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # The master was the first; it goes last, so that the peers can take their leave.
        patience_s = 5.0 if kind is None else 0.0
        for child in self._children[1:]:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()  # a peer that has finished leaves the run then
        for child in self._children[1:]:
            wait_or_kill(child, patience_s)
        for child in self._children[:1]:
            child.terminate()
            wait_or_kill(child, patience_s)


def wait_or_kill(child: subprocess.Popen[str], patience_s: float) -> None:
    try:
        child.wait(patience_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def say(peer: subprocess.Popen[str], line: str) -> None:
    assert peer.stdin is not None
    peer.stdin.write(line + "\n")
    peer.stdin.flush()


class Run:
    """Watches the peers, kills one, adds one, and collects how each of them ended."""

    def __init__(self, processes: Processes, arguments: argparse.Namespace) -> None:
        self.processes = processes
        self.steps = arguments.steps
        self.history = History()
        self.table = Table(arguments.steps, rows=24)
        self.ends: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        master = processes.start_master()
        count = arguments.peers
        numbers = (count + 1, count, arguments.steps, arguments.batch)
        self.peers = {
            f"peer {shard}": processes.start_peer(f"peer {shard}", master, shard, *numbers, *flags)
            for shard, flags in [*((i, ()) for i in range(count)), (count, ("--wait",))]
        }
        self.victim, self.newcomer = f"peer {count - 1}", f"peer {count}"
        self.killed = self.called = False

    def watch(self) -> None:
        """Returns when every peer has ended, well or not."""
        living = set(self.peers)
        while living - set(self.ends):
            try:
                name, line = self.processes.lines.get(timeout=PATIENCE_S)
            except queue.Empty:
                raise SystemExit(f"no word from {', '.join(sorted(living - set(self.ends)))}") from None
            if name == STOP:
                raise SystemExit(130)
            if line is None:
                living.discard(name)
                if name not in self.ends and name != self.victim:
                    self.failed.append(name)
            elif line["event"] == "end":
                self.ends[name] = line
            elif line["event"] == "joined" and name == self.newcomer:
                self._on_newcomer(line)
            elif line["event"] == "step" and name == "peer 0":
                self._on_step(line)

    def _on_step(self, line: dict[str, Any]) -> None:
        self.history.add(line)
        self.table.update(self.history)
        step = line["step"]
        if not self.killed and step >= self.steps // 3:
            self.peers[self.victim].send_signal(signal.SIGKILL)
            self.killed = True
            self.history.marks.append((step, "killed"))
            self.table.note(f"        {self.victim} is killed with SIGKILL; the others go on")
        if not self.called and step >= 2 * self.steps // 3:
            say(self.peers[self.newcomer], "join")
            self.called = True

    def _on_newcomer(self, line: dict[str, Any]) -> None:
        self.history.marks.append((line["step"], "joined"))
        megabytes = line["received_bytes"] / 1e6
        self.table.note(f"        {self.newcomer} joins at step {line['step']}, and gets {megabytes:.1f} MB of state")


def report(run: Run, picture: Path, duration_s: float) -> int:
    """Prints how it ended; the exit status."""
    expected = set(run.peers) - {run.victim}
    print()
    for name in sorted(run.ends):
        print(f"{name}: step {run.ends[name]['step']}, weights {run.ends[name]['digest']}")
    if run.failed or set(run.ends) != expected:
        missing = sorted(expected - set(run.ends)) or run.failed
        print(f"FAILED: {', '.join(missing)} did not end as it should")
        return 1
    if len({end["digest"] for end in run.ends.values()}) != 1:
        print("FAILED: the weights differ")
        return 1
    end = run.ends["peer 0"]
    first, last = run.history.losses[0], end["held_out_loss"]
    print(f"all {len(run.ends)} hold the same weights, bit for bit")
    print(f"loss {first:.3f} at the start, {last:.3f} on text that nobody was trained on; {duration_s:.0f} s")
    print(f"the fault cost {1e3 * run.history.lost_s:.1f} ms\n\nthe model writes:\n{end['sample']}\n")
    plot(run.history, picture)
    print(f"picture: {picture}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="quickstart", description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=256, help="examples a peer and step (default: %(default)s)")
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--picture", type=Path, default=EXAMPLES / "out" / "quickstart.png")
    arguments = parser.parse_args()
    if arguments.peers < 3 or arguments.steps < 30:
        parser.error("at least 3 peers and 30 steps")

    start = time.monotonic()
    with Processes() as processes:
        # A handler that raised could do so between a child's start and the note of it, and leave it running.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: processes.lines.put((STOP, None)))
        run = Run(processes, arguments)
        run.watch()
    return report(run, arguments.picture, time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(main())
