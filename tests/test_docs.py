"""What the documentation says is there: codes, commands, variables, links, and README's own examples."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster
from worker import digest

import pccl
from pccl.cli.app import COMMANDS
from pccl.config import VARIABLES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def result_list():
    """(C name, number, upper-case name, text) of every code in pccl.h."""
    header = (ROOT / "csrc" / "pccl.h").read_text()
    return re.findall(r'X\((pccl\w+), (\d+), (\w+), "([^"]*)"\)', header)


def blocks(text, language):
    parts = re.split(r"^```(.*)\n", text, flags=re.MULTILINE)  # text, language, block, "", text, language, ...
    return [block for found, block in zip(parts[1::4], parts[2::4], strict=True) if found == language]


def anchors(text):
    """As GitHub makes them of headings, and those written out."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize(("name", "number", "upper", "text"), result_list())
def test_each_code_has_its_anchor(name, number, upper, text):
    page = (ROOT / "docs" / "errors.md").read_text()
    assert f'<a id="{upper.lower()}"></a>\n## {upper} ({number})\n\n`{name}`: {text}.' in page
    section = page.partition(f'<a id="{upper.lower()}">')[2].partition("<a id=")[0]
    for heading in ("**What is lost.** ", "**What to do.** "):
        answer = section.partition(heading)[2].partition("\n\n")[0]
        assert answer.strip().endswith(".")


@pytest.mark.parametrize("upper", ["TIMEOUT", "MISMATCH", "RANK_CONNECTION_LOST"])
def test_codes_that_end_an_operation_for_all_tell_of_late_callers(upper):
    page = (ROOT / "docs" / "errors.md").read_text()
    section = page.partition(f'<a id="{upper.lower()}">')[2].partition("<a id=")[0]
    assert "(#a-verdict-that-comes-before-the-call)" in section


def test_no_code_but_those_of_the_header():
    page = (ROOT / "docs" / "errors.md").read_text()
    assert re.findall(r"^## (\w+) \((\d+)\)$", page, re.MULTILINE) == [(u, n) for _, n, u, _ in result_list()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_are_real(page):
    known = {variable.name for variable in VARIABLES}
    header = (ROOT / "csrc" / "pccl.h").read_text()
    mentioned = set(re.findall(r"\bPCCL_[A-Z_]*[A-Z]\b", page.read_text()))
    assert {name for name in mentioned - known if not re.search(rf"\b{name}\b", header)} <= {"PCCL_MUTANT"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_real(page):
    commands = re.findall(r"(?:^|`)pccl ([a-z]+)\b", page.read_text(), re.MULTILINE)
    assert set(commands) <= {name.split()[0] for name in COMMANDS}


def test_shown_options_are_real():
    (shown,) = (block for block in blocks(README, "") if "pccl master" in block)
    for line in shown.splitlines():
        words = shlex.split(line.partition("#")[0])
        group = 3 if words[1] == "bench" else 2
        command = [sys.executable, "-m", "pccl.cli", *words[1:group], "--help"]
        page = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in page, line


def test_place_for_the_figures():
    assert README.index("<!-- bench:start -->") < README.index("<!-- bench:end -->")


def test_the_c_command_builds_a_program(tmp_path):
    (command,) = (block for block in blocks(README, "") if block.startswith("cc "))
    (tmp_path / "program.c").write_text("#include <pccl.h>\nint main(void) { return (int) pcclInit(); }\n")
    python = Path(sys.executable).parent
    environment = {"PATH": f"{python}:/usr/local/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": pccl.get_library_dir()}
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=environment, check=True, timeout=60)
    subprocess.run(["./a.out"], cwd=tmp_path, env=environment, check=True, timeout=10)


def run_readme(peer, source, steps, slow_from=None, world=1):
    """README's loop. The batches end ``steps`` revisions after ``world`` members were there for the first time, so that
    all peers stop at the same one. From the revision ``slow_from`` on the others have to wait for this peer."""
    names = {}
    end = []

    def batches():
        while not end or names["state"].revision < end[0]:
            peer.emit("step", revision=names["state"].revision)
            time_of_a_batch = 0.002
            __import__("time").sleep(time_of_a_batch)
            yield names["state"].revision

    def compute(weights, batch, gradient):
        if not end and names["comm"].world_size >= world:
            end.append(names["state"].revision + steps)
        gradient[:] = 1 + batch % 3
        if slow_from is not None and batch >= slow_from:
            peer.emit("slow")
            __import__("time").sleep(0.5)

    names.update(batches=batches, compute=compute)
    exec(source, names)
    return names["state"].revision, digest(names["weights"]), float(np.mean(names["weights"]))


def readme_source(cluster):
    (source,) = blocks(README, "python")
    assert "10.0.0.1:48148" in source
    return source.replace("10.0.0.1:48148", cluster.address)


def test_the_loop_of_the_readme():
    """One peer, then a second and a third: all end with the same weights."""
    with Cluster() as cluster:
        peers = []
        for _ in range(3):
            peers.append(cluster.spawn().start(run_readme, source=readme_source(cluster), steps=20, world=3))
            for _ in range(5):
                peers[0].event("step")
        answers = [peer.wait() for peer in peers]
        assert answers[0][0] >= 20
        assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("world", [2, 3])
def test_the_loop_of_the_readme_outlives_a_peer(world):
    """The survivors wait for it in the all-reduce, and go on without it; a single one too."""
    with Cluster() as cluster:
        victim, *survivors = (cluster.spawn() for _ in range(world))
        victim.start(run_readme, source=readme_source(cluster), steps=60, slow_from=20, world=world)
        for peer in survivors:
            peer.start(run_readme, source=readme_source(cluster), steps=60, world=world)
        for peer in survivors:
            while peer.event("step")["revision"] < 20:
                pass
        victim.event("slow")
        time.sleep(0.2)
        victim.kill()
        answers = [peer.wait() for peer in survivors]
        assert answers[0][0] >= 60
        assert len({tuple(answer) for answer in answers}) == 1
