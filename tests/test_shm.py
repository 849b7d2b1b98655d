"""Shared memory between peers of one host: the same bits as over TCP, and whatever the other end does harms nobody."""

import array
import contextlib
import mmap
import os
import signal
import socket
import struct
import threading
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from c_level import load
from cluster import Cluster, eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from netns import namespaces, needs_netns
from worker import digest

import pccl

DEAD_S = 10.0
HEADER_BYTES = 4096
DIRECTION_BYTES = 256
WRITTEN, TAKEN, READER_SLEEPS = 0, 64, 128  # within a direction
GREETING = b"pcclshm1"


def reduce(peer, count, dtype="float32", rounds=1):
    """All-reduces whose result depends on every peer and place; the digest of all results, and the links."""
    rng = np.random.default_rng([peer.comm.rank, count])
    results = []
    for _ in range(rounds):
        x = rng.integers(0, 100, count).astype(dtype)
        x /= 7
        peer.comm.all_reduce(x)
        results.append(x)
    return digest(*results), peer.comm.stats()["shm_links"]


def links(peer):
    stats = peer.comm.stats()
    return stats["shm_links"], stats["links_lost"]


# ----------------------------------------------------------------------------------------------------------- results --


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("count", [1, 1000, 50_001, 1_000_003, 3_000_017])
def test_the_same_bits_as_over_tcp(world, count):
    seen = {}
    for shm in ("1", "0"):
        with Cluster(PCCL_SHM=shm) as cluster:
            peers = cluster.join(world)
            seen[shm] = cluster.call(peers, reduce, count=count, rounds=3)
    assert [used for _, used in seen["1"]] == [world - 1] * world
    assert [used for _, used in seen["0"]] == [0] * world
    assert len({bits for results in seen.values() for bits, _ in results}) == 1


def test_one_that_does_not_want_it_is_reached_over_tcp():
    with Cluster() as cluster:
        peers = [cluster.spawn(), cluster.spawn(PCCL_SHM="0"), cluster.spawn()]
        cluster.join_in_order(peers)
        results = cluster.call(peers, reduce, count=100_000)
        assert [used for _, used in results] == [1, 0, 1]
        assert len({bits for bits, _ in results}) == 1


def test_several_stripes():
    with Cluster(PCCL_NCONNS="3") as cluster:
        peers = cluster.join(2)
        results = cluster.call(peers, reduce, count=1_000_003, rounds=3)
        assert [used for _, used in results] == [1, 1]
        assert len({bits for bits, _ in results}) == 1


def test_a_wrong_value_is_refused(monkeypatch):
    monkeypatch.setenv("PCCL_SHM", "maybe")
    with pytest.raises(pccl.InvalidArgumentError, match="PCCL_SHM='maybe': expected 0 or 1"):
        pccl.Communicator("127.0.0.1:1")


@needs_netns
@pytest.mark.netns
def test_other_network_namespaces_are_reached_over_tcp():
    with namespaces(2) as (hub, names), Cluster(("ip", "netns", "exec", hub), "10.77.0.1:0") as cluster:
        peers = [cluster.spawn(("ip", "netns", "exec", name)) for name in [names[0], names[0], names[1]]]
        cluster.join_in_order(peers)
        results = cluster.call(peers, reduce, count=100_000)
        assert [used for _, used in results] == [1, 1, 0]
        assert len({bits for bits, _ in results}) == 1


# ------------------------------------------------------------------------------------------------------------ deaths --


def reduce_until_one_is_gone(peer, count, world):
    """That fails an operation only if it dies in the middle of one; when it was."""
    x = np.ones(count, np.float32)
    peer.emit("begins")
    with contextlib.suppress(pccl.RankConnectionLostError):
        while peer.comm.all_reduce(x, op="avg").local_world_size == world:
            pass
    return time.monotonic()


