"""Codecs: how fast they are, and what an all-reduce gains by them. ``python bench/quant.py``

First the kernels alone, on one thread: bytes of float32 a second, from the cache and from memory, beside copying and
adding. Then the all-reduce of averages between two peers over TCP on loopback, in place, with and without each codec,
in one run. What a codec gains on a slow link is in ``wan.py --scenario quant``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from typing import Any

from collectives import Library, measure
from harness import BENCH, ROOT, compile_c, in_namespace, machine, save, size_of, size_text, summary

CODECS = ("bf16", "int8", "fp8_e4m3", "int4", "e3m0", "min_max")


def kernels(samples: int) -> list[dict[str, Any]]:
    """Rows of bench/quant/codecs.c, compiled as the library is."""
    math = ROOT / "csrc" / "math"
    names = ("codec", "codec_blocks", "wide_steps", "top_k", "reduce", "copy", "simd")
    sources = [*(math / f"{name}.c" for name in names), ROOT / "csrc/bytes/dtype.c"]
    flags = ["-march=x86-64"] if machine()["architecture"] == "x86_64" else []
    flags += ["-ffp-contract=off", "-fno-math-errno", f"-I{ROOT / 'csrc'}", *map(str, sources), "-lm"]
    program = compile_c(BENCH / "quant" / "codecs.c", *flags, needs=[*sources, *math.glob("*.h")])
    lines = subprocess.run([str(program), str(samples)], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = []
    for line in lines:
        found = json.loads(line)
        found["gbs"] = summary(found["gbs"])
        rows.append({"what": "kernel", **found})
        where = "cache" if found["cached"] else "memory"
        name = found["codec"] + (" stochastic" if found["stochastic"] else "")
        print(f"{name:>22} {found['operation']:>15} {where:>7} {found['gbs']['median']:8.1f} GB/s", flush=True)
    return rows


def all_reduces(sizes: list[int], samples: int) -> list[dict[str, Any]]:
    libraries = [Library(f"pccl-step-{codec}", 2, "step") for codec in ("plain", *CODECS)]
    rows = []
    try:
        for size_bytes in sizes:
            found = measure(libraries, "all_reduce", size_bytes, 2, samples)
            plain = statistics.median(found[0]["ms"]["samples"])
            for row in found:
                row["what"] = "all_reduce"
                row["gain"] = plain / row["ms"]["median"]
                ms = row["ms"]["median"]
                print(f"{size_text(size_bytes):>8} {row['library']:>20} {ms:9.2f} ms {row['gain']:5.2f}x", flush=True)
            rows += found
    finally:
        for library in libraries:
            library.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1M,64M", help="bytes of the buffer (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=11)
    parser.add_argument("--congestion", default="system", help="reno, cubic, ... in a namespace of its own; or system")
    parser.add_argument("--output", default=None, help="result file; none: print only")
    arguments = parser.parse_args()
    if arguments.congestion != "system":
        in_namespace(arguments.congestion)
    rows = kernels(arguments.samples) + all_reduces([*map(size_of, arguments.sizes.split(","))], arguments.samples)
    if arguments.output != "none":
        save("quant", arguments, rows, arguments.output)


if __name__ == "__main__":
    main()
