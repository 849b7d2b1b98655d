"""Joining, leaving, groups and attributes, between real processes."""

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from cluster import Cluster, RemoteError, connect, eventually, gather

import pccl


@pytest.fixture
def cluster():
    with Cluster() as made:
        yield made


def reduce_ones(peer, count=1000):
    x = np.ones(count, np.float32)
    info = peer.comm.all_reduce(x)
    return info.local_world_size, float(x[0]), float(x[-1])


def attributes(peer):
    """Of all groups; a joint call refreshes them."""
    peer.comm.are_peers_pending()
    return [peer.comm.get_attribute(attribute) for attribute in pccl.Attribute]


def leave(peer):
    peer.comm.close()


def is_pending(peer):
    return peer.comm.are_peers_pending()


def update(peer):
    peer.comm.update_topology()
    return peer.comm.world_size


def members(peer):
    return [(m.id, m.rank, m.peer_group, m.is_self) for m in peer.comm.members]


# ----------------------------------------------------------------------------------------------------------- joining --


def test_members_agree_on_ids_and_ranks(cluster):
    peers = cluster.join(4)
    seen = cluster.call(peers, members)
    assert [[m[:3] for m in each] for each in seen] == [[[i + 1, i, 0] for i in range(4)]] * 4
    assert [[m[3] for m in each].index(True) for each in seen] == [0, 1, 2, 3]


def test_alone(cluster):
    (peer,) = cluster.join(1)
    assert peer.call(attributes) == [1, 1, 1, 1]
    assert peer.call(is_pending) is False
    assert peer.call(update) == 1
    with pytest.raises(RemoteError) as caught:
        peer.call(reduce_ones)
    assert caught.value.type == "TooFewPeersError"


def test_a_newcomer_waits_without_disturbing_the_run(cluster):
    peers = cluster.join(2)
    newcomer = cluster.spawn()
    newcomer.start(connect, master=cluster.address)
    eventually(lambda: cluster.call(peers, is_pending) == [True, True])
    for _ in range(5):
        assert cluster.call(peers, reduce_ones) == [[2, 2.0, 2.0]] * 2
    cluster.start(peers, update)
    assert newcomer.wait() == 3
    assert [peer.wait() for peer in peers] == [3, 3]
    assert cluster.call([*peers, newcomer], is_pending) == [False] * 3
    assert cluster.call([*peers, newcomer], reduce_ones) == [[3, 3.0, 3.0]] * 3


def reduce_for(peer, seconds, rank):
    """All-reduce until the run's own vote says to stop; returns how many, and whether any failed."""
    start, done = time.monotonic(), 0
    while True:
        x = np.array([float(time.monotonic() - start < seconds or rank > 0)])
        peer.comm.all_reduce(x, op="min")
        done += 1
        if x[0] == 0:
            return done


def test_a_newcomer_that_dies_before_admission_disturbs_nobody(cluster):
    peers = cluster.join(3)
    for rank, peer in enumerate(peers):
        peer.start(reduce_for, seconds=1.0, rank=rank)
    for _ in range(4):
        newcomer = cluster.spawn()
        newcomer.start(connect, master=cluster.address)
        time.sleep(0.15)
        newcomer.kill()
    counts = [peer.wait() for peer in peers]
    assert counts[0] > 100
    assert len(set(counts)) == 1
    eventually(lambda: cluster.call(peers, is_pending) == [False] * 3)


def test_several_join_at_once(cluster):
    peers = cluster.join(2)
    peers += cluster.join(4, members=peers)
    assert cluster.call(peers, reduce_ones) == [[6, 6.0, 6.0]] * 6
    assert len({tuple(map(tuple, (m[:3] for m in each))) for each in cluster.call(peers, members)}) == 1


def connect_twice(peer):
    try:
        peer.comm.connect()
    except pccl.InvalidUsageError as error:
        return error.result.name


def test_connect_twice_is_invalid_usage(cluster):
    (peer,) = cluster.join(1)
    assert peer.call(connect_twice) == "INVALID_USAGE"


def connect_in_time(peer, address, n_attempts, **options):
    comm = pccl.Communicator(address, **options)
    wall, cpu = time.monotonic(), time.process_time()
    try:
        comm.connect(n_attempts=n_attempts)
    except pccl.MasterConnectionFailedError as error:
        return time.monotonic() - wall, time.process_time() - cpu, error.record.errno, str(error)
    return time.monotonic() - wall, time.process_time() - cpu, 0, ""


