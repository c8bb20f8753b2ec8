"""Chooses the instruction set of the kernels: once, and before a kernel module is imported.

Every kernel is compiled once per instruction set, into files `_kernels/<kernel>_<isa>`. Importing
a module already runs code compiled for its instruction set, so the choice cannot be left to it.
"""

import importlib.util
import os
import sys
import threading
from types import ModuleType

from . import _cpu

# From the slowest to the fastest.
_SUPPORTED = {"baseline": lambda: True, "avx2": _cpu.has_avx2, "avx512": _cpu.has_avx512}


def _is_built(isa: str) -> bool:
    return importlib.util.find_spec(f"{__package__}._kernels.engine_{isa}") is not None


def _choose(available: tuple[str, ...], wanted: str | None) -> str:
    """The name in `wanted` if there is one, else the fastest of `available`."""
    if not wanted:
        return available[-1]
    if wanted not in available:
        raise ImportError(
            f"FASTNORM_ISA={wanted!r} is not available here; choose from {', '.join(available)}"
        )
    return wanted


ISAS = tuple(isa for isa, supported in _SUPPORTED.items() if supported() and _is_built(isa))
ISA = _choose(ISAS, os.environ.get("FASTNORM_ISA"))


_loading = threading.Lock()


def load(kernel: str) -> ModuleType:
    """The kernel's module for the chosen instruction set, under the name that it has on all."""
    name = f"{__package__}._kernels.{kernel}"
    with _loading:  # affine's is loaded by whichever threads are the first to need it
        if name not in sys.modules:
            file = importlib.util.find_spec(f"{name}_{ISA}")
            assert file is not None
            spec = importlib.util.spec_from_file_location(name, file.origin)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[name] = module
        return sys.modules[name]


load("engine")  # which the other kernels cimport
