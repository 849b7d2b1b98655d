"""What this build knows of CUDA."""

from __future__ import annotations

from pccl import _core

__all__ = ["is_available"]


def is_available() -> bool:
    """Whether the library was built with support for CUDA tensors."""
    return _core.has_cuda_support()