def test_no_master_listening(cluster):
    """A refused attempt ends at once, so that the default ones take the four seconds between them."""
    peer = cluster.spawn()
    wall_s, cpu_s, code, text = peer.call(connect_in_time, address="127.0.0.1:1", n_attempts=5)
    assert 3.9 < wall_s < 6
    assert cpu_s < 0.3  # no spinning
    assert code == errno.ECONNREFUSED
    assert re.search(
        r"no connection to the master at 127\.0\.0\.1:1: Connection refused \(5 attempts in [45]\.\d s\)", text
    )
    assert peer.call(connect_in_time, address="127.0.0.1:1", n_attempts=1)[0] < 0.5


def test_a_silent_host_takes_the_connect_timeout(cluster):
    """One whose queue of connections is full answers nothing: as a firewall that drops them."""
    with socket.socket() as server, contextlib.ExitStack() as fillers:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        address = f"127.0.0.1:{server.getsockname()[1]}"
        call = {"address": address, "n_attempts": 1, "connect_timeout": 0.7}
        wall_s, _, code, text = cluster.spawn().call(connect_in_time, **call)
    assert 0.6 < wall_s < 2
    assert code == errno.ETIMEDOUT
    assert f"{address}: Connection timed out (1 attempt in 0." in text


def is_up(peer):
    return True


def test_a_master_that_comes_up_late_is_found(cluster):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
    peer = cluster.spawn()
    assert peer.call(is_up)
    peer.start(connect_in_time, address=address, n_attempts=5)
    time.sleep(1.3)
    with pccl.MasterNode(address):
        wall_s, *_, text = peer.wait()
    assert 1 < wall_s < 4
    assert text == ""


def suspended_while_it_waits(cluster, n_attempts):
    """A member, and a newcomer that was stopped until the master had given it up."""
    (member,) = cluster.join(1)
    newcomer = cluster.spawn()
    newcomer.start(connect_in_time, address=cluster.address, n_attempts=n_attempts)
    eventually(lambda: member.call(is_pending))
    newcomer.send_signal(signal.SIGSTOP)
    eventually(lambda: not member.call(is_pending), pause=0.1)
    newcomer.send_signal(signal.SIGCONT)
    return member, newcomer


def test_a_newcomer_that_was_suspended_tries_again():
    """Nothing speaks against it: the master has only given it up meanwhile."""
    with Cluster(PCCL_DEAD_TIMEOUT="1") as cluster:
        member, newcomer = suspended_while_it_waits(cluster, 30)
        assert member.call(gather, world=2) is None
        wall_s, *_, text = newcomer.wait()
        assert wall_s > 1
        assert text == ""


def test_a_suspended_newcomer_is_told_what_became_of_it():
    with Cluster(PCCL_DEAD_TIMEOUT="1") as cluster:
        _, newcomer = suspended_while_it_waits(cluster, 1)
        assert "has been silent for" in newcomer.wait()[3]


def connect_with_three_descriptors(peer, address):
    import resource

    last = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        pccl.Communicator(address).connect(n_attempts=1)
    except pccl.PCCLError as error:
        return str(error)


def test_a_lack_of_descriptors_is_an_error(cluster):
    """libuv would end the process."""
    text = cluster.spawn().call(connect_with_three_descriptors, address=cluster.address)
    assert "cannot create an event loop: too many open files" in text
    assert "ulimit -n" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ifname": "eht0"}, "ifname='eht0': expected the name of an interface that is up here and has an address"),
        (
            {"advertise": "0.0.0.0"},
            "advertise='0.0.0.0': expected host or host:port at which other hosts reach this one",
        ),
        ({"advertise": "127.0.0.1:0"}, "advertise='127.0.0.1:0': expected"),
        ({"advertise": "127.0.0.1:99999"}, "advertise='127.0.0.1:99999': expected"),
    ],
)
def test_a_wrong_place_is_refused_at_once(monkeypatch, options, said):
    with pytest.raises(pccl.InvalidArgumentError) as caught:
        pccl.Communicator("127.0.0.1:1", **options)
    assert said in str(caught.value)
    names = {"ifname": "PCCL_SOCKET_IFNAME", "advertise": "PCCL_ADVERTISE"}
    for name, value in options.items():
        monkeypatch.setenv(names[name], value)
        with pytest.raises(pccl.InvalidArgumentError, match=names[name]):
            pccl.Communicator("127.0.0.1:1")


