"""Strangers at the ports of a master and of a peer: refused, cheaply, and the run does not notice."""

import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import xxhash
from cluster import Cluster, connect, eventually

import pccl

HANDSHAKE_S = 5.0
MAGIC = b"PCCL"
REFUSE, HELLO, WELCOME, DONE, LINK_HELLO, DATA = 2, 3, 33, 9, 64, 66


def frame(message_type, meta=b"", *, cookie=MAGIC, flags=0, meta_len=None, bulk_len=0, intact=True):
    """A frame of the wire protocol, with a right digest unless told otherwise."""
    length = len(meta) if meta_len is None else meta_len
    head = cookie + struct.pack("<BBHIIQ", message_type, flags, 0, length, bulk_len, 0)
    digest = xxhash.xxh3_64_intdigest(head + bytes(8) + meta)
    return head + struct.pack("<Q", digest ^ (not intact)) + meta


def hello(version_min=1, version_max=1, build=b"test"):
    return struct.pack("<HHQ", version_min, version_max, 0) + bytes(17) + struct.pack("<I", len(build)) + build


STRANGERS = {
    "port scanner": b"",
    "http": b"GET / HTTP/1.1\r\nHost: master\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n" * 4,
    "zeros": bytes(4096),
    "noise": np.random.default_rng(7).bytes(100_000),
    "bad digest": frame(HELLO, hello(), intact=False),
    "foreign version": frame(HELLO, hello(77, 99)),
    "unknown type": frame(200, b"x"),
    "out of turn": frame(DONE, bytes(4)),
    "a master's message": frame(WELCOME, bytes(40)),
    "payload from nobody": frame(DATA, bytes(100), bulk_len=4 << 20) + bytes(1000),
    "oversized meta": frame(HELLO, hello(), meta_len=2**32 - 1),
    "meta over the limit": frame(HELLO, meta_len=4097) + bytes(4097),
    "oversized bulk": frame(HELLO, hello(), bulk_len=2**32 - 1),
    "oversized text": frame(HELLO, hello()[:29] + struct.pack("<I", 2**32 - 1) + b"abc"),
    "cut meta": frame(HELLO, hello()[:20]),
    "more than its meta": frame(HELLO, hello() + b"more"),
    "link hello of nobody": frame(LINK_HELLO, bytes(46)),
}


@pytest.fixture(scope="module")
def run():
    """(cluster, two peers, the port of the master, the port of a peer)"""
    with Cluster() as cluster:
        peers = cluster.join(2)
        yield cluster, peers, {"master": int(cluster.address.rpartition(":")[2]), "peer": peers[0].listening_port()}


def reduce_once(peer):
    x = np.ones(100, np.float32)
    return peer.comm.all_reduce(x).local_world_size, peer.comm.epoch, peer.comm.stats()["links_lost"]


def dial(port):
    return socket.create_connection(("127.0.0.1", port), timeout=HANDSHAKE_S + 3)


