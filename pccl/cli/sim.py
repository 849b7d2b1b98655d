"""`pccl sim`: runs the production protocol machines under a virtual clock and a seeded network, many schedules."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from pccl import _core

CHUNK = 50
_SEED_MAX = 2**64 - 1
LAWS = {
    "L1": "no call blocks for ever",
    "L2": "all or nothing",
    "L3": "bit parity",
    "L4": "epochs only grow",
    "L5": "the exact divisor",
}
Job = tuple[int, int, int, int, int, bool, bool]
Crash = tuple[int, int, int, int]  # seed, peers, first event, ops


def parse_peers(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    try:
        bounds = int(low), int(high if dash else low)
    except ValueError:
        bounds = (0, 0)
    if not 2 <= bounds[0] <= bounds[1] <= 64:
        raise click.BadParameter("a number or a range within 2-64, such as 4 or 2-8", param_hint="--peers")
    return bounds


def run_chunk(job: Job) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Sums of the reports of some seeds, and those that broke a law."""
    first, count, peers_min, peers_max, ops, faults, io_threads = job
    totals = {"schedules": 0, "events": 0, "ops_committed": 0, "ops_aborted": 0, "epochs": 0, "virtual_ns": 0}
    broken = []
    for seed in range(first, first + count):
        report = _core.sim_run(seed, peers_min, peers_max, ops, faults, io_threads=io_threads)
        totals["schedules"] += 1
        for key in totals.keys() - {"schedules"}:
            totals[key] += report[key]
        if not report["ok"]:
            broken.append(report)
    return totals, broken


def run_crashes(job: Crash) -> tuple[int, list[dict[str, Any]]]:
    """Schedules run, and those that broke a law: each peer crashes after each of CHUNK events from the first."""
    seed, peers, first, ops = job
    broken = []
    for event in range(first, first + CHUNK):
        for victim in range(1, peers + 1):
            report = _core.sim_run(seed, peers, peers, ops, False, crash_event=event, crash_peer=victim)
            if not report["ok"]:
                broken.append({**report, "event": event, "victim": victim})
    return CHUNK * peers, broken


def crash_everywhere(seeds: range, peers_min: int, peers_max: int, ops: int, jobs: int) -> None:
    """Every peer after every event of schedules without other faults; prints and exits."""
    work: list[Crash] = []
    for seed in seeds:
        for peers in range(peers_min, peers_max + 1):
            events = _core.sim_run(seed, peers, peers, ops, False)["events"]
            work += [(seed, peers, first, ops) for first in range(1, events, CHUNK)]
    schedules, broken = 0, []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for count, failures in pool.imap_unordered(run_crashes, work):
            schedules += count
            broken += failures
    click.echo(f"{schedules:,} schedules: each of {peers_min}-{peers_max} peers crashed after each event")
    for report in sorted(broken, key=lambda each: (each["seed"], each["event"]))[:5]:
        where = f"seed {report['seed']}, {report['peers']} peers, peer {report['victim']} after event {report['event']}"
        click.echo(f"{where}: {report['verdict']}")
    click.echo(f"{len(broken)} broke a law" if broken else "all laws kept")
    sys.exit(1 if broken else 0)


def results(jobs_list: list[Job], jobs: int) -> Iterator[tuple[dict[str, int], list[dict[str, Any]]]]:
    if jobs == 1 or len(jobs_list) == 1:
        yield from map(run_chunk, jobs_list)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(jobs_list))) as pool:
        yield from pool.imap_unordered(run_chunk, jobs_list)


