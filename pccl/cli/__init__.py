"""The `pccl` command. This module needs nothing beyond pccl itself, so that it can say what to install."""

from __future__ import annotations

import os
import sys


def main() -> None:
    try:
        from pccl.cli.app import app
    except ImportError as error:
        if error.name not in ("click", "rich"):
            raise
        print(f"pccl: the command needs {error.name}: pip install 'pccl[cli]'", file=sys.stderr)
        sys.exit(1)
    try:
        app(prog_name="pccl")
    except OSError as error:  # standard output is full, mostly
        print(f"Error: {error}", file=sys.stderr)
        # What is still in its buffer would fail again at the end of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