def test_connect_can_be_tried_again(cluster):
    peer = cluster.spawn()

    def fail_then_connect(peer, wrong, right):
        peer.comm = pccl.Communicator(right, run_key=None)
        failing = pccl.Communicator(wrong, connect_timeout=0.2)
        for _ in range(2):
            with contextlib.suppress(pccl.MasterConnectionFailedError):
                failing.connect(1)
        failing.close()
        peer.comm.connect(1)
        return peer.comm.world_size

    assert peer.call(fail_then_connect, wrong="127.0.0.1:1", right=cluster.address) == 1


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_names_and_ipv6(host):
    listen = "[::1]:0" if host == "[::1]" else "127.0.0.1:0"
    with Cluster(listen=listen) as cluster:
        cluster.address = f"{host}:{cluster.address.rpartition(':')[2]}"
        peers = cluster.join(2)
        assert cluster.call(peers, reduce_ones) == [[2, 2.0, 2.0]] * 2


# ----------------------------------------------------------------------------------------------------------- leaving --


def test_leave_is_no_failure(cluster):
    peers = cluster.join(3)
    assert cluster.call(peers, reduce_ones) == [[3, 3.0, 3.0]] * 3
    peers[1].call(leave)
    rest = [peers[0], peers[2]]
    eventually(lambda: cluster.call(rest, attributes) == [[2, 2, 1, 2]] * 2)
    assert cluster.call(rest, reduce_ones) == [[2, 2.0, 2.0]] * 2
    assert [[m[:2] for m in each] for each in cluster.call(rest, members)] == [[[1, 0], [3, 1]]] * 2


def test_leave_and_come_back(cluster):
    peers = cluster.join(2)
    first_id = peers[1].id
    peers[1].call(leave)
    eventually(lambda: peers[0].call(attributes)[0] == 1)
    cluster.connect([peers[1]], members=[peers[0]])
    assert peers[1].id > first_id
    assert cluster.call(peers, reduce_ones) == [[2, 2.0, 2.0]] * 2


def leave_with_ops_in_flight(peer, count):
    data = [np.ones(count, np.float32) for _ in range(8)]
    handles = [peer.comm.all_reduce_async(x, tag=tag) for tag, x in enumerate(data)]
    start = time.monotonic()
    peer.comm.close()
    took_s = time.monotonic() - start
    assert took_s < 2, took_s
    statuses = []
    for handle in handles:
        try:
            handle.result(0)
            statuses.append("SUCCESS")
        except pccl.PCCLError as error:
            statuses.append(error.result.name)
    return statuses


def test_destroy_with_operations_in_flight(cluster):
    peers = cluster.join(3)
    assert set(peers[2].call(leave_with_ops_in_flight, count=2_000_000)) <= {"CANCELLED"}
    eventually(lambda: cluster.call(peers[:2], attributes) == [[2, 2, 1, 2]] * 2)
    assert cluster.call(peers[:2], reduce_ones) == [[2, 2.0, 2.0]] * 2


def exit_in_flight(peer, how):
    import threading

    x = np.ones(1_000_000, np.float32)
    peer.comm.all_reduce_async(x)
    threading.Thread(target=lambda: peer.comm.are_peers_pending(), daemon=True).start()
    peer.emit("going")
    if how == "_exit":
        os._exit(7)
    os.environ["PCCL_TEST"] = "x"
    signal.raise_signal(getattr(signal, how))


@pytest.mark.parametrize(("how", "status"), [("_exit", 7), ("SIGTERM", -15), ("SIGSEGV", -11), ("SIGABRT", -6)])
def test_process_ends_with_operations_in_flight(cluster, how, status):
    peers = cluster.join(3)
    peers[2].start(exit_in_flight, how=how)
    peers[2].event("going")
    assert peers[2].popen.wait(5) == status
    eventually(lambda: cluster.call(peers[:2], attributes) == [[2, 2, 1, 2]] * 2)
    assert cluster.call(peers[:2], reduce_ones) == [[2, 2.0, 2.0]] * 2


# ------------------------------------------------------------------------------------------------------------ groups --


