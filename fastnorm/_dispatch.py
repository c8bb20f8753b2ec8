"""Chooses the instruction set of the kernels: once, and before a kernel module is imported.

Every kernel is compiled once per instruction set, into modules `_kernels/<kernel>_<isa>`. Importing
a module already runs code compiled for its instruction set, so the choice cannot be left to it.
"""

import importlib
import importlib.util
import os
import sys

from . import _cpu

# From the slowest to the fastest.
_SUPPORTED = {"baseline": lambda: True, "avx2": _cpu.has_avx2, "avx512": _cpu.has_avx512}


def _engine(isa):
    """The file of the engine's module, or None where it was not built."""
    spec = importlib.util.find_spec(f"{__package__}._kernels.engine_{isa}")
    return spec and spec.origin


def _choose(available, wanted):
    """The name in `wanted` if there is one, else the fastest of `available`."""
    if not wanted:
        return available[-1]
    if wanted not in available:
        raise ImportError(
            f"FASTNORM_ISA={wanted!r} is not available here; choose from {', '.join(available)}"
        )
    return wanted


ISAS = tuple(isa for isa, supported in _SUPPORTED.items() if supported() and _engine(isa))
ISA = _choose(ISAS, os.environ.get("FASTNORM_ISA"))


def _load_engine():
    """Under the name by which the kernels, of whichever instruction set, cimport it."""
    name = f"{__package__}._kernels.engine"
    spec = importlib.util.spec_from_file_location(name, _engine(ISA))
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def load(kernel):
    """The kernel's module for the chosen instruction set."""
    return importlib.import_module(f"{__package__}._kernels.{kernel}_{ISA}")


_load_engine()
