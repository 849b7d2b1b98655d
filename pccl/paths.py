"""Where the C library and its headers are, for programs that link them."""

from __future__ import annotations

import os


def get_include() -> str:
    """The directory of pccl.h, ccoip.h and ccoip_inet.h."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")


def get_library_dir() -> str:
    """The directory of libpccl: link with ``-L`` and ``-Wl,-rpath,`` of it and ``-lpccl``."""
    return os.path.dirname(os.path.abspath(__file__))
