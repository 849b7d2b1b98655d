"""A collective's plan, carried out over a modelled network, event by event.

The plans are those of csrc/plan; the network is a small model of its own that shares no formula with
csrc/plan/cost.c: segments are served one after another by the sender's host, its uplink, the link, the receiver's
downlink and host. A link of 2 ms or more begins with ten packets in flight, and every acknowledgement lets as much more
out; a lost packet makes its segment late by a round trip. The same arguments give the same times.
"""

from __future__ import annotations

import heapq
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import c_level

lib = c_level.load(
    """
    struct pc_op_shape {
        uint64_t count, layout; uint32_t root; uint8_t collective, dtype, redop, consistency, algorithm;
        uint8_t codec, codec_bits; uint32_t codec_block;
    };
    struct pc_codec { uint8_t kind, bits; bool stochastic, finite_only; uint32_t block; };
    struct pc_chunk {
        uint32_t number, segments, segment_elems; uint64_t elems, own_elem, out_elem; bool kept;
        uint32_t inputs_at, input_count, copies_at, copy_count, down_at, down_count, up, from;
    };
    struct pc_chunk_plan {
        uint32_t n, rank, chunk_count, rank_count; struct pc_chunk *chunks; uint32_t *ranks;
        uint32_t elem_bytes, acc_bytes;
        struct pc_codec codec;
    };
    struct pc_plan_request {
        const struct pc_op_shape *shape; uint32_t n, rank; const uint32_t *ring; uint64_t count;
        const uint64_t *counts, *recv_counts; uint32_t source, target, rtt_us; const uint32_t *shares;
    };
    struct pc_cost_request { uint32_t n; const uint32_t *ring, *rtt_us, *bytes_per_ms; };
    struct pc_ring_request { uint32_t n; const uint64_t *bandwidth, *latency_ns; uint64_t budget; const bool *stop; };
    struct pc_ring_quality { uint64_t bottleneck, latency_ns; bool widest; };
    size_t pc_chunk_plan_bytes(uint32_t n);
    int pc_chunk_plan_init(struct pc_chunk_plan *plan, const struct pc_plan_request *request, void *memory);
    bool pc_algorithm_fits(const struct pc_op_shape *shape, uint8_t algorithm);
    uint8_t pc_algorithm_choose(const struct pc_op_shape *shape, uint32_t n, uint32_t rtt_us, const void *cost);
    size_t pc_cost_bytes(uint32_t n);
    const void *pc_cost_init(const struct pc_cost_request *request, void *memory);
    uint64_t pc_cost_ns(const void *cost, const struct pc_op_shape *shape, uint8_t algorithm);
    const uint32_t *pc_cost_shares(const void *cost, const struct pc_op_shape *shape);
    size_t pc_ring_order_bytes(uint32_t n);
    bool pc_ring_order(const struct pc_ring_request *request, uint32_t *order, struct pc_ring_quality *quality,
                       void *memory);
    """,
    only=("base", "bytes", "math", "plan", "wire"),
)
ffi = lib.ffi
COLLECTIVES = {"all_reduce": 0, "broadcast": 1, "reduce": 2, "all_gather": 3, "reduce_scatter": 4}
ALGORITHMS = {1: "ring", 2: "tree", 3: "direct", 4: "exchange"}
NONE = 2**32 - 1
FLOAT = 10
FAR_MS = 2.0
FLIGHT_BYTES = 14480
PACKET_BYTES = 1448
WAKE_MS, SEGMENT_MS, HOST_BYTES_PER_MS = 0.015, 0.003, 5e6


@dataclass(frozen=True)
class Network:
    """Matrices from sender to receiver; what a member's uplink and downlink carry; how many packets are lost."""

    rtt_ms: Any
    bytes_per_ms: Any
    up: Any
    down: Any
    loss: Any = 0.0

    @property
    def n(self) -> int:
        return len(self.bytes_per_ms)


