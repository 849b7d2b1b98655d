"""The wide-area network of the benchmarks keeps the times, rates and losses it is told, and leaves nothing behind."""

import ctypes
import os
import re
import signal
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path as FilePath

import pytest
from harness import BENCH
from wan import calibrate
from wan.emulator import Access, Path, Wan, WanError, build, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.netns,
    pytest.mark.serial,  # it measures times
]

DELAY_S, RATE_BPS = 0.020, 100e6


def namespace_users(inode):
    """Processes in a network namespace, and those that hold it open."""
    users = set()
    for link in [*FilePath("/proc").glob("[0-9]*/ns/net"), *FilePath("/proc").glob("[0-9]*/fd/*")]:
        try:
            if os.readlink(link) == f"net:[{inode}]":
                users.add(int(link.parts[2]))
        except OSError:
            continue
    return users


def inodes(wan):
    return [os.stat(namespace).st_ino for namespace in wan.namespaces]


def is_running(pid):
    return FilePath(f"/proc/{pid}").exists()


@pytest.mark.parametrize("precise", [False, True])
def test_round_trip_rate_and_end(precise):
    path, access = Path(delay_s=DELAY_S), Access(rate_bps=RATE_BPS)
    with Wan(2, path=path, access=access, congestion="reno", seed=1, precise=precise) as wan:
        pid, namespaces = wan.pid, inodes(wan)
        assert len({*namespaces, os.stat("/proc/self/ns/net").st_ino}) == 3
        assert namespace_users(namespaces[0]) == {pid}
        trip = calibrate.round_trip(wan, count=50)
        assert trip["came"] == 50
        assert trip["min_ms"] > 40
        assert trip["median_ms"] < 40 * 1.05
        bulk = calibrate.throughput(wan, 16 << 20, 4, own=True)
        assert bulk["bytes"] == 16 << 20
        assert 80 < bulk["mbit_per_s"] < 100
        child = wan.run_in(1, ["sleep", "1000"])
        report = wan.report()
        assert report["awake"] == precise
        assert (report["losses"], report["overflow"], report["refused"], wan.kernel_drops()) == (0, 0, 0, 0)
    assert child.returncode == -signal.SIGKILL
    assert not is_running(pid)
    assert [namespace_users(inode) for inode in namespaces] == [set(), set()]
    assert wan.final_report["packets"] >= report["packets"]
    assert wan.final_report["delivered"] + wan.final_report["queue_drops"] <= wan.final_report["packets"]


def send_and_count(wan, node, to, count, interval_s=0.0002):
    receiver = calibrate.serve(wan, to, "count", "5400", "0.3")
    calibrate.ask(wan, node, "flood", wan.addresses[to], "5400", str(count), str(interval_s))
    return calibrate.answer(receiver)["came"]


def test_loss_takes_its_share_of_one_direction():
    def path(node, to):
        return Path(delay_s=0.001, loss=0.1 if (node, to) == (0, 1) else 0)

    with Wan(3, path=path, seed=5) as wan:
        came = send_and_count(wan, 0, 1, 3000)
        # 300 of 3000 are expected to be lost; five standard deviations of 16
        assert 2618 < came < 2782
        assert wan.report()["losses"] == 3000 - came
        assert send_and_count(wan, 1, 0, 300) == 300
        assert send_and_count(wan, 0, 2, 300) == 300
        wan.set_path(0, 1, Path(delay_s=0.001))
        assert send_and_count(wan, 0, 1, 300) == 300


class Segments(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("count", "header_bytes", "payload_bytes", "size")]


def folded_sum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_frame(payload, size, sequence, flags, ip_id):
    """virtio_net_hdr, IPv4, TCP with 12 bytes of options; the checksum of TCP left to be filled in."""
    several = len(payload) > size
    offload = struct.pack("=BBHHHH", 1, several, 62, size if several else 0, 20, 16)
    addresses = bytes((10, 77, 0, 1, 10, 77, 0, 2))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 52 + len(payload), ip_id, 0x4000, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", 0xFFFF - folded_sum(ip)) + ip[12:]
    pseudo = folded_sum(addresses + struct.pack("!HH", 6, 32 + len(payload)))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, sequence, 3, 0x80, flags, 4, pseudo, 0) + bytes(range(12))
    return offload + ip + tcp + payload


def test_a_cut_frame_is_what_hardware_would_send(tmp_path):
    library = tmp_path / "segments.so"
    source = BENCH / "wan" / "segments.c"
    subprocess.run(["cc", "-std=c11", "-O1", "-shared", "-fPIC", source, "-o", library], check=True, timeout=60)
    segments_c = ctypes.CDLL(str(library))
    segments_c.wan_segments_parse.restype = ctypes.c_bool
    size, fin, psh, ack, cwr = 100, 1, 8, 16, 128
    payload = bytes(i * 7 % 251 for i in range(4 * size + 30))
    frame = tcp_frame(payload, size, 2**32 - 150, fin | psh | ack | cwr, 65534)
    found = Segments()
    assert segments_c.wan_segments_parse(frame, len(frame), ctypes.byref(found))
    assert (found.count, found.header_bytes, found.payload_bytes, found.size) == (5, 52, 430, 100)
    for length in (*range(30), 40, 61, 62):  # no payload at all
        assert not segments_c.wan_segments_parse(frame, length, ctypes.byref(found))
    assert segments_c.wan_segments_parse(frame, len(frame), ctypes.byref(found))
    wire_bytes = [segments_c.wan_segments_wire_bytes(ctypes.byref(found), i) for i in range(5)]
    assert wire_bytes == [152, 152, 152, 152, 82]
    for first in range(5):
        for count in range(1, 6 - first):
            out = ctypes.create_string_buffer(len(frame))
            length = segments_c.wan_segments_cut(ctypes.byref(found), frame, first, count, out)
            flags = ack | (cwr if first == 0 else 0) | (fin | psh if first + count == 5 else 0)
            part = payload[first * size : (first + count) * size]
            sequence = (2**32 - 150 + first * size) % 2**32
            expected = bytearray(tcp_frame(part, size, sequence, flags, (65534 + first) % 65536))
            expected[1] = count > 1
            expected[4:6] = struct.pack("=H", size if count > 1 else 0)
            assert out.raw[:length] == expected


