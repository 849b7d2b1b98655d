"""The layer law as data: who may include whom, checked over every file; and the checkers, on made-up sources."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Directory of csrc -> layer. A file includes lower layers, its own directory, and what SIBLINGS allows.
LAYERS = {
    "base": 0,
    "bytes": 1,
    "wire": 2,
    "math": 2,
    "plan": 2,
    "proto": 3,
    "sim": 4,
    "io": 4,
    "api": 5,
}
SIBLINGS = frozenset({"wire", "math", "plan"})
# Headers beside the directories: the interface. Any file may include them; they include only each other.
LEAF = re.compile(r"pccl\.h|ccoip\w*\.h")
# No file of the core: it knows neither Python nor any framework.
FOREIGN = re.compile(r"Python\.h|numpy/|torch/|ATen/|c10/|cuda|cudnn|nccl|hip/")
# Not up to and including the machines: clocks, sockets and threads are arguments there.
PURE_UP_TO = 3
IMPURE = re.compile(
    r"(sys/(socket|time|timerfd|epoll|select|poll|uio|un|mman|ioctl|random|wait|types|stat|eventfd)"
    r"|netinet/\w+|arpa/\w+|net/\w+|netdb|ifaddrs|time|pthread|threads|sched|semaphore|signal|poll|unistd|fcntl|uv"
    r"|uv/\w+|linux/\w+|openssl/(ssl|bio|rand))\.h"
)

INCLUDE = re.compile(r"^[ \t]*#[ \t]*(?:include|import)[ \t]+(?:\"([^\"]+)\"|<([^>]+)>)", re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
# What Cython declarations may come from: the interface, and the header that names C's own bool.
BINDING_HEADERS = frozenset({'"pccl.h"', '"<stdbool.h>"', "<stdbool.h>"})
EXTERN = re.compile(r"^[ \t]*cdef[ \t]+extern[ \t]+from[ \t]+(\S+)", re.MULTILINE)
CYTHON_INCLUDE = re.compile(r"^[ \t]*include[ \t]+(\S+)", re.MULTILINE)


def check_quoted(path: str, included: str, known: Iterable[str]) -> str | None:
    """Both relative to csrc. What is wrong with this #include "..." or None."""
    if included not in known:
        return f'{path}: "{included}" is no file of csrc (paths are relative to csrc)'
    source, target = PurePosixPath(path), PurePosixPath(included)
    if LEAF.fullmatch(included):
        return None
    if len(source.parts) == 1:
        return f'{path}: a leaf includes "{included}"'
    here, there = source.parts[0], target.parts[0]
    if len(source.parts) != 2 or len(target.parts) != 2 or here not in LAYERS or there not in LAYERS:
        return f'{path}: "{included}": a directory without a layer'
    if LAYERS[there] < LAYERS[here] or here == there or {here, there} <= SIBLINGS:
        return None
    return f'{path} (K{LAYERS[here]}) includes "{included}" (K{LAYERS[there]})'


def check_system(path: str, included: str) -> str | None:
    """What is wrong with this #include <...> or None."""
    if FOREIGN.match(included):
        return f"{path}: <{included}> does not belong into the core"
    layer = LAYERS.get(PurePosixPath(path).parts[0], 0)
    if layer <= PURE_UP_TO and IMPURE.fullmatch(included):
        return f"{path}: <{included}> in K{layer}, which has no clock, socket or thread"
    return None


def check_core(files: Mapping[str, str]) -> list[str]:
    """files: path under csrc -> text. All violations."""
    wrong: list[str | None] = []
    for path, text in files.items():
        parts = PurePosixPath(path).parts
        if len(parts) == 1 and not LEAF.fullmatch(path):
            wrong.append(f"{path}: only the interface lies beside the directories")
        if len(parts) > 1 and parts[0] not in LAYERS:
            wrong.append(f"{path}: a directory without a layer")
        for quoted, system in INCLUDE.findall(COMMENT.sub(" ", text)):
            if quoted and FOREIGN.match(quoted):
                wrong.append(check_system(path, quoted))
            elif quoted:
                wrong.append(check_quoted(path, quoted, files))
            else:
                wrong.append(check_system(path, system))
    names = Counter(PurePosixPath(path).name for path in files)
    wrong += [f"{name}: {count} files of this name" for name, count in names.items() if count > 1]
    return [found for found in wrong if found is not None]


def statements_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not what is in functions, nor under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from statements_at_import(other)
            continue
        yield node
        yield from statements_at_import(node)