def read_to_the_end(end):
    data = b""
    try:
        while part := end.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize("port", ["master", "peer"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused(run, port, stranger):
    cluster, peers, ports = run
    before = cluster.call(peers, reduce_once)
    with dial(ports[port]) as end:
        start = time.monotonic()
        end.sendall(STRANGERS[stranger])
        if stranger == "port scanner":
            end.shutdown(socket.SHUT_WR)
        answer = read_to_the_end(end)
        assert time.monotonic() - start < 1.5
    if answer:
        assert (answer[:4], answer[4]) == (MAGIC, REFUSE), answer[:64]
    if (port, stranger) == ("master", "foreign version"):
        assert b"version" in answer
    assert cluster.call(peers, reduce_once) == before


@pytest.mark.parametrize("port", ["master", "peer"])
def test_a_frame_cut_anywhere(run, port):
    cluster, peers, ports = run
    before = cluster.call(peers, reduce_once)
    whole = frame(HELLO, hello())
    for length in range(1, len(whole)):
        with dial(ports[port]) as end:
            end.sendall(whole[:length])
    assert cluster.call(peers, reduce_once) == before


def test_a_hello_in_single_bytes_is_understood(run):
    _, _, ports = run
    with dial(ports["master"]) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frame(HELLO, hello()):
            end.sendall(bytes([byte]))
        assert end.recv(4) == MAGIC


def test_silence_is_ended_and_disturbs_nobody(run):
    """Idle connections, some of which have begun a hello: closed when the deadline has passed, and meanwhile a newcomer
    gets in."""
    cluster, peers, ports = run
    memory = {process: psutil.Process(process.pid).memory_info().rss for process in (cluster.master, peers[0])}
    start = time.monotonic()
    idle = []
    for i in range(100):
        for port in ports.values():
            idle.append(dial(port))
            if i % 2:
                idle[-1].sendall(frame(HELLO, hello())[: i % 30])
    (newcomer,) = cluster.join(1, members=peers)
    assert time.monotonic() - start < HANDSHAKE_S
    assert [answer[0] for answer in cluster.call([*peers, newcomer], reduce_once)] == [3, 3, 3]
    newcomer.close()
    open_ends = set(idle)
    while open_ends and time.monotonic() - start < HANDSHAKE_S + 3:
        for end in select.select(list(open_ends), [], [], 0.5)[0]:
            read_to_the_end(end)
            open_ends.discard(end)
            end.close()
    assert not open_ends
    assert time.monotonic() - start < HANDSHAKE_S + 2
    eventually(lambda: [answer[0] for answer in cluster.call(peers, try_reduce)] == [2, 2])
    for process, before in memory.items():
        assert psutil.Process(process.pid).memory_info().rss - before < 16 << 20


def try_reduce(peer):
    try:
        return [peer.comm.all_reduce(np.ones(100, np.float32)).local_world_size]
    except pccl.RankConnectionLostError:
        return [0]


def dripping(port):
    """A slow loris: a byte now and then never moves the deadline."""
    with dial(port) as end:
        start = time.monotonic()
        for byte in frame(HELLO, hello()):
            try:
                end.sendall(bytes([byte]))
            except OSError:
                break
            if select.select([end], [], [], 0.4)[0]:
                read_to_the_end(end)
                break
        return time.monotonic() - start


def test_dripping_does_not_move_the_deadline(run):
    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(dripping, run[2].values())) < HANDSHAKE_S + 1.5


# ----------------------------------------------------------------------------------------------------------- run key --


def connect_and_see(peer, master):
    start = time.monotonic()
    try:
        peer.connect(master)
    except pccl.PCCLError as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return None, "", time.monotonic() - start


@pytest.fixture
def key_file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content)
        return str(path)

    return write


def test_run_key(key_file):
    right, wrong = key_file("right", "the key of this run\n"), key_file("wrong", "another key\n")
    with Cluster(PCCL_RUN_KEY_FILE=right) as cluster:
        peers = cluster.join(2)
        for environment in ({"PCCL_RUN_KEY_FILE": wrong}, {"PCCL_RUN_KEY_FILE": ""}):
            stranger = cluster.spawn(**environment)
            error, text, seconds = stranger.call(connect_and_see, master=cluster.address)
            assert error == "RefusedError", text
            assert "key" in text
            assert seconds < 2
        assert [answer[0] for answer in cluster.call(peers, reduce_once)] == [2, 2]


def test_a_key_that_the_master_does_not_have(key_file):
    with Cluster() as cluster:
        stranger = cluster.spawn(PCCL_RUN_KEY_FILE=key_file("key", "some key\n"))
        error, text, seconds = stranger.call(connect_and_see, master=cluster.address)
        assert error == "RefusedError", text
        assert "key" in text
        assert seconds < 2


def test_unreachable_advertised_address_is_named():
    with Cluster() as cluster:
        peers = cluster.join(2)
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))  # nobody listens here
            address = f"127.0.0.1:{reserved.getsockname()[1]}"
            newcomer = cluster.spawn(PCCL_ADVERTISE=address, PCCL_PORT_RANGE="10000-30000")
            newcomer.start(connect, master=cluster.address, n_attempts=1)
            error = newcomer.outcome(HANDSHAKE_S + 3)
            assert error.type in {"RefusedError", "RankConnectionFailedError"}
            assert address in error.text
        assert [answer[0] for answer in cluster.call(peers, reduce_once)] == [2, 2]
