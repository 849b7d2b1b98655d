"""How payloads travel: in fewer bits than their type has. See ``Codec``."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pccl.errors import invalid_argument
from pccl.types import DataType, QuantizationAlgorithm, QuantizationOptions

if TYPE_CHECKING:
    from pccl.communicator import Communicator
    from pccl.group import Group

_BITS = {8: DataType.UINT8, 16: DataType.UINT16, 32: DataType.UINT32, 64: DataType.UINT64}
_NAMES = {
    algorithm.name.lower(): algorithm for algorithm in QuantizationAlgorithm if algorithm != QuantizationAlgorithm.NONE
}
Native = tuple[int, int, int, int, bool, bool, float]


@dataclass(frozen=True)
class Codec:
    """A codec and its options. ``name``, bits of an element with its share of the scales, and the relative L2 error on
    normal data:

    ============ ====== ========
    bf16          16     0.0017   rounded to the nearest
    fp16          16     0.00021  finite up to 65504
    int8          8.125  0.0070   the default choice: whole multiples of a scale for each 256 elements
    int4          4.25   0.117
    fp8_e4m3      8.125  0.026
    e3m0          4.25   0.192    sign and a power of two
    min_max       8.25   0.0064   PCCL's, with ``bits`` 8, 16, 32 or 64
    zero_point_scale 8.25 0.0064  PCCL's: 0 is exact where it lies within the range
    top_k         0.23   0.94     of every 64 elements the largest; needs error feedback
    int_sum       16              whole multiples of 2**exponent, the same at all: their sum is exact
    ============ ====== ========

    ``exponent``: of int_sum; ``Codec.int_sum`` finds it. ``block``: elements with one scale, a power of two from 32 to
    4096; 0: the codec's own. ``stochastic``: rounds up or down with odds that make the mean exact. ``nonfinite``:
    blocks that hold a NaN, an infinity or a range beyond the codec's travel as they are ("pass"), or raise
    NotEncodableError at all peers ("error"). ``residual_decay``: what the residual of error feedback is multiplied by
    before it is added.

    Name, bits, exponent and block must be the same at all peers.
    """

    name: str
    bits: int = 8
    exponent: int = 0
    block: int = 0
    stochastic: bool = False
    nonfinite: Literal["pass", "error"] = "pass"
    residual_decay: float = 1.0

    @classmethod
    def int_sum(cls, group: Communicator | Group, tensor: Any, *, tag: int = 0) -> Codec:
        """The finest int_sum whose sums over ``group`` fit. A joint call: the largest magnitude of the tensors of all
        decides."""
        peak = np.full(1, _peak(tensor))
        group.all_reduce(peak, op="max", tag=tag)
        size = group.world_size
        room = float(peak[0]) * size / (32767 - size)  # each contribution is rounded up by half a unit at most
        if not math.isfinite(room):
            raise invalid_argument("int_sum", "a tensor holds a NaN or an infinity: there is no scale for it")
        exponent = math.ceil(math.log2(room)) if room > 0 else 0
        return cls("int_sum", exponent=max(-100, min(100, exponent)))

    def native(self, func_name: str) -> Native:
        """As the core takes it; InvalidArgumentError for what does not exist."""
        algorithm = _NAMES.get(self.name)
        if algorithm is None:
            raise invalid_argument(func_name, f"unknown codec {self.name!r}", hint=f"one of {', '.join(_NAMES)}")
        if self.bits not in _BITS:
            raise invalid_argument(func_name, f"a code has 8, 16, 32 or 64 bits, not {self.bits!r}")
        if not -100 <= self.exponent <= 100:
            raise invalid_argument(func_name, f"an exponent is a number from -100 to 100, not {self.exponent!r}")
        if self.block not in (0, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise invalid_argument(func_name, f"a block has 32, 64, 128 ... 4096 elements, not {self.block!r}")
        if self.nonfinite not in ("pass", "error"):
            raise invalid_argument(func_name, f"nonfinite is 'pass' or 'error', not {self.nonfinite!r}")
        if not 0 < self.residual_decay <= 1:
            raise invalid_argument(func_name, f"a residual decay is over 0 and at most 1, not {self.residual_decay!r}")
        finite_only = self.nonfinite == "error"
        return (
            int(algorithm), int(_BITS[self.bits]), self.exponent, self.block, self.stochastic, finite_only,
            self.residual_decay,
        )  # fmt: skip


def _peak(tensor: Any) -> float:
    """The largest magnitude; a NaN if there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return float(tensor.detach().abs().max()) if tensor.numel() > 0 else 0.0
    return float(np.abs(np.asarray(tensor, np.float64)).max(initial=0.0))


def native_codec(codec: Codec | str | None, options: QuantizationOptions | None, func_name: str) -> Native | None:
    """What ``codec`` or PCCL's options ask for; None: payloads travel as they are."""
    quantized = options is not None and options.algorithm != QuantizationAlgorithm.NONE
    if codec is not None and quantized:
        raise invalid_argument(func_name, "pass codec or quantization_options, not both")
    if codec is not None:
        if not isinstance(codec, (str, Codec)):
            raise invalid_argument(func_name, f"a codec is a name or a Codec, not {codec!r}")
        return (Codec(codec) if isinstance(codec, str) else codec).native(func_name)
    if options is None or not quantized:
        return None
    return int(options.algorithm), int(options.quantized_datatype), 0, 0, False, False, 1.0
