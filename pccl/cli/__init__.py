"""The `pccl` command. This module needs nothing beyond pccl itself, so that it can say what to install."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from pccl.cli.app import app
    except ImportError as error:
        if error.name not in ("click", "rich"):
            raise
        print(f"pccl: the command needs {error.name}: pip install 'pccl[cli]'", file=sys.stderr)
        sys.exit(1)
    app(prog_name="pccl")
