"""Network namespaces of this machine as hosts of their own."""

import contextlib
import os
import shutil
import subprocess

import pytest

needs_netns = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="makes network namespaces: needs root and iproute2"
)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@contextlib.contextmanager
def namespaces(count):
    """A hub namespace with a bridge at 10.77.0.1, and ``count`` namespaces behind it at 10.77.0.2 and on."""
    hub = f"pccl-{os.getpid()}-hub"
    names = [f"pccl-{os.getpid()}-{i}" for i in range(count)]
    made = []
    try:
        for name in (hub, *names):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "address", "add", "10.77.0.1/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for i, name in enumerate(names):
            ip("-n", hub, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", hub, "link", "set", f"port{i}", "master", "bridge", "up")
            ip("-n", name, "address", "add", f"10.77.0.{i + 2}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield hub, names
    finally:
        for name in made:
            ip("netns", "delete", name)
