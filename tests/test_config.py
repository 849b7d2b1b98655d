"""The table of environment variables: how each is read, what is refused, and what an unknown name draws."""

import re
import socket
from pathlib import Path

import pytest
from processes import run_python

import pccl
from pccl import _core, config
from pccl._comm import Comm
from pccl.arguments import milliseconds
from pccl.config import parse_address, unknown_variables


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PCCL_ADVERTISE", "0.0.0.0"),
        ("PCCL_ALGO", "fastest"),
        ("PCCL_CONGESTION", "no such control"),
        ("PCCL_CONNECT_TIMEOUT", "nan"),
        ("PCCL_CONNECT_TIMEOUT", "inf"),
        ("PCCL_CONNECT_TIMEOUT", "0.0009"),
        ("PCCL_DEAD_TIMEOUT", "soon"),
        ("PCCL_DEAD_TIMEOUT", "5s"),
        ("PCCL_DEAD_TIMEOUT", " 5"),
        ("PCCL_JOIN_TIMEOUT", "."),
        ("PCCL_JOIN_TIMEOUT", "1e3"),
        ("PCCL_LOG_LEVEL", "LOUD"),
        ("PCCL_NCONNS", "many"),
        ("PCCL_NCONNS", "0"),
        ("PCCL_NCONNS", "65"),
        ("PCCL_NCONNS", "-1"),
        ("PCCL_NCONNS", "4.0"),
        ("PCCL_OP_TIMEOUT", "0"),
        ("PCCL_OP_TIMEOUT", "-1"),
        ("PCCL_PORT_RANGE", "10-5"),
        ("PCCL_PORT_RANGE", "0-5"),
        ("PCCL_PORT_RANGE", "a-b"),
        ("PCCL_PORT_RANGE", "5-"),
        ("PCCL_PORT_RANGE", "5-65536"),
        ("PCCL_PORT_RANGE", "5.0-6"),
        ("PCCL_RUN_KEY_FILE", "/nonexistent/key"),
        ("PCCL_RUN_KEY_FILE", "/"),
        ("PCCL_SHM", "yes"),
        ("PCCL_SOCKET_IFNAME", "=no-such-interface"),
    ],
)
def test_bad_values_name_their_variable(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(pccl.InvalidArgumentError, match=name):
        _core.check_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PCCL_ADVERTISE", "example.org:4000"),
        ("PCCL_ALGO", "Ring"),
        ("PCCL_CONGESTION", "system"),
        ("PCCL_NCONNS", "064"),
        ("PCCL_PORT_RANGE", "4000"),
        ("PCCL_PORT_RANGE", "0000004000-4100"),
        ("PCCL_SHM", "0"),
        ("PCCL_SOCKET_IFNAME", "^docker"),
        *(("PCCL_LOG_LEVEL", level) for level in ("TRACE", "DEBUG", "INFO", "WARN", "ERR", "FATAL", "NONE", "off")),
        *((variable.name, "") for variable in config.VARIABLES),
    ],
)
def test_good_values(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    _core.check_environment()


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("", 1800000),
        ("2.5", 2500),
        (".5", 500),
        ("060.", 60000),
        ("0.0019", 1),
        ("4294967.296", 2**32 - 1),
        ("99999999999999999999999999", 2**32 - 1),
    ],
)
def test_seconds(monkeypatch, text, ms):
    monkeypatch.setenv("PCCL_OP_TIMEOUT", text)
    core = Comm("localhost:1")
    assert core.op_timeout_ms == ms
    core.close()
    core = Comm("localhost:1", op_timeout_ms=7)
    assert core.op_timeout_ms == 7
    core.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"secret key\n", None),
        (b"k" * 4096 + b"\r\n", None),
        (b"", "expected a file that is not empty"),
        (b"\n", "expected a file that is not empty"),
        (b"k" * 4097, "more than 4096 bytes"),
        (b"k" * 4096 + b"\r\nk", "at most 4096 bytes"),
    ],
)
def test_key_files(tmp_path, monkeypatch, content, said):
    key = tmp_path / "key"
    key.write_bytes(content)
    monkeypatch.setenv("PCCL_RUN_KEY_FILE", str(key))
    if said is None:
        _core.check_environment()
    else:
        with pytest.raises(pccl.InvalidArgumentError, match=said):
            _core.check_environment()


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
    assert milliseconds(None, "t", "f") == 0
    assert milliseconds(1e-9, "t", "f") == 1
    assert milliseconds(1e12, "t", "f") == 2**32 - 1
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="f: INVALID_ARGUMENT: t must be a time above 0"):
            milliseconds(bad, "t", "f")


def test_debug_file_name_is_expanded(tmp_path):
    done = run_python(
        "import os, pccl; pccl.Communicator('localhost:1').close(); print(os.getpid())",
        PCCL_DEBUG_FILE=str(tmp_path / "log-%h-%p-%x.txt"),
        PCCL_LOGLEVEL="1",
    )
    assert [path.name for path in tmp_path.iterdir()] == [f"log-{socket.gethostname()}-{done.stdout.strip()}-%x.txt"]


def test_a_debug_file_that_cannot_be_written():
    done = run_python("import pccl; pccl.MasterNode('127.0.0.1:0')", PCCL_DEBUG_FILE="/nonexistent/log")
    assert (
        "InvalidArgumentError: init: INVALID_ARGUMENT: PCCL_DEBUG_FILE='/nonexistent/log': No such file" in done.stderr
    )
