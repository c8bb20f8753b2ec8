"""Chooses the instruction set of the kernels: once, and before a kernel module is imported.

Every kernel is compiled once per instruction set, into files `_kernels/<kernel>_<isa>`, each of
which is the module `_kernels.<kernel>`. Importing a module already runs code compiled for its
instruction set, so the choice cannot be left to it.
"""

import importlib.util
import os
import sys

from . import _cpu

# From the slowest to the fastest.
_SUPPORTED = {"baseline": lambda: True, "avx2": _cpu.has_avx2, "avx512": _cpu.has_avx512}


def _file(kernel, isa):
    """Of a kernel's module, or None where it was not built."""
    spec = importlib.util.find_spec(f"{__package__}._kernels.{kernel}_{isa}")
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


ISAS = tuple(isa for isa, supported in _SUPPORTED.items() if supported() and _file("engine", isa))
ISA = _choose(ISAS, os.environ.get("FASTNORM_ISA"))


def load(kernel):
    """The kernel's module for the chosen instruction set."""
    name = f"{__package__}._kernels.{kernel}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _file(kernel, ISA))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


load("engine")  # which the others cimport, by that name
