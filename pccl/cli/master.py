"""`pccl master`: runs a master until SIGINT or SIGTERM."""

from __future__ import annotations

from typing import BinaryIO

import click

from pccl.master import announcement, serve
from pccl.master_node import MasterNode

_KEY_MAX = 4096


def key_in(file: BinaryIO) -> bytes:
    """As PCCL_RUN_KEY_FILE is read: line ends at the end, which editors put there, are none of the key."""
    with file:
        content = file.read(_KEY_MAX + 3)
    key = content.rstrip(b"\r\n")
    if not key or len(content) > _KEY_MAX + 2 or len(key) > _KEY_MAX:
        what = "is empty" if not key else f"has more than {_KEY_MAX} bytes"
        raise click.BadParameter(f"{file.name!r} {what}", param_hint="--run-key-file")
    return key


@click.command()
@click.option("--listen", default="0.0.0.0:48148", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@click.option("--run-key-file", type=click.File("rb"), help="Secret that all peers must prove.")
@click.option("--dead-timeout", type=float, metavar="SECONDS", help="Silence after which a peer counts as dead.")
@click.option("--join-timeout", type=float, metavar="SECONDS", help="How long a newcomer may wait for admission.")
def command(listen: str, run_key_file: BinaryIO | None, dead_timeout: float | None, join_timeout: float | None) -> None:
    """Run a master, which decides who is a member of the run."""
    run_key = key_in(run_key_file) if run_key_file else None
    node = MasterNode(listen, run_key=run_key, dead_timeout=dead_timeout, join_timeout=join_timeout)
    click.echo(announcement(listen, node.port))
    serve(node)
