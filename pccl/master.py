"""`python -m pccl.master --listen-address 0.0.0.0:48148`: runs a master until SIGINT or SIGTERM."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from pccl.errors import PCCLError
from pccl.master_node import MasterNode

__all__ = ["MasterNode", "main", "serve"]


def serve(node: MasterNode) -> None:
    """Run ``node`` until a signal ends it."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        node.interrupt()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        node.run()
        node.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        node.close()


def announcement(listen: str, port: int) -> str:
    """``listen`` as it was given, with the port that it has come to."""
    if listen.startswith("["):
        host = listen.partition("]")[0] + "]"
    else:
        host = f"[{listen}]" if listen.count(":") > 1 else listen.partition(":")[0]
    return f"master listening on {host}:{port}"


def main(argv: Sequence[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(prog="pccl_master", description="Runs the master of a run.")
    parser.add_argument("--listen-address", default="0.0.0.0:48148", metavar="HOST:PORT", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        node = MasterNode(arguments.listen_address)
        print(announcement(arguments.listen_address, node.port), flush=True)
        serve(node)
    except PCCLError as error:
        print(f"pccl_master: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
