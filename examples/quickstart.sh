#!/usr/bin/env bash
# A training run that loses a peer to SIGKILL and takes a new one in. See quickstart.py, which gets the arguments.
# Everything that it installs for itself goes into .venv in this checkout.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$here/setup.sh" report
exec "$here/../.venv/bin/python" "$here/quickstart.py" "$@"