@pytest.mark.parametrize("delay_s", [0.05, 0.063, 0.078])
def test_a_killed_writer_does_not_hang_its_readers(delay_s):
    """Long before the dead timeout: the end of the local socket tells."""
    with Cluster(PCCL_DEAD_TIMEOUT=str(DEAD_S)) as cluster:
        peers = cluster.join(3)
        cluster.start(peers, reduce_until_one_is_gone, count=4_000_000, world=3)
        for peer in peers:
            peer.event("begins")
        time.sleep(delay_s)
        peers[1].kill()
        killed = time.monotonic()
        survivors = [peers[0], peers[2]]
        assert max(peer.wait() for peer in survivors) - killed < DEAD_S / 5
        results = cluster.call(survivors, reduce, count=100_000)
        assert [used for _, used in results] == [1, 1]
        assert len({bits for bits, _ in results}) == 1


def test_a_stopped_peer_is_silent_and_removed():
    with Cluster(PCCL_DEAD_TIMEOUT="1") as cluster:
        peers = cluster.join(3)
        cluster.start(peers, reduce_until_one_is_gone, count=4_000_000, world=3)
        for peer in peers:
            peer.event("begins")
        peers[1].send_signal(signal.SIGSTOP)
        survivors = [peers[0], peers[2]]
        assert all(peer.wait() for peer in survivors)
        assert len({bits for bits, _ in cluster.call(survivors, reduce, count=100_000)}) == 1


# ------------------------------------------------------------------------------------------------------- bad company --


class Stranger:
    """A process of the same user at a peer's local socket."""

    def __init__(self, port):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(f"\0pccl-{port}")
        greeting, ancillary, _, _ = self.socket.recvmsg(len(GREETING), socket.CMSG_SPACE(4))
        assert greeting == GREETING
        (memory,) = array.array("i", ancillary[0][2])
        try:
            self.memory = mmap.mmap(memory, 0)
        finally:
            os.close(memory)

    def put(self, direction, field, value):
        at = direction * DIRECTION_BYTES + field
        self.memory[at : at + 8] = struct.pack("<Q", value)

    def ring(self):
        self.socket.send(b"\0")

    def is_refused(self):
        """Until the other end closes, and nothing but bells before."""
        with contextlib.suppress(ConnectionResetError):
            while bells := self.socket.recv(64):
                assert not any(bells)
        return True

    def close(self):
        self.memory.close()
        self.socket.close()


@pytest.fixture(scope="module")
def run():
    with Cluster() as cluster:
        peers = cluster.join(2)
        yield cluster, peers, peers[0].listening_port()


RING_BYTES = 1 << 20


@pytest.mark.parametrize("written", [RING_BYTES + 1, 1 << 32, 1 << 63, 2**64 - 1])
def test_an_impossible_position_ends_the_connection(run, written):
    cluster, peers, port = run
    with contextlib.closing(Stranger(port)) as stranger:
        stranger.put(0, WRITTEN, written)
        stranger.ring()
        assert stranger.is_refused()
    assert len({bits for bits, _ in cluster.call(peers, reduce, count=100_000)}) == 1
    assert cluster.call(peers, links) == [[1, 0], [1, 0]]


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", bytes(RING_BYTES), b"PCCL" + bytes(60_000)])
def test_a_stranger_without_proof_is_refused_as_over_tcp(run, content):
    cluster, peers, port = run
    with contextlib.closing(Stranger(port)) as stranger:
        stranger.memory[HEADER_BYTES : HEADER_BYTES + len(content)] = content
        stranger.put(0, WRITTEN, len(content))
        stranger.ring()
        assert stranger.is_refused()
    assert cluster.call(peers, links) == [[1, 0], [1, 0]]


def test_the_size_of_the_memory_cannot_be_changed(run):
    _, _, port = run
    with contextlib.closing(Stranger(port)) as stranger:
        assert len(stranger.memory) == HEADER_BYTES + 2 * RING_BYTES
        with pytest.raises(OSError, match="not permitted"):
            stranger.memory.resize(HEADER_BYTES)