def check_python(path: str, text: str) -> list[str]:
    """path relative to the checkout. Imports of torch outside pccl/torch, when the module is imported."""
    if path.startswith("pccl/torch/"):
        return []
    wrong = []
    for node in statements_at_import(ast.parse(text, path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [base, *(f"{base.rstrip('.')}.{alias.name}" for alias in node.names)]
        for name in names:
            absolute = name.lstrip(".") if name.startswith(".") else name
            if absolute.split(".")[0] == "torch" or absolute.startswith("pccl.torch"):
                wrong.append(f"{path}:{getattr(node, 'lineno', 0)}: imports {name} when it is imported itself")
                break
    return wrong


def check_binding(path: str, text: str) -> list[str]:
    """Cython declares C only from the public header, and a module is one file."""
    headers = [name.rstrip(":") for name in EXTERN.findall(text)]
    wrong = [f"{path}: declares from {name}" for name in headers if name not in BINDING_HEADERS]
    return wrong + [f"{path}: includes {name}" for name in CYTHON_INCLUDE.findall(text)]


def read(folder: str, *suffixes: str) -> dict[str, str]:
    base = ROOT / folder
    paths = sorted(path for suffix in suffixes for path in base.rglob(f"*{suffix}"))
    return {path.relative_to(base).as_posix(): path.read_text() for path in paths}


def test_core_keeps_the_law() -> None:
    files = read("csrc", ".c", ".h")
    assert "pccl.h" in files
    assert check_core(files) == []


def test_python_keeps_the_law() -> None:
    found = [
        wrong for path, text in read("pccl", ".py", ".pyi").items() for wrong in check_python(f"pccl/{path}", text)
    ]
    assert found == []


def test_bindings_keep_the_law() -> None:
    files = read("bindings", ".pxd", ".pyx")
    assert {"pccl_c.pxd", "pccl/_core.pyx"} <= files.keys()
    assert [wrong for path, text in files.items() for wrong in check_binding(path, text)] == []


TREE = {
    "pccl.h": '#include "ccoip_inet.h"\n#include <stddef.h>\n',
    "ccoip_inet.h": "",
    "base/log.h": '#include "pccl.h"\n',
    "bytes/cursor.h": '#include "base/log.h"\n',
    "wire/frame.h": '#include "bytes/cursor.h"\n#include "math/digest.h"\n',
    "math/digest.h": "#include <xxhash.h>\n",
    "proto/ring.h": '/* for pthread.h see the driver:\n#include <pthread.h>\n*/\n#include "wire/frame.h"\n',
    "sim/net.h": '#include "proto/ring.h"\n',
    "io/loop.h": '#include "proto/ring.h"\n#include <uv.h>\n#include <time.h>\n',
    "api/comm.c": '#include "io/loop.h"\n#include "sim/net.h"\n#include <pthread.h>\n',
}

BROKEN = {
    "upward": ("base/bad.c", '#include "bytes/cursor.h"', "(K0) includes"),
    "upward from the pure": ("math/bad.c", '#include "proto/ring.h"', "(K2) includes"),
    "machine on a driver": ("proto/bad.c", '#include "io/loop.h"', "(K3) includes"),
    "machine on the simulator": ("proto/bad.c", '#include "sim/net.h"', "(K3) includes"),
    "driver on the simulator": ("io/bad.c", '#include "sim/net.h"', "(K4) includes"),
    "simulator on a driver": ("sim/bad.c", '#include "io/loop.h"', "(K4) includes"),
    "leaf on a layer": ("ccoip.h", '#include "base/log.h"', "a leaf includes"),
    "relative path": ("wire/bad.c", '#include "frame.h"', "no file of csrc"),
    "path with dots": ("wire/bad.c", '#include "../wire/frame.h"', "no file of csrc"),
    "unknown directory": ("misc/bad.c", "", "without a layer"),
    "stray file": ("bad.c", "", "beside the directories"),
    "same name": ("io/frame.h", "", "2 files of this name"),
    "clock in a machine": ("proto/bad.c", "#include <time.h>", "no clock"),
    "socket in the pure": ("wire/bad.c", "  #  include <sys/socket.h>", "no clock"),
    "thread in the base": ("base/bad.c", "#include <pthread.h>", "no clock"),
    "loop in a machine": ("proto/bad.c", "#include <uv.h>", "no clock"),
    "unistd in the base": ("base/bad.c", "#include <unistd.h>", "no clock"),
    "clock in a leaf": ("ccoip.h", "#include <time.h>", "no clock"),
    "Python": ("api/bad.c", "#include <Python.h>", "does not belong"),
    "Python in quotes": ("api/bad.c", '#include "Python.h"', "does not belong"),
    "CUDA": ("io/bad.c", "#include <cuda_runtime.h>", "does not belong"),
    "torch": ("api/bad.c", "#include <torch/extension.h>", "does not belong"),
}


def test_a_lawful_tree_passes() -> None:
    assert check_core(TREE) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tree_fails(name: str) -> None:
    path, text, expected = BROKEN[name]
    found = check_core({**TREE, path: text + "\n"})
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "import torch",
        "import numpy, torch.distributed as dist",
        "from torch import Tensor",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "class A:\n    import torch",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import torch",
        "from pccl.torch import backend",
        "from pccl import torch",
        "from .torch import backend",
        "from . import torch",
    ],
)
def test_torch_at_import_fails(text: str) -> None:
    assert len(check_python("pccl/bad.py", text)) == 1
    assert check_python("pccl/torch/backend.py", text) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import torch",
        "if TYPE_CHECKING:\n    import torch",
        "import torchlight",
        "import numpy as np",
        "from .errors import torch_missing",
    ],
)
def test_no_torch_at_import_passes(text: str) -> None:
    assert check_python("pccl/good.py", text) == []


def test_binding_of_another_header_or_file_fails() -> None:
    assert check_binding("a.pxd", 'cdef extern from "pccl.h" nogil:\n    pass\n') == []
    assert check_binding("a.pxd", 'cdef extern from "pccl.h":\n    pass\n') == []
    assert len(check_binding("a.pxd", 'cdef extern from "base/log.h":\n    pass\n')) == 1
    assert len(check_binding("a.pxd", "cdef extern from *:\n    pass\n")) == 1
    assert len(check_binding("a.pxd", "  cdef extern from <uv.h>:\n    pass\n")) == 1
    assert len(check_binding("a.pyx", 'import os\n\ninclude "part.pxi"\n')) == 1