@dataclass
class Link:
    """What TCP does beyond serving segments in order."""

    rtt_ms: float
    free_ms: float = 0.0
    acknowledged: int = 0
    flight: list[tuple[float, int]] = field(default_factory=list)  # acknowledged when, how much; in order

    def send(self, start_ms: float, size: int, bytes_per_ms: float) -> float:
        """When the last byte has been sent."""
        at = max(start_ms, self.free_ms)
        while size > 0:
            while self.flight and self.flight[0][0] <= at:
                self.acknowledged += self.flight.pop(0)[1]
            room = size
            if self.rtt_ms >= FAR_MS:
                room = FLIGHT_BYTES + self.acknowledged - sum(bytes_ for _, bytes_ in self.flight)
            if room <= 0:
                at = self.flight[0][0]
                continue
            part = min(room, size)
            at += part / bytes_per_ms
            size -= part
            if self.rtt_ms >= FAR_MS and self.acknowledged < bytes_per_ms * self.rtt_ms * 2:
                self.flight.append((at + self.rtt_ms, part))
        self.free_ms = at
        return at


@dataclass
class Uplink:
    busy: bool = False
    turn: float = 0.0
    last: dict[int, float] = field(default_factory=dict)
    waiting: list[tuple[float, int, tuple[Any, ...]]] = field(default_factory=list)