def corrupt_until_it_fails(peer, value):
    """Reduces while impossible positions are written into every link's memory, as a process that has gone mad could."""

    def memories():
        """Address range, inode and so on: not those of links made anew."""
        with open("/proc/self/maps") as maps:
            return {line for line in maps if "memfd:pccl" in line}

    first = memories()
    peer.emit("corrupts", links=len(first))
    over = threading.Event()

    def corrupt():
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            while not over.wait(0.001):
                for line in first & memories():
                    for offset in (0, 64, 256, 256 + 64):  # both positions of both directions
                        with contextlib.suppress(OSError):  # the link is lost, and its memory gone
                            memory.seek(int(line.partition("-")[0], 16) + offset)
                            memory.write(value.to_bytes(8, "little"))

    thread = threading.Thread(target=corrupt)
    thread.start()
    x = np.ones(500_000, np.float32)
    try:
        while True:
            peer.comm.all_reduce(x, op="avg")
    except pccl.PCCLError as error:
        return type(error).__name__
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("value", [1 << 40, 2**64 - 1])
def test_a_link_whose_header_goes_wrong_is_lost_and_made_anew(value):
    with Cluster() as cluster:
        peers = cluster.join(2)
        cluster.call(peers, reduce, count=1000)
        peers[0].start(corrupt_until_it_fails, value=value)
        assert peers[0].event("corrupts")["links"] == 1
        peers[1].start(reduce_until_one_is_gone, count=500_000, world=2)
        assert peers[0].wait() == "RankConnectionLostError"
        assert peers[1].wait()
        results = cluster.call(peers, reduce, count=100_000)
        assert [used for _, used in results] == [1, 1]
        assert len({bits for bits, _ in results}) == 1
        assert [lost for _, lost in cluster.call(peers, links)] == [1, 1]


