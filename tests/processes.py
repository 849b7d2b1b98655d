"""Child processes of a test, which never outlive it."""

import contextlib
import os
import subprocess
import sys
import textwrap


def run_python(code, *, timeout=60, **environment):
    """Run ``code`` in a new interpreter to its end."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env={**os.environ, **environment},
    )


@contextlib.contextmanager
def background(*arguments):
    """A running ``python arguments...``; killed if the test leaves it running."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