def test_groups_reduce_apart(cluster):
    red, blue = [cluster.spawn() for _ in range(2)], [cluster.spawn() for _ in range(3)]
    for group, peers in ((5, red), (9, blue)):
        for peer in peers:
            peer.start(connect, master=cluster.address, peer_group=group)

    def gather_all(peer, world):
        peer.gather(world)

    cluster.start([*red, *blue], gather_all, world=5)
    for peer in [*red, *blue]:
        peer.wait()
        peer.wait()
    assert cluster.call([*red, *blue], attributes) == [[5, 2, 2, 3]] * 2 + [[5, 3, 2, 3]] * 3
    cluster.start([*red, *blue], reduce_ones)
    assert [peer.wait() for peer in red] == [[2, 2.0, 2.0]] * 2
    assert [peer.wait() for peer in blue] == [[3, 3.0, 3.0]] * 3
    # One group's loss is not the other's failure.
    cluster.start(red, reduce_for, seconds=0.5, rank=0)
    blue[2].kill()
    assert min(peer.wait() for peer in red) > 10
    eventually(lambda: cluster.call([*red, *blue[:2]], attributes) == [[4, 2, 2, 2]] * 4)
    assert cluster.call(blue[:2], reduce_ones) == [[2, 2.0, 2.0]] * 2


# ----------------------------------------------------------------------------------------------- signals and forking --


def call_until_interrupted(peer, call):
    comm = peer.comm
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(np.zeros(4, np.float32), "t")])
    calls = {
        "all_reduce": lambda: comm.all_reduce(np.ones(4, np.float32)),
        "update_topology": comm.update_topology,
        "are_peers_pending": comm.are_peers_pending,
        "sync_shared_state": lambda: comm.sync_shared_state(state),
    }
    try:
        peer.emit("calling")
        calls[call]()
    except KeyboardInterrupt:
        return time.monotonic()
    return None


@pytest.mark.parametrize("call", ["all_reduce", "update_topology", "are_peers_pending", "sync_shared_state"])
def test_ctrl_c_in_a_blocking_call(cluster, call):
    peers = cluster.join(2)
    peers[0].start(call_until_interrupted, call=call)
    peers[0].event("calling")
    time.sleep(0.1)
    start = time.monotonic()  # the same clock in all processes
    peers[0].send_signal(signal.SIGINT)
    assert peers[0].wait() - start < 0.2


def connect_until_interrupted(peer, master):
    comm = pccl.Communicator(master)
    peer.emit("calling")
    try:
        comm.connect()
    except KeyboardInterrupt:
        return time.monotonic()
    return None


def test_ctrl_c_while_connecting(cluster):
    cluster.join(1)
    newcomer = cluster.spawn()
    newcomer.start(connect_until_interrupted, master=cluster.address)
    newcomer.event("calling")
    time.sleep(0.2)
    start = time.monotonic()
    newcomer.send_signal(signal.SIGINT)
    assert newcomer.wait() - start < 0.2


def fork_and_use(peer):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            peer.comm.all_reduce(np.ones(4, np.float32))
        except pccl.PCCLError as error:
            os.write(write, error.result.name.encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 100).decode()
    os.close(read)
    os.waitpid(child, 0)
    return said


def test_fork_after_connect(cluster):
    peers = cluster.join(2)
    assert cluster.call(peers, fork_and_use) == ["FORKED", "FORKED"]
    assert cluster.call(peers, reduce_ones) == [[2, 2.0, 2.0]] * 2


FORKS = """
import os, signal, sys, time
import pccl

master = pccl.MasterNode("127.0.0.1:0")
master.run()
address = f"127.0.0.1:{master.port}"
children = set()
for _ in range(12):
    child = os.fork()
    if child == 0:
        pccl.Communicator(address).connect()
        os._exit(0)
    children.add(child)
end = time.monotonic() + 15
connected = 0
while children:
    for child in list(children):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        pid, status = os.waitpid(child, os.WNOHANG)
        connected += pid != 0 and status == 0
        children -= {pid}
    time.sleep(0.005)
master.interrupt()
print(connected)
"""


def test_children_forked_while_the_master_proves_itself_to_their_brothers():
    """Each time in a new process: what the first proof needs is made when the master's thread begins to answer."""
    for _ in range(8):
        command = [sys.executable, "-W", "ignore", "-c", FORKS]
        done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("12\n", "")
