"""The examples, in a short mode."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
QUICKSTART = [sys.executable, str(EXAMPLES / "quickstart.py"), "--batch", "16"]


@pytest.fixture
def charlm(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from charlm import corpus, model

    return corpus, model


def test_gradients_are_right(charlm):
    _, model = charlm
    rng = np.random.default_rng(1)
    flat = model.initial(seed=1).astype(np.float64)
    shard = rng.integers(0, model.CODES, 2000).astype(np.uint8)
    contexts, targets = model.batch(shard, 16, rng)
    grads = np.zeros_like(flat)
    losses = list(model.backward(flat, grads, contexts, targets))
    assert losses == [pytest.approx(model.loss(flat, contexts, targets))] * len(model.GROUPS)
    bounds = model.group_bounds()
    for index in [int(rng.integers(a, b)) for a, b in bounds for _ in range(5)]:
        step = np.zeros_like(flat)
        step[index] = 1e-6
        slope = (model.loss(flat + step, contexts, targets) - model.loss(flat - step, contexts, targets)) / 2e-6
        assert grads[index] == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_it_learns(charlm):
    corpus, model = charlm
    shard = corpus.shard(corpus.load(max_bytes=200_000), 0, 2)
    flat, grads = model.initial(seed=1), np.zeros(model.SIZE, np.float32)
    optimizer, rng = model.Adam(model.SIZE), np.random.default_rng(0)
    losses = []
    for step in range(1, 61):
        loss, *_ = model.backward(flat, grads, *model.batch(shard, 32, rng))
        losses.append(loss)
        optimizer.update(flat, grads, step, model.rate(step, 60))
    assert losses[0] > 4
    assert np.mean(losses[-10:]) < 3.5


def test_shards_are_apart_and_whole(charlm):
    corpus, _ = charlm
    codes = np.arange(300_000) % 97
    shards = [corpus.shard(codes, index, 3) for index in range(3)]
    assert sum(map(len, shards)) == len(codes)
    assert corpus.text(corpus.load(max_bytes=10_000)).isprintable() is False  # it has line ends


def test_quickstart(tmp_path):
    picture = tmp_path / "run.png"
    done = subprocess.run(
        [*QUICKSTART, "--steps", "60", "--picture", str(picture)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["step", "loss", "world", "size", "sent,", "MB", "lost", "to", "the", "fault"]
    rows = [line.split() for line in lines if line[:6].strip().isdigit()]
    worlds = [int(row[2]) for row in rows]
    assert (worlds[0], min(worlds), worlds[-1]) == (4, 3, 4)
    assert float(rows[-1][1]) < float(rows[0][1])
    assert any("peer 3 is killed with SIGKILL" in line for line in lines)
    assert any("peer 4 joins at step" in line for line in lines)
    digests = [line.split()[-1] for line in lines if ": step 60, weights " in line]
    assert len(digests) == 4
    assert len(set(digests)) == 1
    assert "all 4 hold the same weights, bit for bit" in lines
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_quickstart_takes_its_processes_with_it(number):
    with subprocess.Popen([*QUICKSTART, "--steps", "100000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        try:
            time.sleep(0.1)
            run.stdout.readline()
            children = psutil.Process(run.pid).children(recursive=True)
            deadline = time.monotonic() + 10
            while len(children) < 6 and time.monotonic() < deadline:
                children = psutil.Process(run.pid).children(recursive=True)
            assert len(children) == 6  # a master, four peers, a newcomer that waits
            run.send_signal(number)
            assert run.wait(20) == 130
            assert [child for child in children if child.is_running()] == []
        finally:
            run.kill()


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda script: script.name)
def test_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK) or script.name == "setup.sh"
