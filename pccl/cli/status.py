"""`pccl status`: members, newcomers, operations in flight, and who waits for whom, as a master sees them."""

from __future__ import annotations

import json
import time

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pccl.cli.query import Status, field, query, rows, seconds, wait_lines
from pccl.errors import PCCLError


@click.command()
@click.argument("master")
@click.option("--json", "as_json", is_flag=True, help="Print the master's answer as JSON; with --watch, one in a line.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--timeout", default=5.0, show_default=True, metavar="SECONDS", help="How long to wait for the answer.")
def command(master: str, as_json: bool, watch: bool, timeout: float) -> None:
    """Show the state of the run whose master is MASTER (host:port)."""
    if as_json and watch:
        watch_as_json(master, timeout)
    elif as_json:
        click.echo(json.dumps(query(master, timeout), indent=2))
    elif not watch:
        Console(markup=False, highlight=False).print(render(query(master, timeout)))
    else:
        watch_until_interrupt(master, timeout)


def watch_as_json(master: str, timeout: float) -> None:
    try:
        while True:
            try:
                click.echo(json.dumps(query(master, timeout)))
            except PCCLError as error:
                click.echo(f"Error: {error}", err=True)
            time.sleep(1)
    except KeyboardInterrupt:
        return


def watch_until_interrupt(master: str, timeout: float) -> None:
    with Live(console=Console(markup=False, highlight=False), refresh_per_second=4) as live:
        try:
            while True:
                try:
                    live.update(render(query(master, timeout)))
                except PCCLError as error:
                    live.update(Text(str(error), style="red"))
                time.sleep(1)
        except KeyboardInterrupt:
            return


def render(status: Status) -> RenderableType:
    members, pending, ops = rows(status, "members"), rows(status, "pending"), rows(status, "ops")
    parts: list[RenderableType] = [
        Text(
            f"run {field(status, 'run')}  epoch {field(status, 'epoch')}  "
            f"{len(members)} members  {len(pending)} pending",
            style="bold",
        )
    ]
    table = Table(box=None, header_style="bold")
    for column in ("peer", "group", "rank", "address", "last heard", "call"):
        table.add_column(column)
    for row in members:
        table.add_row(
            field(row, "id"), field(row, "group"), field(row, "rank"), field(row, "address"),
            seconds(row, "last_heard_ms"), field(row, "call"),
        )  # fmt: skip
    for row in pending:
        table.add_row(field(row, "id"), field(row, "group"), "-", field(row, "address"), "-", "waits for admission")
    parts.append(table)
    parts += listed(rows(status, "subsets"), {"made of group": "group", "subset": "subset", "peers by rank": "members"})
    parts += listed(
        ops, {"op group": "group", **{key: key for key in ("subset", "tag", "seq", "done", "started", "waiting")}}
    )
    parts += [Text(line) for line in wait_lines(status)]
    return Group(*parts)


def listed(found: list[Status], columns: dict[str, str]) -> list[RenderableType]:
    """A table of those, if any, with the fields that the columns name."""
    if not found:
        return []
    table = Table(*columns, box=None, header_style="bold")
    for row in found:
        table.add_row(*(field(row, key) for key in columns.values()))
    return [table]
