"""What the user sees: a table that grows while the run goes on, and a picture of it at the end."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = f"{'step':>6}  {'loss':>6}  {'world size':>10}  {'sent, MB':>9}  {'lost to the fault':>17}"


@dataclass
class History:
    """One run as the reporting peer saw it, and what happened to it at which step."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    worlds: list[int] = field(default_factory=list)
    sent_bytes: int = 0
    lost_s: float = 0.0
    marks: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: dict[str, float]) -> None:
        self.steps.append(int(line["step"]))
        self.losses.append(line["loss"])
        self.worlds.append(int(line["world"]))
        self.sent_bytes = int(line["sent_bytes"])
        self.lost_s = line["lost_s"]

    def smooth_losses(self, width: int) -> list[float]:
        """The mean of the last ``width`` losses, at each step."""
        sums = [0.0]
        for loss in self.losses:
            sums.append(sums[-1] + loss)
        ends = range(1, len(sums))
        return [(sums[end] - sums[max(0, end - width)]) / min(end, width) for end in ends]


class Table:
    """Rows that stay, and below them one live row, which is drawn again in place when stdout is a terminal."""

    def __init__(self, total_steps: int, rows: int) -> None:
        self._every = max(1, total_steps // rows)
        self._live = sys.stdout.isatty()
        print(_HEADER, flush=True)

    def update(self, history: History) -> None:
        stays = history.steps[-1] % self._every == 0
        if not stays and not self._live:
            return
        recent = history.losses[-self._every :]
        lost = f"{1e3 * history.lost_s:.1f} ms" if history.marks else "-"
        row = (
            f"{history.steps[-1]:>6}  {sum(recent) / len(recent):>6.3f}  {history.worlds[-1]:>10}"
            f"  {history.sent_bytes / 1e6:>9.1f}  {lost:>17}"
        )
        self._write(row, stays)

    def note(self, text: str) -> None:
        self._write(f"\x1b[1m{text}\x1b[0m" if self._live else text, stays=True)

    def _write(self, row: str, stays: bool) -> None:
        erase = "\r\x1b[K" if self._live else ""
        print(f"{erase}{row}", end="\n" if stays else "", flush=True)


def plot(history: History, path: Path) -> None:
    """Loss and world size over the steps, with a mark where a peer was killed and where one joined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 5), height_ratios=(3, 1), layout="constrained"
    )
    top.plot(history.steps, history.losses, color="0.8", linewidth=0.8, label="each step")
    top.plot(history.steps, history.smooth_losses(max(1, len(history.steps) // 50)), color="C0", label="smoothed")
    top.set_ylabel("loss, nats a character")
    top.set_title("A training run that loses a peer and takes a new one in")
    bottom.step(history.steps, history.worlds, where="post", color="C2")
    bottom.set_ylim(0, max(history.worlds) + 1)
    bottom.set_ylabel("world size")
    bottom.set_xlabel("step")
    for axes in (top, bottom):
        for step, _ in history.marks:
            axes.axvline(step, color="C3", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    for step, text in history.marks:
        top.annotate(text, (step, top.get_ylim()[1]), xytext=(4, -4), textcoords="offset points", va="top", color="C3")
    top.legend(loc="upper right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