@click.command()
@click.option("--seeds", default=1000, show_default=True, type=click.IntRange(1), help="How many schedules.")
@click.option("--seed-start", default=0, show_default=True, type=click.IntRange(0, _SEED_MAX), help="The first seed.")
@click.option("--peers", default="2-8", show_default=True, help="A number, or a range from which the seed picks.")
@click.option(
    "--ops",
    default=20,
    show_default=True,
    type=click.IntRange(1, 2**32 - 1),
    help="Steps of a peer: some operations each.",
)
@click.option("--no-faults", is_flag=True, help="Delays only.")
@click.option("--io-threads", is_flag=True, help="Payload moves while a peer goes on, as with PCCL_NTHREADS.")
@click.option("--jobs", default=os.cpu_count() or 1, type=click.IntRange(1), help="Processes. Default: one a core.")
@click.option(
    "--exhaustive", is_flag=True, help="No other faults than this: each peer crashes after each event of each schedule."
)
@click.option(
    "--trace", type=click.IntRange(0, _SEED_MAX), metavar="SEED", help="Run this seed alone and print its event log."
)
def command(
    seeds: int, seed_start: int, peers: str, ops: int, no_faults: bool, io_threads: bool, jobs: int, exhaustive: bool,
    trace: int | None,
) -> None:  # fmt: skip
    """Check the laws over many seeded schedules of faults. Exit code 1 if one breaks."""
    peers_min, peers_max = parse_peers(peers)
    if seed_start + seeds - 1 > _SEED_MAX:
        raise click.UsageError(f"the last seed would be {seed_start + seeds - 1}, and the largest is {_SEED_MAX}")
    faults = not no_faults
    if exhaustive:
        crash_everywhere(range(seed_start, seed_start + seeds), peers_min, peers_max, ops, jobs)
    if trace is not None:
        report = _core.sim_run(trace, peers_min, peers_max, ops, faults, trace=True, io_threads=io_threads)
        click.echo(report["log"], nl=False)
        click.echo(summary(report))
        sys.exit(0 if report["ok"] else 1)

    chunk = max(1, min(CHUNK, seeds // (jobs * 4) or 1))
    end = seed_start + seeds
    work = [
        (s, min(chunk, end - s), peers_min, peers_max, ops, faults, io_threads) for s in range(seed_start, end, chunk)
    ]
    totals: dict[str, int] = {}
    broken: list[dict[str, Any]] = []
    started = time.monotonic()
    for sums, failures in results(work, jobs):
        for key, value in sums.items():
            totals[key] = totals.get(key, 0) + value
        broken += failures
    elapsed = time.monotonic() - started

    click.echo(
        f"{totals['schedules']} schedules of {peers} peers x {ops} ops in {elapsed:.1f} s: "
        f"{totals['schedules'] / elapsed * 60:,.0f} schedules a minute"
    )
    click.echo(
        f"{totals['events']:,} events, {totals['ops_committed']:,} ops committed, {totals['ops_aborted']:,} aborted, "
        f"{totals['epochs']:,} epochs, {totals['virtual_ns'] / 1e9:,.0f} virtual seconds"
    )
    for law, words in LAWS.items():
        count = sum(report["verdict"].startswith(law) for report in broken)
        click.echo(f"{law} {words}: {f'BROKEN in {count} schedules' if count else 'kept'}")
    if broken:
        click.echo(f"{len(broken)} schedules failed; the first:")
        first = min(broken, key=lambda report: int(report["seed"]))
        explain(first, peers, peers_min, peers_max, ops, faults, io_threads)
        sys.exit(1)


def summary(report: dict[str, Any]) -> str:
    verdict = "all laws kept" if report["ok"] else report["verdict"]
    return f"seed {report['seed']}: {report['peers']} peers, {report['events']} events: {verdict}"


def explain(
    report: dict[str, Any], peers: str, peers_min: int, peers_max: int, ops: int, faults: bool, io_threads: bool
) -> None:
    """The first failure once more, with its event log."""
    again = _core.sim_run(report["seed"], peers_min, peers_max, ops, faults, trace=True, io_threads=io_threads)
    click.echo(again["log"], nl=False)
    click.echo(summary(report))
    if again["trace_hash"] != report["trace_hash"]:
        click.echo("the schedule did not repeat itself: the machines are not deterministic")
    flags = ("" if faults else " --no-faults") + (" --io-threads" if io_threads else "")
    options = f"--peers {peers} --ops {ops}{flags}"
    click.echo(f"again: pccl sim {options} --trace {report['seed']}")
