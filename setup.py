"""Builds libpccl (csrc/) and the extension modules (bindings/) side by side into the package.

``libpccl`` is a plain C library with its headers in ``pccl/include``, so that C programs can link it; the modules find
it next to themselves through their run path, which ``LD_LIBRARY_PATH`` overrides. Objects are kept under ``build/`` and
compiled again only when a source or a header that they include has changed.

Environment: ``CC``; ``PCCL_CFLAGS``, extra flags for libpccl (``-DPCCL_MUTANT=3``, ``-fsanitize=address``).
``python setup.py build_libpccl --cflags=... --output=DIR`` builds such a variant of the library alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
MACOS = sys.platform == "darwin"
LIBRARY = "libpccl.dylib" if MACOS else "libpccl.so"
HEADERS = ("pccl.h", "ccoip.h", "ccoip_inet.h")
JOBS = 2

# pkg-config name, Debian package, Homebrew formula
REQUIREMENTS = (
    ("libuv", "libuv1-dev", "libuv"),
    ("libcrypto", "libssl-dev", "openssl@3"),
    ("libxxhash", "libxxhash-dev", "xxhash"),
)

CFLAGS = [
    *("-std=c11", "-D_GNU_SOURCE=1", "-pthread", "-O3", "-g", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Wconversion"),
]


def pkg_config(*arguments: str) -> list[str]:
    tool = os.environ.get("PKG_CONFIG", "pkg-config")
    try:
        found = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(
            "pccl: pkg-config is missing: apt-get install pkg-config (macOS: brew install pkg-config)"
        ) from None
    if found.returncode != 0:
        raise LookupError(found.stderr.strip())
    return shlex.split(found.stdout)


def dependency_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags of the libraries; a missing one ends the build with one line that says what to install."""
    compile_flags: list[str] = []
    link_flags: list[str] = []
    for module, debian, formula in REQUIREMENTS:
        try:
            compile_flags += pkg_config("--cflags", module)
            link_flags += pkg_config("--libs", module)
        except LookupError:
            raise SystemExit(
                f"pccl: the library {module} is missing: apt-get install {debian} (macOS: brew install {formula})"
            ) from None
    return unique(compile_flags), unique(link_flags)


def unique(flags: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(flags))


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "cc")


def is_stale(obj: Path) -> bool:
    """Whether an object is missing or older than its source or one of the headers that its dependency file names."""
    depfile = obj.with_suffix(".d")
    if not obj.exists() or not depfile.exists():
        return True
    built = obj.stat().st_mtime_ns
    names = re.sub(r"\\\n", " ", depfile.read_text()).partition(":")[2].split()
    try:
        return any((ROOT / name).stat().st_mtime_ns >= built for name in names)
    except OSError:
        return True


def run_compiler(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.stderr:
        sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise SystemExit(f"pccl: failed: {shlex.join(command)}")


def build_library(output: Path, extra_cflags: str) -> Path:
    """Compile what is stale in csrc/ and link it to ``output``/libpccl.so; returns the library's path."""
    extra = shlex.split(extra_cflags)
    dep_cflags, dep_libs = dependency_flags()
    cc = compiler()
    flags = [*CFLAGS, "-Icsrc", *dep_cflags, *extra]
    if not MACOS:
        flags.append("-fno-semantic-interposition")
    variant = hashlib.sha256(shlex.join([*cc, *flags]).encode()).hexdigest()[:12]
    objects_dir = ROOT / "build" / f"objects-{platform.machine()}-{variant}"

    sources = sorted((ROOT / "csrc").rglob("*.c"))
    objects = {src: objects_dir / src.relative_to(ROOT / "csrc").with_suffix(".o") for src in sources}
    stale = [src for src, obj in objects.items() if is_stale(obj)]
    for obj in objects.values():
        obj.parent.mkdir(parents=True, exist_ok=True)

    def compile_one(src: Path) -> None:
        obj = objects[src]
        run_compiler([*cc, *flags, "-MMD", "-MF", str(obj.with_suffix(".d")), "-c", str(src.relative_to(ROOT)), "-o",
                      str(obj)])  # fmt: skip

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(compile_one, stale))

    linked = objects_dir / LIBRARY
    newest = max((obj.stat().st_mtime_ns for obj in objects.values()), default=0)
    listing = "\n".join(map(str, objects.values()))
    listing_file = objects_dir / "linked.txt"
    unchanged = linked.exists() and linked.stat().st_mtime_ns >= newest and listing_file.exists()
    if not unchanged or listing_file.read_text() != listing:
        if MACOS:
            shape = ["-dynamiclib", f"-Wl,-install_name,@rpath/{LIBRARY}"]
        else:
            shape = ["-shared", f"-Wl,-soname,{LIBRARY}", "-Wl,-z,relro,-z,now"]
            if not any(flag.startswith("-fsanitize") for flag in extra):
                shape.append("-Wl,--no-undefined")
        run_compiler([*cc, *shape, "-pthread", *extra, *map(str, objects.values()), *dep_libs, "-lm", "-o",
                      str(linked)])  # fmt: skip
        listing_file.write_text(listing)

    output.mkdir(parents=True, exist_ok=True)
    return copy_if_changed(linked, output / LIBRARY)