RECEIVER = """
import hashlib, socket
server = socket.create_server(("0.0.0.0", 5600))
print("ready", flush=True)
end, digest = server.accept()[0], hashlib.sha256()
while data := end.recv(1 << 16):
    digest.update(data)
print(digest.hexdigest())
"""

SENDER = """
import hashlib, random, socket, sys
data = random.Random(3).randbytes(3 << 20)
with socket.create_connection((sys.argv[1], 5600)) as end:
    end.sendall(data)
print(hashlib.sha256(data).hexdigest())
"""


def test_frames_of_several_packets_lose_single_ones():
    """The kernel doesn't verify the checksums of what stays in the machine, so a frame cut wrongly would show here."""
    with Wan(2, path=Path(delay_s=0.001, loss=0.02), seed=11, segments=16, congestion="reno") as wan:
        receiver = wan.run_in(1, [sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True)
        assert receiver.stdout.readline() == "ready\n"
        sent = wan.check_in(0, [sys.executable, "-c", SENDER, wan.addresses[1]], timeout=60)
        assert len(sent.stdout) == 65
        assert receiver.communicate(timeout=60)[0] == sent.stdout
        report = wan.report()
        forward = report["paths"][0]
        assert forward["bytes"] > (3 << 20) * 1500 / 1448
        assert 20 < forward["losses"] < 80  # of at least 2173 packets
        assert forward["losses"] + report["nodes"][1]["delivered"] == forward["packets"]
        assert report["frames"] < report["packets"]


def test_the_same_seed_loses_the_same_packets():
    def losses(seed):
        with Wan(2, path=Path(loss=0.3), seed=seed) as wan:
            return send_and_count(wan, 0, 1, 300)

    assert losses(7) == losses(7)


def test_a_full_queue_drops():
    # 40 packets of 128 bytes take 4.1 ms at 10 Mbit/s; the queue holds 1 ms, which is 9.
    with Wan(2, path=Path(rate_bps=10e6, queue_s=0.001)) as wan:
        came = send_and_count(wan, 0, 1, 40, interval_s=0)
        report = wan.report()
        assert 9 <= came < 40
        assert report["paths"][0]["queue_drops"] == report["queue_drops"] == 40 - came


def test_paths_of_a_node_share_its_access_link():
    """Two senders to one node get its rate together, whatever their own links could do."""
    with Wan(3, path=Path(delay_s=0.002), access=Access(rate_bps=1e9)) as wan:
        wan.set_access(2, Access(rate_bps=40e6))
        servers = [wan.run_in(2, [sys.executable, calibrate.PROBE, "sink", str(port), "1"], stdout=subprocess.PIPE)
                   for port in (5501, 5502)]  # fmt: skip
        for server in servers:
            assert server.stdout.readline() == b"ready\n"
        start = time.monotonic()
        senders = [
            wan.run_in(i, [sys.executable, calibrate.PROBE, "bulk", wan.addresses[2], str(5501 + i), "1", str(2 << 20)])
            for i in (0, 1)
        ]
        bytes_each = [calibrate.answer(server)["bytes"] for server in servers]
        seconds = time.monotonic() - start
        assert [sender.wait() for sender in senders] == [0, 0]
        assert bytes_each == [2 << 20, 2 << 20]
        assert statistics.fsum(bytes_each) * 8 / seconds < 40e6


def test_the_emulator_ends_with_its_starter():
    """However that ended: its standard input ends."""
    with Wan(2) as wan:
        pid, namespaces = wan.pid, inodes(wan)
        wan._emulator.stdin.close()
        assert wan._emulator.wait(5) == 0
        assert not is_running(pid)
        assert [namespace_users(inode) for inode in namespaces] == [set(), set()]


def test_an_error_on_the_way_leaves_nothing():
    wan = Wan(2, congestion="no-such-algorithm")
    with pytest.raises(WanError, match="congestion"):
        wan.__enter__()
    assert wan._emulator is None


@pytest.mark.parametrize(
    "lines", ["nodes 1 9 1500 1", "path 0 1 0 0 0 0", "report", "nodes 2 9 99 1\npath 0 1 0 0 0 2"]
)
def test_a_wrong_command_ends_the_emulator(lines):
    done = subprocess.run([build()], input=lines + "\n", capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"wan-emulator: .*: not understood\n", done.stderr)
