#!/usr/bin/env bash
# Makes .venv in the checkout and installs pccl into it, editable, with the extras given as arguments:
#     bash examples/setup.sh cli report
# Quick when nothing has changed: then only changed C sources are compiled. Scripts source it for its functions.

pccl_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# pccl_apt PACKAGE...: install Debian packages, as root or through sudo; without apt-get only say what is missing.
pccl_apt() {
    local sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null && sudo=(sudo)
    fi
    if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && [ ${#sudo[@]} = 0 ]; }; then
        echo "pccl: please install: $* (macOS: brew install pkg-config libuv openssl@3 xxhash)" >&2
        return 1
    fi
    echo "installing $*"
    "${sudo[@]}" apt-get update -qq &&
        "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# pccl_python: the interpreter that .venv is made with.
pccl_python() {
    echo "${PYTHON:-python3}"
}

# pccl_system_packages: install what the build needs and the machine lacks.
pccl_system_packages() {
    local missing=() python
    python=$(pccl_python)
    command -v cc >/dev/null || missing+=(build-essential)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    pkg-config --exists libuv 2>/dev/null || missing+=(libuv1-dev)
    pkg-config --exists libcrypto 2>/dev/null || missing+=(libssl-dev)
    pkg-config --exists libxxhash 2>/dev/null || missing+=(libxxhash-dev)
    command -v "$python" >/dev/null || missing+=(python3)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        missing+=(python3-dev)
    [ ${#missing[@]} = 0 ] || pccl_apt "${missing[@]}"
}

# pccl_setup EXTRA...: .venv with pccl and these extras; puts it first on PATH.
pccl_setup() {
    local extras stamp key
    pccl_system_packages || return 1
    extras=$(printf '%s\n' "$@" | sort -u | paste -sd, -)
    stamp=$pccl_root/.venv/pccl-setup.txt
    key="$extras $(cat "$pccl_root/pyproject.toml" "$pccl_root/setup.py" | cksum)"
    if [ ! -x "$pccl_root/.venv/bin/python" ]; then
        "$(pccl_python)" -m venv "$pccl_root/.venv" || return 1
    fi
    export PATH="$pccl_root/.venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
    if grep -qxF "$key" "$stamp" 2>/dev/null; then
        (cd "$pccl_root" && python setup.py -q build_ext --inplace) || return 1
    else
        echo "setting up .venv (${extras:-no extras})"
        pip install -q 'setuptools>=77' 'Cython>=3.0' || return 1
        pip install -q --no-build-isolation -e "$pccl_root${extras:+[$extras]}" || return 1
        echo "$key" >>"$stamp"
    fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -eu
    pccl_setup "$@"
fi