def memory_of(size, seals=None):
    made = os.memfd_create("pccl", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(made, size)
    if seals is not None:
        import fcntl

        fcntl.fcntl(made, fcntl.F_ADD_SEALS, seals)
    return made


SIZE = HEADER_BYTES + 2 * RING_BYTES
SHRINK, GROW = 2, 4
ANSWERS = {
    "nothing": (b"", None),
    "a greeting alone": (GREETING, None),
    "another greeting": (b"pcclshm9", lambda: memory_of(SIZE, SHRINK | GROW)),
    "a size that can shrink": (GREETING, lambda: memory_of(SIZE, GROW)),
    "no seals": (GREETING, lambda: memory_of(SIZE)),
    "too small": (GREETING, lambda: memory_of(HEADER_BYTES, SHRINK | GROW)),
    "too large": (GREETING, lambda: memory_of(1 << 40, SHRINK | GROW)),
    "no memory at all": (GREETING, lambda: os.open("/dev/zero", os.O_RDWR)),
}


def answer_all(listener, greeting, make):
    """The answer of ANSWERS to everyone; ends when the listener does."""
    with contextlib.suppress(OSError):
        while True:
            end, _ = listener.accept()
            with end:
                if make is not None:
                    memory = make()
                    socket.send_fds(end, [greeting], [memory])
                    os.close(memory)
                elif greeting:
                    end.send(greeting)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_wrong_answer_means_tcp(answer):
    """Somebody else has the local name that belongs to the peer's port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        squatter = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        squatter.bind(f"\0pccl-{port}")
        squatter.listen()
    thread = threading.Thread(target=answer_all, args=(squatter, *ANSWERS[answer]), daemon=True)
    thread.start()
    try:
        with Cluster() as cluster:
            peers = [cluster.spawn(PCCL_PORT_RANGE=f"{port}-{port}"), cluster.spawn()]
            cluster.join_in_order(peers)
            results = cluster.call(peers, reduce, count=100_000)
            assert [used for _, used in results] == [0, 0]
            assert len({bits for bits, _ in results}) == 1
    finally:
        squatter.shutdown(socket.SHUT_RDWR)
        squatter.close()
        thread.join(5)


# ----------------------------------------------------------------------------------------------------- nothing grows --


def come_and_go(peer, master, times):
    used = 0
    x = np.zeros(100_000, np.float32)
    for _ in range(times):
        with pccl.Communicator(master) as comm:
            try:
                comm.all_reduce(x, op="avg")
                used += comm.stats()["shm_links"]
            except (pccl.RankConnectionLostError, pccl.TooFewPeersError):
                pass
    return used


def welcome(peer, times):
    """Admit and reduce until so many epochs have passed."""
    x = np.zeros(100_000, np.float32)
    while peer.comm.epoch < times:
        if peer.comm.are_peers_pending():
            peer.comm.update_topology()
        if peer.comm.world_size > 1:
            with contextlib.suppress(pccl.RankConnectionLostError, pccl.TooFewPeersError):
                peer.comm.all_reduce(x, op="avg")


def held(process):
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return len(os.listdir(f"/proc/{process.pid}/fd")), len([line for line in maps if "memfd:pccl" in line])


def test_nothing_is_left_of_a_hundred_connections():
    with Cluster() as cluster:
        (resident,) = cluster.join(1)
        guest = cluster.spawn()
        before = held(resident)
        assert before[1] == 0
        resident.start(welcome, times=200)
        used = guest.call(come_and_go, timeout=60, master=cluster.address, times=100)
        assert used >= 90
        resident.wait()
        eventually(lambda: held(resident) == before)
        assert held(guest)[1] == 0


# -------------------------------------------------------------------------------------------------------------- ring --

CDEF = """
    struct pc_pipe_shared { uint64_t written, base, pad0[6], taken, pad1[7]; uint32_t reader_sleeps, pad2[15];
        uint32_t writer_sleeps, pad3[15]; };
    struct pc_pipe { struct pc_pipe_shared *shared; uint8_t *data; size_t size_bytes; uint64_t written, base, taken; };
    void pc_pipe_init(struct pc_pipe *pipe, struct pc_pipe_shared *shared, uint8_t *data, size_t size_bytes);
    ptrdiff_t pc_pipe_put(struct pc_pipe *pipe, const void *data, size_t len_bytes);
    ptrdiff_t pc_pipe_get(struct pc_pipe *pipe, void *data, size_t len_bytes, bool cold);
    bool pc_pipe_publish_written(struct pc_pipe *pipe);
    bool pc_pipe_publish_taken(struct pc_pipe *pipe);
    bool pc_pipe_reader_may_sleep(struct pc_pipe *pipe);
    bool pc_pipe_writer_may_sleep(struct pc_pipe *pipe);
"""


lib_of_ring = cache(lambda: load(CDEF, ("base", "bytes", "math"), '#include "io/pipe.c"'))


class Ring:
    def __init__(self, size):
        self.lib = lib_of_ring()
        ffi = self.lib.ffi
        raw = ffi.new("uint8_t[]", ffi.sizeof("struct pc_pipe_shared") + 64)
        address = int(ffi.cast("uintptr_t", raw))
        self.shared = ffi.cast("struct pc_pipe_shared *", address + -address % 64)
        self.data = ffi.new("uint8_t[]", size)
        self.kept = raw
        self.writer, self.reader = ffi.new("struct pc_pipe *"), ffi.new("struct pc_pipe *")
        for end in (self.writer, self.reader):
            self.lib.pc_pipe_init(end, self.shared, self.data, size)

    def put(self, data):
        return self.lib.pc_pipe_put(self.writer, data, len(data))

    def get(self, size, cold=False):
        room = self.lib.ffi.new("uint8_t[]", size + 1)
        length = self.lib.pc_pipe_get(self.reader, room, size, cold)
        assert length <= size
        return bytes(room[0:length]) if length >= 0 else None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([64, 100, 192]), st.data())
def test_bytes_arrive_in_order_and_sleepers_are_woken(size, data):
    ring = Ring(size)
    lib = ring.lib
    sent = received = seen = freed = 0  # seen, freed: published
    asleep = {"reader": False, "writer": False}
    for _ in range(40):
        step = data.draw(st.sampled_from(["put", "get", "reader sleeps", "writer sleeps"]))
        length = data.draw(st.integers(0, size + 20))
        if step == "put":
            content = bytes((sent + i) % 251 for i in range(length))
            moved = ring.put(content)
            assert moved == min(length, size - (sent - freed))
            sent += moved
            seen = sent
            woken = lib.pc_pipe_publish_written(ring.writer)
            assert woken == asleep["reader"]
            asleep["reader"] = False
        elif step == "get":
            expected = min(length, seen - received)
            assert ring.get(length, data.draw(st.booleans())) == bytes((received + i) % 251 for i in range(expected))
            received += expected
            freed = received
            woken = lib.pc_pipe_publish_taken(ring.reader)
            assert woken == (asleep["writer"] and size - (sent - freed) >= size // 2)
            asleep["writer"] &= not woken
        elif step == "reader sleeps":
            asleep["reader"] = lib.pc_pipe_reader_may_sleep(ring.reader)
            assert asleep["reader"] == (seen == received)
        else:
            asleep["writer"] = lib.pc_pipe_writer_may_sleep(ring.writer)
            assert asleep["writer"] == (size - (sent - freed) < size // 2)


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_no_position_leads_out_of_the_ring(position, base, length):
    ring = Ring(192)
    assert ring.put(bytes(100)) == 100
    ring.shared.written, ring.shared.base = position, base
    got = ring.get(length)
    if length == 0:
        assert got == b""
    else:
        assert got is None if position > 192 else len(got) == min(length, position)
    ring.shared.taken = position
    put = ring.put(bytes(200))
    filled = (100 - position) % 2**64
    assert put == (-1 if filled > 192 else 192 - filled)


def test_little_traffic_stays_at_the_beginning():
    ring = Ring(64 << 10)
    for turn in range(10_000):
        content = turn.to_bytes(8, "little") * 20
        assert ring.put(content) == 160
        ring.lib.pc_pipe_publish_written(ring.writer)
        assert ring.get(160) == content
        ring.lib.pc_pipe_publish_taken(ring.reader)
    used = np.frombuffer(ring.lib.ffi.buffer(ring.data, 64 << 10), np.uint8)
    assert not used[(4 << 10) + 160 :].any()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_wake_up_is_lost_between_two_threads(seed):
    """Both ends sleep whenever they may; only the other end's bell ends a sleep."""
    ring = Ring(4096)
    lib, ffi = ring.lib, ring.lib.ffi
    rng = np.random.default_rng(seed)
    content = rng.bytes(1_000_000)
    whole, arrived = ffi.from_buffer(content), ffi.new("uint8_t[]", len(content))
    bells = {"reader": threading.Semaphore(0), "writer": threading.Semaphore(0)}
    lengths = {"reader": rng.integers(1, 1500, 1000), "writer": rng.integers(1, 1500, 1000)}
    slept = {"reader": 0, "writer": 0}

    def run(own, other, move, publish, may_sleep):
        moved = turn = 0
        while moved < len(content):
            length = min(int(lengths[own][turn % 1000]), len(content) - moved)
            turn += 1
            done = move(moved, length)
            moved += done
            if publish():
                bells[other].release()
            if done < length and may_sleep():
                slept[own] += 1
                if not bells[own].acquire(timeout=10):
                    return

    def put(at, length):
        return lib.pc_pipe_put(ring.writer, whole + at, length)

    def get(at, length):
        return lib.pc_pipe_get(ring.reader, arrived + at, length, length > 700)

    writer, reader = (
        threading.Thread(target=run, args=arguments)
        for arguments in (
            ("writer", "reader", put, lambda: lib.pc_pipe_publish_written(ring.writer),
             lambda: lib.pc_pipe_writer_may_sleep(ring.writer)),
            ("reader", "writer", get, lambda: lib.pc_pipe_publish_taken(ring.reader),
             lambda: lib.pc_pipe_reader_may_sleep(ring.reader)),
        )
    )  # fmt: skip
    for thread in (writer, reader):
        thread.start()
    for thread in (writer, reader):
        thread.join(60)
    assert bytes(arrived) == content
    assert slept["reader"] + slept["writer"] > 0
