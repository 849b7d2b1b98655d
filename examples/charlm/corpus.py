"""Real text: the sources and the documentation that Python ships. The same machine always gives the same text."""

from __future__ import annotations

import os
import sysconfig

import numpy as np

VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))
OTHER = len(VOCABULARY)  # the code of every character that the vocabulary lacks
CODES = OTHER + 1

_SKIPPED = {"__pycache__", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests"}
_MAX_BYTES = 8 << 20
_PIECE_BYTES = 1 << 15


def load(max_bytes: int = _MAX_BYTES) -> np.ndarray:
    """The text as codes, one a byte: files in a fixed order, up to ``max_bytes``."""
    root = sysconfig.get_path("stdlib")
    files: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - _SKIPPED)
        files += (os.path.join(folder, name) for name in sorted(names) if name.endswith((".py", ".txt")))
    pieces: list[bytes] = []
    room = max_bytes
    for name in files:
        with open(name, "rb") as file:
            pieces.append(file.read(room))
        room -= len(pieces[-1])
        if room == 0:
            break
    table = np.full(256, OTHER, np.uint8)
    for code, character in enumerate(VOCABULARY):
        table[ord(character)] = code
    return table[np.frombuffer(b"".join(pieces), np.uint8)]


def shard(codes: np.ndarray, index: int, count: int) -> np.ndarray:
    """Every ``count``-th piece of the text, from the ``index``-th on: what one peer learns from."""
    pieces = [codes[at : at + _PIECE_BYTES] for at in range(index * _PIECE_BYTES, len(codes), count * _PIECE_BYTES)]
    return np.concatenate(pieces)


def text(codes: np.ndarray) -> str:
    return "".join(VOCABULARY[code] if code < OTHER else "?" for code in codes)