class Member:
    """One rank's plan, and of each segment what it waits for."""

    def __init__(self, shape: Any, n: int, rank: int, ring: Any, shares: Any, far: bool) -> None:
        request = ffi.new(
            "struct pc_plan_request *", {"shape": shape, "n": n, "rank": rank, "ring": ring, "count": shape.count}
        )
        request.rtt_us = 10_000 if far else 100
        request.shares = shares
        self._memory = ffi.new("uint64_t[]", lib.pc_chunk_plan_bytes(n) // 8 + 1)
        self.plan = ffi.new("struct pc_chunk_plan *")
        assert lib.pc_chunk_plan_init(self.plan, request, self._memory) == 0
        self.chunks = {}
        for i in range(self.plan.chunk_count):
            chunk = self.plan.chunks[i]
            inputs = [self.plan.ranks[chunk.inputs_at + k] for k in range(chunk.input_count)]
            self.chunks[chunk.number] = {
                "elems": chunk.elems, "segments": chunk.segments, "segment_elems": chunk.segment_elems,
                "waits": sum(one != rank for one in inputs), "inputs": len(inputs),
                "copies": [self.plan.ranks[chunk.copies_at + k] for k in range(chunk.copy_count)],
                "down": [self.plan.ranks[chunk.down_at + k] for k in range(chunk.down_count)],
                "up": chunk.up, "from": chunk.__getattribute__("from"),
            }  # fmt: skip


class Run:
    def __init__(self, network: Network, members: list[Member], seed: int) -> None:
        self.network, self.members = network, members
        self.rng = np.random.default_rng(seed)
        n = network.n
        self.host, self.down = [0.0] * n, [0.0] * n
        self.up = [Uplink() for _ in range(n)]
        self.links = {(i, j): Link(float(network.rtt_ms[i, j])) for i in range(n) for j in range(n) if i != j}
        self.events: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self.order = 0
        self.arrived: dict[tuple[int, int, int], int] = {}
        self.end_ms = 0.0

    def later(self, at_ms: float, what: str, *arguments: Any) -> None:
        self.order += 1
        heapq.heappush(self.events, (at_ms, self.order, what, arguments))

    def bytes_of(self, rank: int, number: int, segment: int) -> int:
        chunk = self.members[rank].chunks[number]
        return 4 * int(min(chunk["elems"] - segment * chunk["segment_elems"], chunk["segment_elems"]))

    def on_send(self, at_ms: float, sender: int, receiver: int, number: int, segment: int, final: bool) -> None:
        size = self.bytes_of(sender, number, segment)
        network = self.network
        self.host[sender] = max(at_ms, self.host[sender]) + SEGMENT_MS + size / HOST_BYTES_PER_MS
        sent = self.links[sender, receiver].send(self.host[sender], size, float(network.bytes_per_ms[sender, receiver]))
        served_ms = size / float(network.up[sender])
        self.later(max(sent - served_ms, at_ms), "leave", sender, receiver, number, segment, final)

    def on_leave(self, at_ms: float, sender: int, receiver: int, number: int, segment: int, final: bool) -> None:
        """The link has room: the uplink serves its links in turn, byte for byte."""
        uplink = self.up[sender]
        tag = max(uplink.turn, uplink.last.get(receiver, 0.0)) + self.bytes_of(sender, number, segment)
        uplink.last[receiver] = tag
        self.order += 1
        heapq.heappush(uplink.waiting, (tag, self.order, (receiver, number, segment, final)))
        if not uplink.busy:
            self.on_next(at_ms, sender)

    def on_next(self, at_ms: float, sender: int) -> None:
        uplink, network = self.up[sender], self.network
        uplink.busy = bool(uplink.waiting)
        if not uplink.waiting:
            return
        uplink.turn, _, (receiver, number, segment, final) = heapq.heappop(uplink.waiting)
        size = self.bytes_of(sender, number, segment)
        at_ms += size / float(network.up[sender])
        self.later(at_ms, "next", sender)
        loss = float(np.broadcast_to(network.loss, (network.n, network.n))[sender, receiver])
        rtt_ms = float(network.rtt_ms[sender, receiver])
        late_ms = rtt_ms if loss > 0 and self.rng.random() < 1 - (1 - loss) ** -(-size // PACKET_BYTES) else 0.0
        self.later(at_ms + late_ms + rtt_ms / 2 + WAKE_MS, "receive", sender, receiver, number, segment, final)

    def on_receive(self, at_ms: float, sender: int, receiver: int, number: int, segment: int, final: bool) -> None:
        size = self.bytes_of(receiver, number, segment)
        served_ms = size / float(self.network.down[receiver])
        self.down[receiver] = max(at_ms, self.down[receiver] + served_ms)
        self.host[receiver] = max(self.down[receiver], self.host[receiver]) + SEGMENT_MS + size / HOST_BYTES_PER_MS
        self.later(self.host[receiver], "have", receiver, number, segment, final)

    def on_have(self, at_ms: float, rank: int, number: int, segment: int, final: bool) -> None:
        """Another input of a segment, or its final value, is here."""
        chunk = self.members[rank].chunks[number]
        self.end_ms = max(self.end_ms, at_ms)
        if not final:
            key = (rank, number, segment)
            self.arrived[key] = self.arrived.get(key, 0) + 1
            if self.arrived[key] < chunk["waits"]:
                return
            if chunk["up"] != NONE:
                self.later(at_ms, "send", rank, chunk["up"], number, segment, False)
                return
        for receiver in chunk["down"]:
            self.later(at_ms, "send", rank, receiver, number, segment, True)

    def start(self) -> None:
        """Own contributions that wait for nobody, of all chunks in turn, each member's first one another."""
        for rank, member in enumerate(self.members):
            ready = []
            for number, chunk in member.chunks.items():
                turn = (number - rank) % self.network.n
                for segment in range(chunk["segments"]):
                    for receiver in chunk["copies"]:
                        ready.append((segment, (receiver - rank) % self.network.n, receiver, number, False))
                    if chunk["inputs"] == 0 or chunk["waits"] > 0:
                        continue
                    if chunk["up"] != NONE:
                        ready.append((segment, turn, chunk["up"], number, False))
                    elif chunk["from"] == NONE:
                        ready.extend((segment, turn, receiver, number, True) for receiver in chunk["down"])
            for segment, _, receiver, number, final in sorted(ready):
                self.later(0.0, "send", rank, receiver, number, segment, final)

    def run(self) -> float:
        self.start()
        steps = {
            "send": self.on_send,
            "leave": self.on_leave,
            "next": self.on_next,
            "receive": self.on_receive,
            "have": self.on_have,
        }
        while self.events:
            at_ms, _, what, arguments = heapq.heappop(self.events)
            steps[what](at_ms, *arguments)
        return self.end_ms


def shape_of(collective: str, size: int, algorithm: int = 0) -> Any:
    return ffi.new(
        "struct pc_op_shape *",
        {"count": size // 4, "dtype": FLOAT, "collective": COLLECTIVES[collective], "algorithm": algorithm},
    )


def carry_out(network: Network, shape: Any, ring: list[int], shares: Any = ffi.NULL, seed: int = 1) -> float:
    """Milliseconds until the last member has its result."""
    far = bool(np.max(network.rtt_ms) >= FAR_MS)
    order = ffi.new("uint32_t[]", ring)
    members = [Member(shape, network.n, rank, order, shares, far) for rank in range(network.n)]
    return Run(network, members, seed).run()
