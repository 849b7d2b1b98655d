"""The module under which PCCL 1.0 keeps its classes; some programs import it."""

from pccl import *  # noqa: F403
from pccl import __all__  # noqa: F401
