"""What a caller may pass beside tensors. Each check returns the value as the core takes it, or raises an
InvalidArgumentError that names the argument and says what to pass."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, TypeVar

from pccl.errors import InvalidArgumentError, invalid_argument

_MAX_MS = 2**32 - 1
_MAX_WAIT_S = 1e9
_SHOWN = 80

_Choice = TypeVar("_Choice", bound=IntEnum)
_Instance = TypeVar("_Instance")


def refusal(func_name: str, name: str, wanted: str, value: Any) -> InvalidArgumentError:
    """``name`` must be ``wanted``, not ``value``."""
    shown = " ".join(repr(value).split())
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    return invalid_argument(func_name, f"{name} must be {wanted}, not {shown}")


def number(value: Any, name: str, func_name: str, last: int, *, first: int = 0) -> int:
    """Whole, and from ``first`` to ``last``. The core would cut the fraction off a float."""
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or not first <= found <= last:
        raise refusal(func_name, name, f"a whole number from {first} to {_as_power(last)}", value)
    return found


def _as_power(last: int) -> str:
    """Large limits are a power of two, or one less."""
    bits = (last + 1).bit_length() - 1
    if last < 2**31:
        return str(last)
    return f"2**{bits}" if last == 2**bits else f"2**{bits} - 1"


def _as_float(value: Any) -> float | None:
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def real(value: Any, name: str, func_name: str) -> float:
    found = _as_float(value)
    if found is None:
        raise refusal(func_name, name, "a number", value)
    return found


def milliseconds(seconds: float | None, name: str, func_name: str) -> int:
    """A time limit in milliseconds, at least 1; 0 for None, the default."""
    if seconds is None:
        return 0
    found = _as_float(seconds)
    if found is None or not found > 0:
        raise refusal(func_name, name, "a time above 0 seconds", seconds)
    return max(1, round(min(found * 1000, _MAX_MS)))


def patience(timeout: float | None, func_name: str) -> float | None:
    """How long to wait for what goes on anyway. 0 or less: not at all; None: for ever."""
    if timeout is None:
        return None
    found = _as_float(timeout)
    if found is None or found != found:
        raise refusal(func_name, "timeout", "a time in seconds or None", timeout)
    return min(max(found, 0.0), _MAX_WAIT_S)


def choice(value: Any, kind: type[_Choice], name: str, func_name: str) -> _Choice:
    """A member of ``kind``, its number or its name."""
    try:
        return kind[value.upper()] if isinstance(value, str) else kind(operator.index(value))
    except (TypeError, ValueError, KeyError):
        names = ", ".join(member.lower() for member in kind.__members__)
        raise refusal(func_name, name, f"one of {names}", value) from None


def flag(value: Any, name: str, func_name: str) -> bool:
    try:
        return bool(value)
    except (TypeError, ValueError):  # an array
        raise refusal(func_name, name, "True or False", value) from None


def instance(value: Any, kind: type[_Instance], name: str, func_name: str) -> _Instance:
    if not isinstance(value, kind):
        raise refusal(func_name, name, f"a {kind.__name__}", value)
    return value


def sequence(values: Any, name: str, func_name: str, wanted: str) -> list[Any]:
    try:
        iterator: Iterable[Any] = iter(values)
    except TypeError:
        raise refusal(func_name, name, wanted, values) from None
    return list(iterator)


def text(value: Any, name: str, func_name: str) -> str:
    """Of what C can hold: a NUL would be its end there."""
    try:
        if isinstance(value, str) and "\0" not in value:
            value.encode()
            return value
    except UnicodeEncodeError:
        pass
    raise refusal(func_name, name, "a text without NUL", value)


def optional_text(value: Any, name: str, func_name: str) -> str | None:
    return None if value is None else text(value, name, func_name)
