"""The pccl command, as a user runs it and, where no process is needed, in this one."""

import csv
import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from processes import background, run_python
from rich.console import Console

from pccl.cli import bench_peer, query, sim, status
from pccl.cli.app import COMMANDS, app
from pccl.config import VARIABLES
from pccl.types import DataType

STATUS = {
    "run": "ab12",
    "epoch": 3,
    "members": [
        {"id": 1, "group": 0, "rank": 0, "address": "10.0.0.1:5", "last_heard_ms": 20, "call": "all_reduce"},
        {"id": 2, "group": 0, "rank": 1, "address": "10.0.0.2:5", "last_heard_ms": 1400},
    ],
    "pending": [{"id": 3, "group": 0, "address": "10.0.0.3:5"}],
    "ops": [{"group": 0, "subset": 4, "tag": 7, "seq": 9, "done": [1], "started": [2], "waiting": [2]}],
    "subsets": [{"group": 0, "subset": 4, "members": [2, 1]}],
    "waits": [{"peer": 1, "call": "all_reduce", "tag": 7, "for": [2], "since_ms": 2500}],
}


def run(*arguments, timeout=100, **environment):
    command = [sys.executable, "-m", "pccl.cli", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=env)


def wait_until(condition, seconds=30):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_help_lists_the_commands():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in result.output] == []


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), ["bench", "all_reduce"]])
def test_each_command_has_help(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_commands_are_imported_when_used():
    done = run_python("""
        import sys
        from pccl.cli.app import app
        print([name for name in sys.modules if name.startswith("pccl.cli.") and name != "pccl.cli.app"])
    """)
    assert done.stdout.strip() == "[]"


def test_without_click_it_says_what_to_install():
    done = run_python("import sys; sys.modules['click'] = None; from pccl.cli import main; main()")
    assert done.returncode == 1
    assert done.stderr == "pccl: the command needs click: pip install 'pccl[cli]'\n"


def test_env_prints_every_variable():
    done = run("env", PCCL_OP_TIMEOUT="77", PCCL_OP_TIMEUOT="1")
    assert done.returncode == 0
    assert [v.name for v in VARIABLES if v.name not in done.stdout] == []
    assert re.search(r"PCCL_OP_TIMEOUT\s+77\s", done.stdout)
    assert "PCCL_OP_TIMEUOT is set" in done.stderr
    assert "did you mean PCCL_OP_TIMEOUT?" in done.stderr
    table = run("env", "--markdown").stdout.splitlines()
    assert len(table) == len(VARIABLES) + 2


def test_env_fails_on_a_bad_value():
    done = run("env", PCCL_NCONNS="many")
    assert done.returncode == 1
    assert "PCCL_NCONNS='many': expected a whole number from 1 to 64" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PCCL_ALGO", "xyz"),
        ("PCCL_CONGESTION", "nosuch"),
        ("PCCL_DEBUG_FILE", "/nonexistent/log"),
        ("PCCL_DEBUG_FILE", "/"),
        ("PCCL_NTHREADS", "99"),
        ("PCCL_SHM", "maybe"),
        ("PCCL_SOCKET_IFNAME", "nosuch"),
    ],
)
def test_env_refuses_what_a_run_refuses(name, value):
    done = run("env", **{name: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: environment: INVALID_ARGUMENT: {name}")
    assert name in run("bench", "all_reduce", "-e", "8", "-n", "1", **{name: value}).stderr


def test_env_makes_no_log(tmp_path):
    path = tmp_path / "log-%p"
    assert run("env", PCCL_DEBUG_FILE=str(path)).returncode == 0
    assert list(tmp_path.iterdir()) == []


def rendered(state):
    text = io.StringIO()
    Console(file=text, width=120, markup=False).print(status.render(state))
    return text.getvalue()


def test_status_shows_members_ops_and_waits():
    text = rendered(STATUS)
    assert "run ab12  epoch 3  2 members  1 pending" in text
    assert re.search(r"2\s+0\s+1\s+10\.0\.0\.2:5\s+1\.4 s\s+-", text)
    assert "waits for admission" in text
    assert re.search(r"0\s+4\s+2 1\s", text)
    assert re.search(r"0\s+4\s+7\s+9\s+1\s+2", text)
    assert "peer 1 (10.0.0.1:5) in all_reduce tag 7 waits for peer 2 (10.0.0.2:5) since 2.5 s" in text


@pytest.mark.parametrize("state", [{}, {"members": None, "ops": 3, "waits": [{}]}, {"members": [{"id": 1, "new": []}]}])
def test_status_is_tolerant(state):
    assert "members" in rendered(state)


def test_status_refuses_what_is_no_object(monkeypatch):
    for answer in ("[1]", "not json", ""):
        monkeypatch.setattr("pccl._core.query_status", lambda *_, answer=answer: answer)
        result = CliRunner().invoke(app, ["status", "localhost:1"])
        assert (result.exit_code, "is not a JSON object" in result.output) == (1, True)


def test_waits_without_targets():
    assert query.wait_lines({"waits": [{"peer": 4, "call": "connect", "tag": None, "for": []}]}) == [
        "peer 4 in connect waits for nobody known since -"
    ]


def one_error_line(done):
    """The only line, which says what to do; nothing else was printed."""
    assert (done.returncode, done.stdout) == (1, ""), done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("command", ["status", "why"])
def test_a_closed_port_is_one_line(command):
    line = one_error_line(run(command, "127.0.0.1:1"))
    assert "MASTER_CONNECTION_FAILED: the master at 127.0.0.1:1: Connection refused" in line
    assert "Hint: check that a master runs there" in line


def test_a_name_that_nobody_has_is_one_line():
    line = one_error_line(run("status", "no-such-host.invalid:5"))
    assert "cannot resolve host 'no-such-host.invalid'" in line


@pytest.fixture
def silent_port():
    """Something listens and accepts, and says nothing: no master."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, f"127.0.0.1:{server.getsockname()[1]}"


def test_no_master_behind_the_port_is_one_line(silent_port):
    start = time.monotonic()
    line = one_error_line(run("status", silent_port[1], "--timeout", "0.3"))
    assert f"TIMEOUT: the master at {silent_port[1]}: no answer in time" in line
    assert "another program listens there" in line
    assert "EAGAIN" not in line
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("options", "code", "text"), [(["--timeout", "60"], 1, "\nAborted!\n"), (["--timeout", "60", "--watch"], 0, "")]
)
def test_ctrl_c_ends_a_status_at_once(silent_port, options, code, text):
    with background("-m", "pccl.cli", "status", silent_port[1], *options) as process:
        silent_port[0].settimeout(30)
        with silent_port[0].accept()[0] as connection:
            assert connection.recv(1)  # it has asked, and waits
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == code
            assert time.monotonic() - start < 0.5  # with the end of the interpreter
        assert process.stderr.read() == text


def test_status_as_json_is_watched_too(master_process):
    with background("-m", "pccl.cli", "status", master_process, "--json", "--watch") as process:
        assert [json.loads(process.stdout.readline())["members"] for _ in range(2)] == [[], []]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""


def test_status_as_json_goes_on_when_nobody_answers():
    with background("-m", "pccl.cli", "status", "localhost:1", "--json", "--watch") as process:
        lines = [process.stderr.readline() for _ in range(2)]
        assert all(line.startswith("Error: ") and "MASTER_CONNECTION_FAILED" in line for line in lines)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no file that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["env"], ["sim", "--seeds", "1", "--jobs", "1"]])
def test_full_output_is_one_line(arguments):
    command = [sys.executable, "-m", "pccl.cli", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}\n")


@pytest.mark.parametrize(
    ("content", "text"), [(b"", "is empty"), (b"\r\n\n", "is empty"), (b"k" * 4097, "more than 4096 bytes")]
)
def test_a_master_names_the_option_whose_key_it_cannot_use(tmp_path, content, text):
    path = tmp_path / "key"
    path.write_bytes(content)
    result = CliRunner().invoke(app, ["master", "--listen", "127.0.0.1:0", "--run-key-file", str(path)])
    assert result.exit_code == 2
    assert "--run-key-file" in result.output
    assert text in result.output
    assert "PCCL_RUN_KEY_FILE" not in result.output


def test_a_key_in_a_file_is_the_same_as_option_and_as_variable(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"k" * 4096 + b"\r\n")
    options = ["--listen", "127.0.0.1:0", "--run-key-file", str(path)]
    with background("-m", "pccl.cli", "master", *options) as process:
        address = process.stdout.readline().split()[-1]
        assert run("status", address, PCCL_RUN_KEY_FILE=str(path)).returncode == 0
        assert "REFUSED" in run("status", address).stderr


@pytest.mark.parametrize("module", [("pccl.cli", "master"), ("pccl.master",)])
def test_help_of_a_master_starts_none(module):
    done = subprocess.run(
        [sys.executable, "-m", *module, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.0.0.0:48148" in done.stdout
    assert "listening" not in done.stdout


def test_a_master_at_a_foreign_address_is_one_line():
    line = one_error_line(run("master", "--listen", "192.0.2.1:48148"))
    assert "cannot listen at 192.0.2.1:48148" in line


@pytest.mark.parametrize(("text", "bounds"), [("4", (4, 4)), ("2-8", (2, 8)), ("64", (64, 64))])
def test_sim_peers(text, bounds):
    assert sim.parse_peers(text) == bounds


@pytest.mark.parametrize("text", ["1", "8-2", "2-65", "x", "", "2-"])
def test_sim_refuses_other_peers(text):
    assert CliRunner().invoke(app, ["sim", "--peers", text]).exit_code == 2


def broken_run(seed, peers_min, peers_max, ops, faults, trace=False, io_threads=False):
    bad = seed == 13
    return {
        "seed": seed,
        "ok": not bad,
        "peers": peers_min,
        "events": 10,
        "ops_committed": ops,
        "ops_aborted": 1,
        "epochs": 2,
        "virtual_ns": 10**9,
        "trace_hash": seed,
        "verdict": "L2: peer 3 differs" if bad else "",
        "log": "t=0 the log\n" if trace else "",
    }


def test_sim_reports_the_first_failure(monkeypatch):
    monkeypatch.setattr("pccl._core.sim_run", broken_run)
    result = CliRunner().invoke(app, ["sim", "--seeds", "20", "--jobs", "1", "--peers", "2"])
    assert result.exit_code == 1
    assert "20 schedules of 2 peers x 20 ops" in result.output
    assert "L2 all or nothing: BROKEN in 1 schedules" in result.output
    assert "L3 bit parity: kept" in result.output
    assert "t=0 the log\nseed 13: 2 peers, 10 events: L2: peer 3 differs\n" in result.output
    assert result.output.endswith("again: pccl sim --peers 2 --ops 20 --trace 13\n")
    assert CliRunner().invoke(app, ["sim", "--trace", "13"]).exit_code == 1
    assert CliRunner().invoke(app, ["sim", "--trace", "12"]).exit_code == 0


@pytest.mark.parametrize(
    ("low", "high", "factor", "step", "datatype", "sizes"),
    [
        (8, 64, 2, None, "float", [8, 16, 32, 64]),
        (1, 9, 2, None, "float", [4, 8]),
        (8, 24, 2, 8, "double", [8, 16, 24]),
        (100, 100, 2, None, "int8", [100]),
    ],
)
def test_bench_sizes(low, high, factor, step, datatype, sizes):
    assert bench_peer.sizes_of(low, high, factor, step, datatype) == sizes


@pytest.mark.parametrize("datatype", bench_peer.DATATYPES)
@pytest.mark.parametrize("op", ["sum", "prod", "min", "max", "avg"])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_bench_expectation_is_what_a_reduce_gives(datatype, op, world):
    dtype = bench_peer.DATATYPES[datatype].to_numpy_dtype()
    wide = np.int64 if np.issubdtype(dtype, np.integer) else np.float64
    data = [bench_peer.local_data(50, rank, dtype, op).astype(wide) for rank in range(world)]
    function = {"sum": np.add, "avg": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}[op]
    total = function.reduce(data)
    if op == "avg":
        total = total // world if wide is np.int64 else total / world
    assert np.array_equal(total.astype(dtype), bench_peer.expected(50, world, dtype, op))


# ---------------------------------------------------------------------------------------------------- whole commands --


@pytest.fixture
def master_process():
    with background("-m", "pccl.cli", "master", "--listen", "127.0.0.1:0") as process:
        line = process.stdout.readline()
        assert line.startswith("master listening on 127.0.0.1:"), process.stderr.read()
        yield line.split()[-1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_master_status_and_why(master_process):
    state = json.loads(run("status", master_process, "--json").stdout)
    assert state["members"] == []
    shown = run("status", master_process)
    assert (shown.returncode, "0 members" in shown.stdout) == (0, True)
    assert run("why", master_process).stdout == "nobody waits\n"


@pytest.mark.parametrize(
    "arguments", [["--seed-start", "18446744073709551610", "--seeds", "10"], ["--ops", "5000000000"]]
)
def test_sim_refuses_what_its_numbers_cannot_hold(arguments):
    assert CliRunner().invoke(app, ["sim", *arguments]).exit_code == 2


def test_sim_of_the_last_seed():
    done = run("sim", "--seed-start", 2**64 - 1, "--seeds", "1", "--peers", "2", "--ops", "2")
    assert done.returncode == 0, done.stdout


def test_sim_of_the_real_machines():
    done = run("sim", "--seeds", "200", "--peers", "2-4", "--ops", "5", "--jobs", "2")
    assert done.returncode == 0, done.stdout
    assert re.search(r"200 schedules of 2-4 peers x 5 ops in .*: [\d,]+ schedules a minute", done.stdout)
    assert done.stdout.count(": kept") == 5
    trace = run("sim", "--trace", "3", "--peers", "2-4", "--ops", "5")
    assert trace.returncode == 0
    assert len(trace.stdout.splitlines()) > 5


def test_bench_all_reduce():
    arguments = ("bench", "all_reduce", "-b", "8", "-e", "64K", "-f", "16", "-n", "3", "-w", "1", "--peers", "2")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert [(int(row[0]), row[2], row[3], row[8], row[12]) for row in rows] == [
        (size, "float", "sum", "0", "0") for size in (8, 128, 2048, 32768)
    ]
    assert "# Out of bounds values : 0 OK" in done.stdout


@pytest.mark.parametrize("output", ["--json", "--csv"])
def test_bench_machine_readable(output):
    options = ("-b", "1K", "-e", "1K", "-n", "2", "-w", "0", "-d", "bfloat16", "-o", "max", "--peers", "3")
    done = run("bench", "all_reduce", *options, output)
    assert done.returncode == 0, done.stderr
    if output == "--json":
        (row,) = json.loads(done.stdout)["rows"]
        assert (row["size"], row["count"], row["in_place"]["wrong"]) == (1024, 512, 0)
        assert row["out_of_place"]["busbw"] == pytest.approx(row["out_of_place"]["algbw"] * 4 / 3)
    else:
        (row,) = csv.DictReader(io.StringIO(done.stdout))
        assert (row["size"], row["type"], row["redop"], row["in_#wrong"]) == ("1024", "bfloat16", "max", "0")


def test_bench_joins_a_given_master(master_process):
    done = run("bench", "all_reduce", "-e", "8", "-n", "1", "--peers", "2", "--master", master_process)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_peers_of_a_bench_end_with_it(master_process, how):
    """They wait for a world that never comes: as members they would block every joint call of the run."""
    options = ["--peers", "1", "--world", "2", "--master", master_process]
    with background("-m", "pccl.cli", "bench", "all_reduce", *options) as bench:
        wait_until(lambda: query.query(master_process, 10)["members"])
        bench.send_signal(how)
        code = bench.wait(20)
    assert code == (128 + signal.SIGTERM if how == signal.SIGTERM else -signal.SIGKILL)
    wait_until(lambda: not query.query(master_process, 10)["members"])


def test_bench_without_memory_is_one_line():
    done = run("bench", "all_reduce", "-b", "1048576G", "-e", "1048576G")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pccl bench: no memory for the data: ")


@pytest.mark.parametrize("size", ["-1", "1e99G", "2000000G", "many"])
def test_bench_refuses_other_sizes(size):
    result = CliRunner().invoke(app, ["bench", "all_reduce", "-b", size])
    assert result.exit_code == 2
    assert "is not a size" in result.output


def test_bench_refuses_one_peer():
    assert run("bench", "all_reduce", "--peers", "1").returncode == 2


def test_bench_datatypes_are_all():
    assert set(bench_peer.DATATYPES.values()) == set(DataType)
