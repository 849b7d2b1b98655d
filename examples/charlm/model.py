"""The model: the last CONTEXT characters, embedded, through one hidden layer, give the next one. Forward and backward
passes by hand; parameters, gradients and moments are flat vectors, so that they can be reduced and synchronised whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from charlm.corpus import CODES

CONTEXT = 24
EMBEDDING = 24
HIDDEN = 512

# In the order in which a backward pass finishes them: a group's all-reduce runs while the next is computed.
GROUPS: dict[str, dict[str, tuple[int, ...]]] = {
    "output": {"output": (HIDDEN, CODES), "output_bias": (CODES,)},
    "hidden": {"hidden": (CONTEXT * EMBEDDING, HIDDEN), "hidden_bias": (HIDDEN,)},
    "embedding": {"embedding": (CODES, EMBEDDING)},
}
SIZE = sum(int(np.prod(shape)) for group in GROUPS.values() for shape in group.values())


def views(flat: np.ndarray) -> dict[str, np.ndarray]:
    """The named tensors within a flat vector of SIZE elements."""
    found, at = {}, 0
    for group in GROUPS.values():
        for name, shape in group.items():
            size = int(np.prod(shape))
            found[name] = flat[at : at + size].reshape(shape)
            at += size
    return found


def group_bounds() -> list[tuple[int, int]]:
    """Where each group begins and ends in a flat vector."""
    bounds, at = [], 0
    for group in GROUPS.values():
        size = sum(int(np.prod(shape)) for shape in group.values())
        bounds.append((at, at + size))
        at += size
    return bounds


def initial(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    flat = np.zeros(SIZE, np.float32)
    for name, tensor in views(flat).items():
        if tensor.ndim == 2:
            scale = 0.3 if name == "embedding" else tensor.shape[0] ** -0.5
            tensor[:] = scale * rng.standard_normal(tensor.shape, np.float32)
    return flat


def batch(shard: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Contexts and the characters that follow them, from random places of a shard."""
    starts = rng.integers(0, len(shard) - CONTEXT, size)
    return shard[starts[:, None] + np.arange(CONTEXT)], shard[starts + CONTEXT]


def _forward(p: dict[str, np.ndarray], contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = p["embedding"][contexts].reshape(len(contexts), -1)
    h = np.tanh(x @ p["hidden"] + p["hidden_bias"])
    logits = h @ p["output"] + p["output_bias"]
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return x, h, logits


def loss(flat: np.ndarray, contexts: np.ndarray, targets: np.ndarray) -> float:
    """Cross-entropy in nats a character."""
    probabilities = _forward(views(flat), contexts)[2]
    return float(-np.log(probabilities[np.arange(len(targets)), targets] + 1e-12).mean())


def backward(flat: np.ndarray, grads: np.ndarray, contexts: np.ndarray, targets: np.ndarray) -> Iterator[float]:
    """Fills ``grads`` group by group, in the order of GROUPS; after each it yields the batch's loss."""
    p, g = views(flat), views(grads)
    rows = np.arange(len(targets))
    x, h, delta = _forward(p, contexts)
    value = float(-np.log(delta[rows, targets] + 1e-12).mean())
    delta[rows, targets] -= 1
    delta /= len(targets)
    np.matmul(h.T, delta, out=g["output"])
    np.sum(delta, axis=0, out=g["output_bias"])
    yield value

    delta = (delta @ p["output"].T) * (1 - h * h)
    np.matmul(x.T, delta, out=g["hidden"])
    np.sum(delta, axis=0, out=g["hidden_bias"])
    yield value

    delta = (delta @ p["hidden"].T).reshape(-1, EMBEDDING)
    one_hot = np.zeros((CODES, len(delta)), np.float32)
    one_hot[contexts.reshape(-1), np.arange(len(delta))] = 1
    np.matmul(one_hot, delta, out=g["embedding"])
    yield value


class Adam:
    """Its moments belong to the shared state: a newcomer gets them with the parameters."""

    def __init__(self, size: int) -> None:
        self.mean = np.zeros(size, np.float32)
        self.square = np.zeros(size, np.float32)

    def update(self, flat: np.ndarray, grads: np.ndarray, step: int, rate: float) -> None:
        """``step`` counts from 1."""
        beta1, beta2 = np.float32(0.9), np.float32(0.99)
        self.mean += (1 - beta1) * (grads - self.mean)
        self.square += (1 - beta2) * (grads * grads - self.square)
        scale = np.float32(rate * (1 - 0.99**step) ** 0.5 / (1 - 0.9**step))
        flat -= scale * self.mean / (np.sqrt(self.square) + np.float32(1e-8))


def rate(step: int, steps: int) -> float:
    """Learning rate: a short warm-up, then down to a tenth."""
    return 3e-3 * min(1.0, step / 50) * (1 - 0.9 * step / steps)


def sample(flat: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Text that the model writes, beginning after a line's end."""
    codes = np.zeros(CONTEXT + length, np.uint8)
    p = views(flat)
    for at in range(CONTEXT, len(codes)):
        probabilities = _forward(p, codes[None, at - CONTEXT : at])[2][0].astype(np.float64)
        codes[at] = rng.choice(CODES, p=probabilities / probabilities.sum())
    return codes[CONTEXT:]
