"""Collectives of ours beside those of others, in one run: all libraries are warm and idle while another one is
measured, and take turns. ``python bench/collectives.py --compare gloo,limit --congestion reno``

A sample is the time of one operation in a row of them (as many as fit into about 50 ms), after a barrier and one that
is not timed, at the slowest rank. busbw is as nccl-tests defines it. Libraries: gloo (torch.distributed), mpi (Open MPI
over TCP, where mpicc is installed), limit (a minimal C ring without any protocol, all_reduce only), limit-shm (the
same in memory that all have mapped: what main memory allows). Rows of ours are over TCP, but over shared memory with
-shm, and with as many I/O threads as -threads says.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from harness import (
    BENCH,
    Worker,
    compile_c,
    everywhere,
    in_namespace,
    machine,
    save,
    size_of,
    size_text,
    summary,
)

import pccl

SAMPLE_S = 0.05
ITERATIONS_MAX = 200
OPS = ("all_reduce", "broadcast", "reduce", "all_gather", "reduce_scatter", "all_to_all")


def bus_factor(op: str, size: int) -> float:
    """Bytes on the busiest link for each byte of the buffer."""
    return {
        "all_reduce": 2 * (size - 1) / size,
        "all_gather": (size - 1) / size,
        "reduce_scatter": (size - 1) / size,
        "all_to_all": (size - 1) / size,
    }.get(op, 1.0)


class Library:
    """The ranks of one library."""

    def __init__(self, name: str, size: int, mode: str) -> None:
        self.name = name
        self._master: pccl.MasterNode | None = None
        self.workers = [Worker(command, environment) for command, environment in self._commands(size, mode)]
        for worker in self.workers:
            if worker.hear() != "ready":
                raise SystemExit(f"{name} does not start")

    def _commands(self, size: int, mode: str) -> list[tuple[list[str], dict[str, str]]]:
        if self.name in ("limit", "limit-shm"):
            source = {"limit": "ring.c", "limit-shm": "shared.c"}[self.name]
            program, port = compile_c(BENCH / "limit" / source, "-pthread", "-lrt"), free_port(size)
            return [([str(program), str(rank), str(size), str(port)], {}) for rank in range(size)]
        if self.name == "mpi":
            program = compile_c(BENCH / "mpi" / "collectives.c", compiler="mpicc")
            options = ["--allow-run-as-root", "--oversubscribe", "--mca", "btl", "self,tcp"]
            options += ["--mca", "btl_tcp_if_include", "lo", "--mca", "pml", "ob1", "--bind-to", "none"]
            return [(["mpirun", *options, "-n", str(size), str(program)], {})]
        if self.name.startswith("pccl"):
            self._master = pccl.MasterNode("127.0.0.1:0")
            self._master.run()
            rendezvous = f"127.0.0.1:{self._master.port}"
        else:
            rendezvous = f"127.0.0.1:{free_port(1)}"
        library, *own = self.name.split("-")
        script = [sys.executable, str(BENCH / "peer.py"), library]
        threads = next((part.removeprefix("threads") for part in own if part.startswith("threads")), "1")
        environment = {"PCCL_SHM": "1" if "shm" in own else "0", "PCCL_NTHREADS": threads}
        own_mode = own[0] if own else mode
        codec = next((part for part in own[1:] if part != "shm" and not part.startswith("threads")), "none")
        return [([*script, str(rank), str(size), rendezvous, own_mode, codec], environment) for rank in range(size)]

    def seconds(self, op: str, size_bytes: int, iterations: int) -> float | str:
        """For all iterations, at the slowest rank; or why not."""
        answers = list(everywhere(self.workers, f"{op} {size_bytes} {iterations}"))
        for answer in answers:
            if answer.startswith("error"):
                return answer
        return max(float(answer) for answer in answers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        if self._master is not None:
            self._master.interrupt()


def free_port(count: int) -> int:
    """The first of ``count`` consecutive ports that nobody listens on now."""
    import socket

    for base in range(20000 + hash(count) % 1000, 60000, 97):
        sockets = []
        try:
            for offset in range(count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", base + offset))
            return base
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise SystemExit("no free port")


def iterations_for(seconds: float) -> int:
    return max(1, min(ITERATIONS_MAX, int(SAMPLE_S / max(seconds, 1e-9))))


def measure(libraries: Sequence[Library], op: str, size_bytes: int, size: int, samples: int) -> list[dict[str, Any]]:
    """A row for each library; they take turns, each time another one is first."""
    iterations: dict[str, int] = {}
    failures: dict[str, str] = {}
    for library in libraries:
        first = library.seconds(op, size_bytes, 3)
        if isinstance(first, str):
            failures[library.name] = first
        else:
            iterations[library.name] = iterations_for(first / 3)
    times: dict[str, list[float]] = {name: [] for name in iterations}
    able = [library for library in libraries if library.name in iterations]
    for turn in range(samples):
        for index in range(len(able)):
            library = able[(index + turn) % len(able)]
            took = library.seconds(op, size_bytes, iterations[library.name])
            if isinstance(took, str):
                raise SystemExit(f"{library.name}: {took}")
            times[library.name].append(1e3 * took / iterations[library.name])
    rows: list[dict[str, Any]] = []
    for library in libraries:
        row: dict[str, Any] = {"op": op, "bytes": size_bytes, "peers": size, "library": library.name}
        if library.name in failures:
            row["failure"] = failures[library.name]
        else:
            row["ms"] = summary(times[library.name])
            row["busbw_gbs"] = size_bytes / row["ms"]["median"] / 1e6 * bus_factor(op, size)
            row["iterations"] = iterations[library.name]
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    base = next((row for row in rows if row["library"] == "gloo" and "ms" in row), None)
    for row in rows:
        head = f"{row['op']:>14} {size_text(row['bytes']):>8} x{row['peers']} {row['library']:>15}"
        if "failure" in row:
            print(f"{head}  {row['failure']}")
            continue
        ratio = f"{base['ms']['median'] / row['ms']['median']:6.2f}x gloo" if base else ""
        ms = row["ms"]
        print(
            f"{head} {ms['median']:10.3f} ms [{ms['p10']:.3f} .. {ms['p90']:.3f}] {row['busbw_gbs']:7.2f} GB/s {ratio}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--compare", default="gloo", help="comma-separated: gloo, mpi, limit, limit-shm (default: %(default)s)"
    )
    parser.add_argument("--peers", default="2,4", help="default: %(default)s")
    parser.add_argument("--sizes", default="1K,1M,16M,64M", help="bytes of the whole buffer (default: %(default)s)")
    parser.add_argument("--ops", default="all_reduce", help=f"of {', '.join(OPS)} (default: %(default)s)")
    parser.add_argument("--mode", default="step", help="step, strict, or both, as step,strict (default: %(default)s)")
    parser.add_argument("--transport", default="both", choices=("tcp", "shm", "both"), help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=11)
    parser.add_argument("--congestion", default="system", help="reno, cubic, ... in a namespace of its own; or system")
    parser.add_argument(
        "--output",
        default=None,
        help="result file (default: collectives-*, without all_reduce others-*); none: print only",
    )
    arguments = parser.parse_args()
    if arguments.congestion != "system":
        in_namespace(arguments.congestion)
    print(f"congestion control of the system: {machine()['congestion']}")
    others = [name for name in arguments.compare.split(",") if name]
    if "mpi" in others and shutil.which("mpicc") is None:
        print("mpi is left out: no mpicc")
        others.remove("mpi")
    rows = []
    for size in map(int, arguments.peers.split(",")):
        ways = {"tcp": ("",), "shm": ("-shm",), "both": ("", "-shm")}[arguments.transport]
        names = [*(f"pccl-{mode}{way}" for mode in arguments.mode.split(",") for way in ways), *others]
        libraries = [Library(name, size, "step") for name in names]
        try:
            for op in arguments.ops.split(","):
                for size_bytes in map(size_of, arguments.sizes.split(",")):
                    found = measure(libraries, op, size_bytes, size, arguments.samples)
                    show(found)
                    rows += found
        finally:
            for library in libraries:
                library.close()
    if arguments.output != "none":
        kind = "collectives" if "all_reduce" in arguments.ops else "others"
        save(f"{kind}-{arguments.congestion}", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
