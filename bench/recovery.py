"""How long a death costs: ``python bench/recovery.py``. Four peers all-reduce 64 MiB in place, strictly, in a loop.

kill: one of them gets SIGKILL in the middle. Time zero is when a witness, which holds a connection to it, sees it
close: a killed process's sockets close only when the kernel has freed its memory. Measured at the survivors, the
slowest of them: the error, and the end of the next successful operation.
stop: one of them gets SIGSTOP, in the middle or while all are idle, with a dead timeout of two seconds; time zero is
the signal. Nobody tells them: the error comes when the silence is over.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import threading
import time
from typing import Any

import numpy as np
from harness import Worker, save, summary

import pccl

PEERS = 4
DEAD_S = 2.0


def peer(address: str, witness_port: int, size_bytes: int) -> None:
    """Told ``go``: reduces until something fails, then until something succeeds; answers when that was."""
    witness = socket.create_connection(("127.0.0.1", witness_port))
    comm = pccl.Communicator(address)
    comm.connect()
    while comm.world_size < PEERS:
        if comm.are_peers_pending():
            comm.update_topology()
    data = np.zeros(size_bytes // 4, np.float32)
    for _ in range(3):
        comm.all_reduce(data)
    print("ready", flush=True)
    for line in sys.stdin:
        idle = line.strip() == "idle"
        failed = 0.0
        if idle:
            print("idle", flush=True)
            sys.stdin.readline()
        else:
            comm.all_reduce(data)
            print("running", flush=True)
        while True:
            try:
                comm.all_reduce(data)
                # Without an error too: an operation that all survivors had done when the victim went is committed.
                if comm.world_size < PEERS:
                    break
            except pccl.RankConnectionLostError:
                failed = failed or time.monotonic()
        print(json.dumps({"failed": failed, "succeeded": time.monotonic()}), flush=True)
    witness.close()


def run(how: str, size_bytes: int) -> dict[str, float]:
    """Milliseconds to the error and to the next success."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        master = pccl.MasterNode("127.0.0.1:0", dead_timeout=None if how == "kill" else DEAD_S)
        master.run()
        command = [sys.executable, __file__, "--peer", f"127.0.0.1:{master.port}", str(listener.getsockname()[1])]
        workers, witnesses = [], []
        try:
            for _ in range(PEERS):
                workers.append(Worker([*command, str(size_bytes)]))
                witnesses.append(listener.accept()[0])
            for worker in workers:
                assert worker.hear() == "ready"
            return measure(how, workers, witnesses)
        finally:
            for worker in workers:
                worker.signal(signal.SIGKILL)
                worker.close()
            for witness in witnesses:
                witness.close()
            master.interrupt()


def measure(how: str, workers: list[Worker], witnesses: list[socket.socket]) -> dict[str, float]:
    idle = how == "stop idle"
    for worker in workers:
        worker.say("idle" if idle else "go")
    for worker in workers:
        worker.hear()
    time.sleep(0.02 + 0.1 * np.random.default_rng().random())  # anywhere in an operation
    zero: list[float] = []

    def watch() -> None:
        witnesses[-1].recv(1)
        zero.append(time.monotonic())

    if how == "kill":
        watcher = threading.Thread(target=watch)
        watcher.start()
        workers[-1].signal(signal.SIGKILL)
        watcher.join()
    else:
        workers[-1].signal(signal.SIGSTOP)
        zero.append(time.monotonic())
    if idle:
        time.sleep(DEAD_S + 0.5)
        for worker in workers[:-1]:
            worker.say("go on")
    ends = [json.loads(worker.hear()) for worker in workers[:-1]]
    start = zero[0] + (DEAD_S + 0.5 if idle else 0)
    took = {"success": 1e3 * (max(end["succeeded"] for end in ends) - start)}
    failed = max(end["failed"] for end in ends)
    return {"error": 1e3 * (failed - start), **took} if failed else took


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        peer(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="with SIGKILL; default: %(default)s")
    parser.add_argument("--stops", type=int, default=5, help="with SIGSTOP, each way; default: %(default)s")
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for how, runs in (("kill", arguments.runs), ("stop running", arguments.stops), ("stop idle", arguments.stops)):
        found = [run(how, arguments.bytes) for _ in range(runs)]
        if not found:
            continue
        row: dict[str, Any] = {"how": how, "peers": PEERS, "bytes": arguments.bytes}
        errors = [each["error"] for each in found if "error" in each]
        row["without_error"] = len(found) - len(errors)
        row["error_ms"] = summary(errors or [0.0])
        row["success_ms"] = summary([each["success"] for each in found])
        rows.append(row)
        error, success = row["error_ms"], row["success_ms"]
        print(
            f"{how:>12}: error after {error['median']:.1f} ms [{error['p10']:.1f} .. {error['p90']:.1f}], "
            f"next success after {success['median']:.1f} ms [{success['p10']:.1f} .. {success['p90']:.1f}]; "
            f"{row['without_error']} of {runs} without error",
            flush=True,
        )
    if arguments.output != "none":
        save("recovery", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
