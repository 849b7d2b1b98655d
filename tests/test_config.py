"""The table of environment variables: how each is read, what is refused, and what an unknown name draws."""

import re
from pathlib import Path

import pytest
from processes import run_python

import pccl
from pccl import config
from pccl.config import Settings, from_environment, parse_address, unknown_variables


def test_empty_environment_is_all_defaults():
    assert from_environment({}) == Settings()
    assert from_environment({"PCCL_ADVERTISE": "", "PCCL_NCONNS": ""}) == Settings()


def test_each_variable_is_read(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"secret key\n")
    settings = from_environment(
        {
            "PCCL_ADVERTISE": "example.org:4000",
            "PCCL_SOCKET_IFNAME": "^docker",
            "PCCL_CONGESTION": "cubic",
            "PCCL_NCONNS": "4",
            "PCCL_PORT_RANGE": "4000-4100",
            "PCCL_RUN_KEY_FILE": str(key),
            "PCCL_DEAD_TIMEOUT": "2.5",
            "PCCL_OP_TIMEOUT": "60",
            "PCCL_CONNECT_TIMEOUT": "0.25",
            "PCCL_JOIN_TIMEOUT": "10",
            "PCCL_LOG_LEVEL": "DEBUG",
            "PCCL_DEBUG_FILE": "log.txt",
        }
    )
    assert settings == Settings(
        advertise="example.org:4000",
        ifname="^docker",
        congestion="cubic",
        connections=4,
        port_range=(4000, 4100),
        run_key=b"secret key",
        dead_timeout_ms=2500,
        op_timeout_ms=60000,
        connect_timeout_ms=250,
        join_timeout_ms=10000,
        log_level=5,
        debug_file="log.txt",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PCCL_NCONNS", "many"),
        ("PCCL_NCONNS", "0"),
        ("PCCL_NCONNS", "65"),
        ("PCCL_NCONNS", "-1"),
        ("PCCL_PORT_RANGE", "10-5"),
        ("PCCL_PORT_RANGE", "0-5"),
        ("PCCL_PORT_RANGE", "a-b"),
        ("PCCL_DEAD_TIMEOUT", "soon"),
        ("PCCL_OP_TIMEOUT", "0"),
        ("PCCL_OP_TIMEOUT", "-1"),
        ("PCCL_CONNECT_TIMEOUT", "nan"),
        ("PCCL_CONNECT_TIMEOUT", "inf"),
        ("PCCL_LOG_LEVEL", "LOUD"),
        ("PCCL_RUN_KEY_FILE", "/nonexistent/key"),
    ],
)
def test_bad_values_name_their_variable(name, value):
    with pytest.raises(pccl.InvalidArgumentError, match=name):
        from_environment({name: value})


def test_an_empty_key_file_is_refused(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(b"\n")
    with pytest.raises(ValueError, match="is empty"):
        from_environment({"PCCL_RUN_KEY_FILE": str(key)})


@pytest.mark.parametrize("level", ["TRACE", "DEBUG", "INFO", "WARN", "ERR", "FATAL", "NONE", "off", "error", "warn"])
def test_log_levels_of_both_spellings(level):
    assert from_environment({"PCCL_LOG_LEVEL": level}).log_level == config.LOG_LEVELS[level.lower()]


UNKNOWN = {"PCCL_LOGLEVEL": "1", "PCCL_OP_TIMEOUT": "5", "PATH": "x", "PCCL_ZZZZZZZZZZ": "1"}


def test_unknown_names_are_found_with_the_nearest():
    assert unknown_variables(UNKNOWN) == [("PCCL_LOGLEVEL", "PCCL_LOG_LEVEL"), ("PCCL_ZZZZZZZZZZ", None)]


@pytest.mark.parametrize("in_file", [False, True])
def test_unknown_names_are_warned_of_once(tmp_path, in_file):
    """By the core's log alone, wherever that goes, and only when the first handle is made."""
    log = tmp_path / "log"
    environ = {"PCCL_LOGLEVEL": "1", "PCCL_ZZZZZZZZZZ": "1", "PCCL_OP_TIMEOUT": "5"}
    done = run_python(
        "import sys, pccl; print('imported', file=sys.stderr, flush=True); "
        "[pccl.Communicator('localhost:1').close() for _ in range(2)]; pccl.MasterNode('127.0.0.1:0').close()",
        **environ,
        **({"PCCL_DEBUG_FILE": str(log)} if in_file else {}),
    )
    assert done.returncode == 0
    before, _, text = done.stderr.partition("imported\n")
    assert before == ""
    if in_file:
        assert text == ""
        text = log.read_text()
    lines = sorted(line[line.index("unknown") :] for line in text.splitlines())
    assert lines == [
        "unknown environment variable PCCL_LOGLEVEL; did you mean PCCL_LOG_LEVEL? (`pccl env` lists them)",
        "unknown environment variable PCCL_ZZZZZZZZZZ (`pccl env` lists those there are)",
    ]


def test_core_and_python_know_the_same_names():
    source = (Path(__file__).parent.parent / "csrc" / "api" / "config.c").read_text()
    known = re.search(r"known\[\] = \{(.*?)\};", source, re.DOTALL)[1]
    assert re.findall(r'"(\w+)"', known) == [variable.name for variable in config.VARIABLES]


def test_table_is_sorted_and_complete():
    names = [variable.name for variable in config.VARIABLES]
    assert names == sorted(names)
    assert all(variable.meaning and variable.kind for variable in config.VARIABLES)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", "localhost:48148"),
        ("localhost:1", "localhost:1"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
        ("[::1]:5", "[::1]:5"),
        ("[fe80::1%eth0]:5", "[fe80::1%eth0]:5"),
        ("::1", "[::1]:48148"),
        ("[::1]", "[::1]:48148"),
        ("127.0.0.1:0", "127.0.0.1:0"),
    ],
)
def test_addresses(text, address):
    assert parse_address(text, "test") == address


@pytest.mark.parametrize(
    "text", ["", ":5", "host:", "host:x", "host:65536", "host:-1", "a b:1", "[::1", "[::1]x", "[]:1"]
)
def test_bad_addresses(text):
    with pytest.raises(pccl.InvalidArgumentError, match="is not an address"):
        parse_address(text, "test")


def test_milliseconds():
    assert config.milliseconds(None, "t") == 0
    assert config.milliseconds(1e-9, "t") == 1
    assert config.milliseconds(1e12, "t") == 2**32 - 1
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="t must be a time above 0"):
            config.milliseconds(bad, "t")


def test_debug_file_name_is_expanded(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    monkeypatch.setattr("os.getpid", lambda: 42)
    assert config.expand_path("log-%h-%p.txt") == "log-node7-42.txt"
