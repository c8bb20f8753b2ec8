"""What this installation is and runs on."""

import platform
from typing import Any, Literal, overload

import numpy as np

from . import _cpu, _dispatch
from ._threads import get_num_threads


def _configuration() -> dict[str, Any]:
    from importlib.metadata import version  # takes longer to import than fastnorm does

    from . import _blas

    return {
        "version": version("fastnorm-kernels"),
        "isa": _dispatch.ISA,
        "isas": list(_dispatch.ISAS),
        "num_threads": get_num_threads(),
        "last_cache": f"{_cpu.last_cache() >> 20} MiB",
        "blas": _blas.describe(),
        "numpy": np.__version__,
        "scipy": version("scipy"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...


@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Show the version, the instruction set, the number of threads and the BLAS in use.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, optional
        Print, or return a dict.

    Returns
    -------
    dict or None
        With mode="dicts": ``version``, ``isa`` (in use), ``isas`` (those usable here, from the
        slowest to the fastest), ``num_threads``, ``last_cache``, ``blas`` and the versions of what
        fastnorm runs on.

    Raises
    ------
    ValueError
        For another mode.

    Examples
    --------
    >>> import fastnorm as fn
    >>> fn.show_config(mode="dicts")["isa"] in fn.show_config(mode="dicts")["isas"]
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"show_config: mode must be 'stdout' or 'dicts', got {mode!r}")
    configuration = _configuration()
    if mode == "dicts":
        return configuration
    for key, value in configuration.items():
        print(f"{key:12} {', '.join(value) if isinstance(value, list) else value}")
    return None
