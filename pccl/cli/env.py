"""`pccl env`: the environment variables, what they mean, and what they are set to."""

from __future__ import annotations

import os

import click

from pccl import _core
from pccl.config import VARIABLES, unknown_variables


@click.command()
@click.option("--markdown", is_flag=True, help="Print the table for the documentation.")
def command(markdown: bool) -> None:
    """Print the environment variables that pccl reads."""
    if markdown:
        click.echo("| variable | default | meaning |\n|---|---|---|")
        for variable in VARIABLES:
            click.echo(f"| `{variable.name}` | {variable.default or '-'} | {variable.meaning} |")
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("variable", "value", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for variable in VARIABLES:
        value = os.environ.get(variable.name, "")
        table.add_row(variable.name, value, variable.default or "-", variable.meaning)
    Console(markup=False, highlight=False).print(table)
    for name, nearest in unknown_variables(os.environ):
        advice = f" (did you mean {nearest}?)" if nearest else ""
        click.echo(f"warning: {name} is set, and pccl doesn't know it{advice}", err=True)
    _core.check_environment()
