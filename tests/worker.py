"""The child of cluster.Peer: runs the functions that the test sends, one after the other, in one process.

A function arrives as source text and gets ``peer`` (a Context that outlives the call) and its arguments. Names that it
may use are those of this module. Requests and answers are JSON, one a line, on the descriptors of stdin and stdout;
what the function prints goes to stderr.
"""

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import signal
import threading
import time

import numpy as np

import pccl

__all__ = ["Context", "contextlib", "digest", "gc", "hashlib", "np", "os", "pccl", "signal", "threading", "time"]

_PR_SET_PDEATHSIG = 1


def digest(*arrays):
    """One text for the bytes of all these arrays."""
    made = hashlib.blake2b(digest_size=16)
    for array in arrays:
        made.update(np.ascontiguousarray(array).view(np.uint8).data)
    return made.hexdigest()


class Context:
    """What a test's functions keep between calls."""

    def __init__(self, answers):
        self._answers = answers
        self._lock = threading.Lock()
        self.comm = None

    def answer(self, **values):
        with self._lock:
            self._answers.write(json.dumps(values) + "\n")
            self._answers.flush()

    def emit(self, event, **values):
        """Tell the test something before the function ends."""
        self.answer(event=event, **values)

    def connect(self, master, n_attempts=1, **options):
        self.comm = pccl.Communicator(master, **options)
        self.comm.connect(n_attempts)

    def gather(self, world, timeout=30.0):
        """Admit newcomers until ``world`` members are there, of all groups."""
        deadline = time.monotonic() + timeout
        while self.comm.get_attribute(pccl.Attribute.GLOBAL_WORLD_SIZE) < world:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{world} members are not there; {self.comm.members}")
            if self.comm.are_peers_pending():
                self.comm.update_topology()
            else:
                time.sleep(0.002)


def failure(error):
    record = getattr(error, "record", None)
    return {
        "type": type(error).__name__,
        "text": str(error),
        "code": int(record.code) if record is not None else None,
        "record": vars(record) if record is not None else {},
    }


def run(context, source, name, arguments):
    namespace = {key: globals()[key] for key in __all__}
    exec(compile(source, f"<{name}>", "exec"), namespace)
    return namespace[name](context, **arguments)


def main():
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # never outlives the test
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "r")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    context = Context(answers)
    for line in requests:
        request = json.loads(line)
        try:
            result = run(context, request["source"], request["name"], request["arguments"])
            context.answer(result=result)
        except (Exception, KeyboardInterrupt) as error:
            context.answer(error=failure(error))
    if context.comm is not None:
        context.comm.close()


if __name__ == "__main__":
    main()
