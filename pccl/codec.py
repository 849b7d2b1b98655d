"""How payloads travel: in fewer bits than their type has. See ``Codec``."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pccl.arguments import choice, flag, instance, number, real, refusal
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
        from pccl.collectives import Collectives

        instance(group, Collectives, "group", "int_sum")
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
        algorithm = _NAMES.get(self.name) if isinstance(self.name, str) else None
        if algorithm is None:
            raise invalid_argument(func_name, f"unknown codec {self.name!r}", hint=f"one of {', '.join(_NAMES)}")
        bits = _BITS.get(number(self.bits, "bits of a codec", func_name, 64))
        if bits is None:
            raise invalid_argument(func_name, f"a code has 8, 16, 32 or 64 bits, not {self.bits!r}")
        block = number(self.block, "block of a codec", func_name, 4096)
        if block not in (0, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            raise invalid_argument(func_name, f"a block has 32, 64, 128 ... 4096 elements, not {self.block!r}")
        if not isinstance(self.nonfinite, str) or self.nonfinite not in ("pass", "error"):
            raise refusal(func_name, "nonfinite of a codec", "'pass' or 'error'", self.nonfinite)
        decay = real(self.residual_decay, "residual_decay of a codec", func_name)
        if not 0 < decay <= 1:
            raise invalid_argument(func_name, f"a residual decay is over 0 and at most 1, not {self.residual_decay!r}")
        stochastic = flag(self.stochastic, "stochastic of a codec", func_name)
        exponent = number(self.exponent, "exponent of a codec", func_name, 100, first=-100)
        return int(algorithm), int(bits), exponent, block, stochastic, self.nonfinite == "error", decay


def _peak(tensor: Any) -> float:
    """The largest magnitude; a NaN if there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return float(tensor.detach().abs().max()) if tensor.numel() > 0 else 0.0
    try:
        return float(np.abs(np.asarray(tensor, np.float64)).max(initial=0.0))
    except (TypeError, ValueError):
        raise refusal("int_sum", "tensor", "an array of numbers", tensor) from None


def native_codec(codec: Codec | str | None, options: QuantizationOptions | None, func_name: str) -> Native | None:
    """What ``codec`` or PCCL's options ask for; None: payloads travel as they are."""
    algorithm = QuantizationAlgorithm.NONE
    if options is not None:
        instance(options, QuantizationOptions, "quantization_options", func_name)
        algorithm = choice(options.algorithm, QuantizationAlgorithm, "quantization_options.algorithm", func_name)
    quantized = algorithm != QuantizationAlgorithm.NONE
    if codec is not None and quantized:
        raise invalid_argument(func_name, "pass codec or quantization_options, not both")
    if codec is not None:
        if not isinstance(codec, (str, Codec)):
            raise refusal(func_name, "codec", "a name or a Codec", codec)
        return (Codec(codec) if isinstance(codec, str) else codec).native(func_name)
    if options is None or not quantized:
        return None
    datatype = choice(options.quantized_datatype, DataType, "quantization_options.quantized_datatype", func_name)
    return int(algorithm), int(datatype), 0, 0, False, False, 1.0
