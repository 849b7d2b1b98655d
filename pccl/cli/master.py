"""`pccl master`: runs a master until SIGINT or SIGTERM."""

from __future__ import annotations

import os

import click

from pccl.master import announcement, serve
from pccl.master_node import MasterNode


@click.command()
@click.option("--listen", default="0.0.0.0:48148", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@click.option("--run-key-file", type=click.Path(exists=True, dir_okay=False), help="Secret that all peers must prove.")
@click.option("--dead-timeout", type=float, metavar="SECONDS", help="Silence after which a peer counts as dead.")
@click.option("--join-timeout", type=float, metavar="SECONDS", help="How long a newcomer may wait for admission.")
def command(listen: str, run_key_file: str | None, dead_timeout: float | None, join_timeout: float | None) -> None:
    """Run a master, which decides who is a member of the run."""
    if run_key_file:
        os.environ["PCCL_RUN_KEY_FILE"] = run_key_file
    node = MasterNode(listen, dead_timeout=dead_timeout, join_timeout=join_timeout)
    click.echo(announcement(listen, node.port))
    serve(node)
