"""`pccl bench`: the flags and columns of nccl-tests over local peers, or over those of a running master."""

from __future__ import annotations

import csv
import io
import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

import click

from pccl.cli.bench_peer import DATATYPES, Row, Settings, run_peers, sizes_of

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE_MAX = 1 << 50  # beyond, NumPy cannot count the bytes of the expected result
COLUMNS = ("size", "count", "type", "redop", "root")
MEASURES = ("time", "algbw", "busbw", "#wrong")


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Bytes, with K, M and G as powers of 1024."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).upper().removesuffix("IB").removesuffix("B")
        unit = text[-1:] if text[-1:] in "KMG" else ""
        try:
            size = int(float(text.removesuffix(unit)) * _UNITS[unit])
        except (ValueError, OverflowError):
            size = -1
        if not 0 <= size <= _SIZE_MAX:
            self.fail(f"{value!r} is not a size such as 8, 64K or 256M", param, ctx)
        return size


@click.group(name="bench", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Measure collectives, with the flags and columns of nccl-tests."""


@command.command("all_reduce")
@click.option("-b", "--minbytes", type=Size(), default="8", show_default=True)
@click.option("-e", "--maxbytes", type=Size(), default="64M", show_default=True)
@click.option("-f", "--stepfactor", type=click.IntRange(2), default=2, show_default=True)
@click.option("-i", "--stepbytes", type=Size(), help="Fixed step in place of the factor.")
@click.option("-n", "--iters", type=click.IntRange(1), default=20, show_default=True)
@click.option("-w", "--warmup_iters", "warmups", type=click.IntRange(0), default=5, show_default=True)
@click.option("-c", "--check", type=click.IntRange(0, 1), default=1, show_default=True, help="Verify the results.")
@click.option("-d", "--datatype", type=click.Choice(tuple(DATATYPES)), default="float", show_default=True)
@click.option("-o", "--op", type=click.Choice(["sum", "prod", "min", "max", "avg"]), default="sum", show_default=True)
@click.option("--peers", default=2, show_default=True, type=click.IntRange(1), help="Peers to start here.")
@click.option("--master", metavar="HOST:PORT", help="Join this run; without it a local master is started.")
@click.option("--world", type=click.IntRange(2), help="Wait for so many peers in all. Default: those started here.")
@click.option("--pool", default=0, type=click.IntRange(0), help="Connections per pair of peers. Default: chosen.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
def all_reduce(
    minbytes: int, maxbytes: int, stepfactor: int, stepbytes: int | None, iters: int, warmups: int, check: int,
    datatype: str, op: str, peers: int, master: str | None, world: int | None, pool: int, as_json: bool, as_csv: bool,
) -> None:  # fmt: skip
    """All-reduce of a range of sizes, out of place and in place.

    Times are the mean over the iterations and the peers, in microseconds; bandwidths are in GB/s. busbw is
    algbw x 2(n-1)/n.
    """
    world = world or peers
    if world < max(2, peers) or (master is None and world != peers):
        raise click.UsageError("a run needs two peers; more than --peers only with --master")
    if maxbytes < minbytes:
        raise click.UsageError("-e is smaller than -b")
    settings = Settings(
        sizes=sizes_of(minbytes, maxbytes, stepfactor, stepbytes, datatype),
        iters=iters, warmups=warmups, check=bool(check), datatype=datatype, op=op, world=world, pool=pool,
    )  # fmt: skip
    table = not as_json and not as_csv
    if table:
        click.echo(header(settings))
    found = []
    with ending_by_sigterm(), closing(run_peers(settings, peers, master)) as rows:
        for row in rows:
            found.append(row)
            if table:
                click.echo(line(row))
    if as_json:
        click.echo(json.dumps({"settings": settings._asdict(), "rows": [asdict(row) for row in found]}, indent=2))
    elif as_csv:
        click.echo(as_csv_text(found), nl=False)
    else:
        wrong = sum(row.out_of_place.wrong + row.in_place.wrong for row in found)
        mean = sum(row.out_of_place.busbw + row.in_place.busbw for row in found) / (2 * len(found))
        click.echo(f"# Out of bounds values : {wrong} {'OK' if wrong == 0 else 'FAILED'}")
        click.echo(f"# Avg bus bandwidth    : {mean:.4g}")
    if any(row.out_of_place.wrong or row.in_place.wrong for row in found):
        raise SystemExit(1)


@contextmanager
def ending_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the peers too, as Ctrl-C does."""

    def end(*_: Any) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def header(settings: Settings) -> str:
    names = f"{'size':>12} {'count':>12} {'type':>8} {'redop':>6} {'root':>5}"
    measures = f"{'time':>10} {'algbw':>8} {'busbw':>8} {'#wrong':>7}"
    units = f"{'(us)':>10} {'(GB/s)':>8} {'(GB/s)':>8} {'':>7}"
    return "\n".join(
        (
            f"# all_reduce: {settings.world} peers, {settings.iters} iterations after {settings.warmups}, strict",
            f"#{'':>48}{'out-of-place':>36} {'in-place':>36}",
            f"#{names[1:]} {measures} {measures}",
            f"#{'(B)':>11} {'(elements)':>12} {'':>8} {'':>6} {'':>5} {units} {units}",
        )
    )


def line(row: Row) -> str:
    sides = (
        f"{m.time_us:>10.2f} {m.algbw:>8.2f} {m.busbw:>8.2f} {m.wrong:>7}" for m in (row.out_of_place, row.in_place)
    )
    return f"{row.size:>12} {row.count:>12} {row.type:>8} {row.redop:>6} {-1:>5} " + " ".join(sides)


def as_csv_text(found: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{side}_{name}" for side in ("out", "in") for name in MEASURES)])
    for row in found:
        measures = [value for m in (row.out_of_place, row.in_place) for value in (m.time_us, m.algbw, m.busbw, m.wrong)]
        writer.writerow([row.size, row.count, row.type, row.redop, -1, *measures])
    return text.getvalue()
