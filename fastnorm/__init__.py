"""fastnorm: fast normalisation layers on CPUs, for NumPy code."""

try:
    from . import _cpu  # noqa: F401
except ImportError as _error:
    from pathlib import Path as _Path

    _folder = _Path(__file__).parent
    if (_folder / "meson.build").exists():
        raise ImportError(
            "this is fastnorm's source folder, without compiled modules: install with "
            "`pip install .`, then start Python in another folder, or use the command `fastnorm` "
            "and plain `pytest`"
        ) from None
    raise ImportError(
        f"fastnorm in {_folder} is not made for this Python, or damaged: install it again "
        f"({_error})"
    ) from None

from typing import TYPE_CHECKING

from . import layers, reference, testing
from ._config import show_config
from ._threads import get_num_threads, num_threads, set_num_threads
from .affine import affine, affine_backward, affine_forward
from .batch_norm import batch_norm, batch_norm_backward, batch_norm_forward
from .group_norm import (
    group_norm,
    group_norm_backward,
    group_norm_forward,
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
)
from .layer_norm import layer_norm, layer_norm_backward, layer_norm_forward
from .moments import Moments
from .rms_norm import rms_norm, rms_norm_backward, rms_norm_forward
from .weight_norm import weight_norm, weight_norm_backward, weight_norm_forward

try:
    from . import _threadpoolctl  # noqa: F401
except ImportError:  # threadpoolctl is not installed, or too old to take further libraries
    pass

__all__ = [
    "Moments",
    "affine",
    "affine_backward",
    "affine_forward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "dask",
    "distributed",
    "get_num_threads",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "layers",
    "num_threads",
    "reference",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "set_num_threads",
    "show_config",
    "testing",
    "weight_norm",
    "weight_norm_backward",
    "weight_norm_forward",
]


__version__: str

_MODULES = ("dask", "distributed")  # which most programs do without

if TYPE_CHECKING:
    from . import dask, distributed
else:  # to whom every name would then be one of ours

    def __getattr__(name):
        """What is imported when it is asked for.

        importlib.metadata, for ``__version__``, takes longer to import than fastnorm does.
        """
        import importlib

        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("fastnorm-kernels")
        if name in _MODULES:
            return importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *_MODULES})
