"""One peer of the training run: python -m charlm.peer MASTER SHARD SHARDS PEERS STEPS BATCH.

It trains on its own shard and averages the gradients with whoever is there. What it has to say goes to stdout, a JSON
object a line. With --wait it joins when a line arrives on stdin.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass, field

import numpy as np

import pccl
from charlm import corpus, model


def say(event: str, **values: object) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


@dataclass
class Trainer:
    """What all peers hold alike, and the communicator that keeps it so."""

    comm: pccl.Communicator
    parameters: np.ndarray = field(default_factory=lambda: model.initial(seed=1))
    optimizer: model.Adam = field(default_factory=lambda: model.Adam(model.SIZE))
    step: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    sent_bytes: int = 0
    lost_s: float = 0.0  # spent in calls that a dead peer spoiled

    def __post_init__(self) -> None:
        # One element more than there are parameters: the batch's loss travels with the last group.
        self.grads = np.zeros(model.SIZE + 1, np.float32)
        *bounds, (start, end) = model.group_bounds()
        self.parts = [self.grads[a:b] for a, b in (*bounds, (start, end + 1))]
        tensors = {
            "parameters": self.parameters,
            "adam.mean": self.optimizer.mean,
            "adam.square": self.optimizer.square,
            "step": self.step,
        }
        self.state = pccl.SharedState([pccl.TensorInfo.from_numpy(t, name) for name, t in tensors.items()])

    def admit_newcomers(self) -> None:
        """Take in the peers that wait, and give them the state. Whoever was admitted makes the same sync() call."""
        start, world = time.monotonic(), self.comm.world_size
        pending = self.comm.are_peers_pending()
        if self.comm.world_size < world:
            self.lost_s += time.monotonic() - start
        if pending:
            self.comm.update_topology()
            self.sync()

    def sync(self) -> int:
        received = self.comm.sync_shared_state(self.state).rx_bytes
        self.state.push_revision()
        return received

    def train_step(self, contexts: np.ndarray, targets: np.ndarray, rate: float) -> float:
        """One step on this peer's batch and everybody else's; returns the loss averaged over all of them."""
        gradients = self.grads[:-1]
        handles = []
        for tag, loss in enumerate(model.backward(self.parameters, gradients, contexts, targets)):
            if tag == len(self.parts) - 1:
                self.grads[-1] = loss
            handles.append(self.average_async(tag))
        for tag, handle in enumerate(handles):
            self.finish(tag, handle)
        self.step += 1
        self.optimizer.update(self.parameters, gradients, int(self.step[0]), rate)
        return float(self.grads[-1])

    def average_async(self, tag: int) -> pccl.AsyncReduceHandle | None:
        """Start averaging one part of the gradient, while the next is being computed. Alone there is nothing to do."""
        try:
            return self.comm.all_reduce_async(self.parts[tag], op="avg", tag=tag)
        except (pccl.TooFewPeersError, pccl.RankConnectionLostError):
            return None

    def finish(self, tag: int, handle: pccl.AsyncReduceHandle | None) -> None:
        """A part that lost a peer is as it was before; average it again, with the peers that are left."""
        start = time.monotonic()
        try:
            if handle is not None:
                self.sent_bytes += handle.result().tx_bytes
                return
        except (pccl.TooFewPeersError, pccl.RankConnectionLostError):
            self.lost_s += time.monotonic() - start
        while self.comm.world_size > 1:
            try:
                self.sent_bytes += self.comm.all_reduce(self.parts[tag], op="avg", tag=tag, retry=True).tx_bytes
                return
            except pccl.TooFewPeersError:
                continue

    def digest(self) -> str:
        return hashlib.blake2b(self.parameters.tobytes(), digest_size=16).hexdigest()


def train(trainer: Trainer, shard: np.ndarray, arguments: argparse.Namespace) -> None:
    comm = trainer.comm
    rng = np.random.default_rng(arguments.shard)
    while trainer.step[0] < arguments.steps:
        contexts, targets = model.batch(shard, arguments.batch, rng)
        loss = trainer.train_step(contexts, targets, model.rate(int(trainer.step[0]) + 1, arguments.steps))
        trainer.admit_newcomers()  # at the end: a newcomer goes straight to the step that the others do next
        say(
            "step",
            step=int(trainer.step[0]),
            loss=loss,
            world=comm.world_size,
            sent_bytes=trainer.sent_bytes,
            lost_s=trainer.lost_s,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="charlm.peer")
    parser.add_argument("master")
    for name in ("shard", "shards", "peers", "steps", "batch"):
        parser.add_argument(name, type=int)
    parser.add_argument("--wait", action="store_true", help="join when a line arrives on stdin")
    arguments = parser.parse_args()

    codes = corpus.load()
    held_out = corpus.shard(codes, arguments.shards, arguments.shards + 1)
    shard = corpus.shard(codes, arguments.shard, arguments.shards + 1)
    if arguments.wait:
        sys.stdin.readline()

    with pccl.Communicator(arguments.master) as comm:
        trainer = Trainer(comm)
        received_bytes = trainer.sync()
        while trainer.step[0] == 0 and comm.world_size < arguments.peers:
            time.sleep(0.005)
            trainer.admit_newcomers()
        say("joined", step=int(trainer.step[0]), world=comm.world_size, received_bytes=received_bytes)
        train(trainer, shard, arguments)
        contexts, targets = model.batch(held_out, 8192, np.random.default_rng(0))
        say(
            "end",
            step=int(trainer.step[0]),
            digest=trainer.digest(),
            held_out_loss=model.loss(trainer.parameters, contexts, targets),
            sample=corpus.text(model.sample(trainer.parameters, 240, np.random.default_rng(0))),
        )
        sys.stdin.read()  # stay a member until the others have ended too


if __name__ == "__main__":
    main()
