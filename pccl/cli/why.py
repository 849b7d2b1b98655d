"""`pccl why`: which peer waits for which, and since when."""

from __future__ import annotations

import click

from pccl.cli.query import query, wait_lines


@click.command()
@click.argument("master")
@click.option("--timeout", default=5.0, show_default=True, metavar="SECONDS", help="How long to wait for the answer.")
def command(master: str, timeout: float) -> None:
    """Print who waits for whom in the run whose master is MASTER (host:port)."""
    for line in wait_lines(query(master, timeout)) or ["nobody waits"]:
        click.echo(line)