def copy_if_changed(source: Path, target: Path) -> Path:
    """Copy by rename, so that a process which has the old library mapped keeps it whole."""
    if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.copy2(source, partial)
    partial.replace(target)
    return target


class BuildLibpccl(Command):
    description = "build libpccl, the C library, alone"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = [
        ("cflags=", None, "extra compiler flags (default: PCCL_CFLAGS)"),
        ("output=", None, "directory that receives the library (default: pccl)"),
    ]

    def initialize_options(self) -> None:
        self.cflags = os.environ.get("PCCL_CFLAGS", "")
        self.output = str(ROOT / "pccl")

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        build_library(Path(self.output).absolute(), self.cflags)


class BuildExt(build_ext):
    """Builds libpccl and the headers first, then links the extension modules against it."""

    def finalize_options(self) -> None:
        from Cython.Build import cythonize

        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules,
            build_dir="build/cython",
            include_path=["bindings"],
            compiler_directives={"language_level": 3, "embedsignature": False},
            quiet=True,
        )
        super().finalize_options()

    def companions(self) -> list[str]:
        return [LIBRARY, *(f"include/{name}" for name in HEADERS)]

    def run(self) -> None:
        in_source = self.inplace or getattr(self, "editable_mode", False)
        package = Path(self.build_lib).absolute() / "pccl"
        library = build_library(package, os.environ.get("PCCL_CFLAGS", ""))
        for name in HEADERS:
            copy_if_changed(ROOT / "csrc" / name, package / "include" / name)
        if in_source:
            for name in self.companions():
                copy_if_changed(package / name, ROOT / "pccl" / name)
        for extension in self.extensions:
            extension.library_dirs = [str(library.parent)]
        super().run()

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), *(str(Path(self.build_lib) / "pccl" / name) for name in self.companions())]


class Sdist(sdist):
    """Adds what libpccl is built from; the extensions themselves name only the headers that they include."""

    def make_distribution(self) -> None:
        sources = [*(ROOT / "csrc").rglob("*.[ch]"), *(ROOT / "bindings").rglob("*.p[xy][dx]")]
        self.filelist.extend(sorted(str(path.relative_to(ROOT)) for path in sources))
        super().make_distribution()


EXTENSIONS = [
    Extension(
        f"pccl.{source.stem}",
        [source.relative_to(ROOT).as_posix()],
        include_dirs=["csrc"],
        libraries=["pccl"],
        depends=["csrc/pccl.h", "csrc/ccoip_inet.h"],
        extra_compile_args=["-std=c11", "-O2", "-w"],
        extra_link_args=["-Wl,-rpath,@loader_path"] if MACOS else ["-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN"],
    )
    for source in sorted((ROOT / "bindings" / "pccl").glob("*.pyx"))
]

setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": BuildExt, "build_libpccl": BuildLibpccl, "sdist": Sdist})
