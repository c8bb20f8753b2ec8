"""SciPy's BLAS, at one thread while the pool calls it.

The affine layer calls gemm from the threads of fastnorm's own pool. BLAS's own threads must then
be off, since idle workers of two pools spin against each other. The setting belongs to the whole
process, so it is restored by the last of the callers that are inside.
"""

import ctypes
import os
import threading
from contextlib import nullcontext
from typing import Any

from scipy.linalg import cython_blas

from . import _cpu

# How the BLAS libraries that SciPy is built with call the pair of functions.
_NAMES = (
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
)


def _find() -> tuple[Any, Any, str | None]:
    """The getter and the setter of the library behind cython_blas, and its name; or Nones."""
    # A symbol is looked up in the library and in those it was linked with. PyDLL keeps the GIL: the
    # functions take less time than handing it over.
    library = ctypes.PyDLL(cython_blas.__file__)
    for getter, setter in _NAMES:
        if hasattr(library, getter) and hasattr(library, setter):
            return getattr(library, getter), getattr(library, setter), setter
    return None, None, None


def _kernels() -> str | None:
    """The processor that OpenBLAS has chosen its kernels for, or None for another library."""
    library = ctypes.PyDLL(cython_blas.__file__)
    for symbol in ("scipy_openblas_get_corename", "openblas_get_corename"):
        if hasattr(library, symbol):
            function = getattr(library, symbol)
            function.restype = ctypes.c_char_p
            name: bytes = function()
            return name.decode()
    return None


_get, _set, _setter = _find()
_lock = threading.RLock()  # a signal handler may come back to it
_changed = threading.Condition(_lock)
_inside: list[int] = []  # the threads of the callers
_forks = 0  # that wait until nobody is inside
_restore = 1

# Seconds after which a fork no longer waits.
_PATIENCE = 20


def can_be_single_threaded() -> bool:
    return _set is not None


def describe() -> str:
    """One line for show_config."""
    kernels = _kernels()
    chosen = f"OpenBLAS, kernels for {kernels}; " if kernels else ""
    if kernels in ("Haswell", "Zen") and _cpu.has_avx512():
        chosen = chosen[:-2] + " (set OPENBLAS_CORETYPE=SkylakeX to use AVX-512); "
    if _set is None:
        return f"{chosen}threads not under control: affine leaves threading to BLAS"
    return f"{chosen}threads set by {_setter}"


class _SingleThreaded:
    """BLAS runs on the thread that calls it; the previous setting is restored at the end."""

    def __enter__(self) -> None:
        global _restore
        with _lock:
            while _forks:
                _changed.wait()
            if not _inside:
                _restore = _get()
                if _restore != 1:
                    _set(1)
            _inside.append(threading.get_ident())

    def __exit__(self, *error: object) -> None:
        with _lock:
            _leave(threading.get_ident())
            if _forks:
                _changed.notify_all()


def _leave(thread: int) -> None:
    _inside.remove(thread)
    if not _inside and _restore != 1:
        _set(_restore)


def _others_inside() -> list[int]:
    return [thread for thread in _inside if thread != threading.get_ident()]


def _keep_out() -> None:
    """Before a fork. Were another thread inside, the child would inherit the locks of BLAS that it
    holds (OpenBLAS takes one to find memory), and wait for them forever."""
    global _forks
    _lock.acquire()
    _forks += 1
    _changed.wait_for(lambda: not _others_inside(), timeout=_PATIENCE)


def _let_in() -> None:
    global _forks
    _forks -= 1
    _changed.notify_all()
    _lock.release()


def _let_in_child() -> None:
    """Nobody else waits here, and whoever may still have been inside is not."""
    global _lock, _changed, _forks
    _lock = threading.RLock()
    _changed = threading.Condition(_lock)
    _forks = 0
    for thread in _others_inside():
        _leave(thread)


if _set is not None and hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_keep_out, after_in_parent=_let_in, after_in_child=_let_in_child)

single_threaded = _SingleThreaded() if _set is not None else nullcontext()
