"""Weight normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _arrays, _dispatch
from ._threads import get_num_threads
from ._typing import Array, ArrayLike

if TYPE_CHECKING:  # a stub alone has this name: _dispatch.py loads a file under it
    from ._kernels import weight_norm as _kernel
else:
    _kernel = _dispatch.load("weight_norm")


class WeightNormCache(NamedTuple):
    """What `weight_norm_backward` needs: references, no copies, and one number a slice.

    norm is float64, of shape (v.shape[axis],), or (1,) for axis=None.
    """

    v: Array
    g: Array
    norm: Array
    axis: int | None


def _view(v: Array, axis: int | None) -> tuple[int, int, int]:
    """(N, C, S); for axis=None the whole tensor is one channel."""
    return (1, 1, v.size) if axis is None else _arrays.channel_view(v, axis)


def _magnitude(function: str, g: ArrayLike, v: Array, axis: int | None, prefix: str = "") -> Array:
    """g, checked; its shape may be (C,), or that with ones for the other axes, or () for
    axis=None."""
    g = _arrays.array(function, f"{prefix}g", g)
    flat = () if axis is None else (v.shape[axis],)
    if g.shape != flat:
        kept = tuple(n if i == axis else 1 for i, n in enumerate(v.shape))
        if g.shape != kept:
            expected = f"{flat}" if flat == kept else f"{flat} or {kept}"
            hint = _arrays.found_at(v, tuple(n for n in g.shape if n != 1), f"{prefix}v")
            raise ValueError(
                f"{function}: {prefix}g must have shape {expected}, got {g.shape}{hint}"
            )
    return g


def _run(
    function: str,
    v: ArrayLike,
    g: ArrayLike,
    axis: int | None,
    out: Array | None,
    *,
    inference: bool,
) -> Any:
    """w; for training, w and the cache."""
    v = _arrays.array(function, "v", v)
    if axis is not None:
        axis = _arrays.one_axis(function, axis, v.ndim)
    g_given = _magnitude(function, g, v, axis)
    w = _arrays.output(
        function, out, v.shape, v.dtype, ("v", v), ("g", g_given), may_be=v if inference else None
    )
    n, c, s = _view(v, axis)
    norm: Any = None if inference else np.zeros(c)
    if v.size:
        _kernel.forward(v, _arrays.contiguous(g_given), n, c, s, w, norm, get_num_threads())
    return w if inference else (w, WeightNormCache(v, g_given, norm, axis))


def weight_norm(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = 0, out: Array | None = None
) -> Array:
    """Separate the length of each slice of a weight from its direction: ``w = g * v / ||v||``.

    Parameters
    ----------
    v : array_like
        The direction: float16, bfloat16, float32 or float64, of any shape and strides.
    g : array_like
        The length of each slice: of shape (v.shape[axis],), or that with ones for the other axes;
        of shape () for axis=None.
    axis : int or None, optional
        The axis that numbers the slices; the norm is taken over all others. None: one slice, the
        whole tensor.
    out : ndarray, optional
        Where the result goes: of v's shape and dtype, and v itself if you like.

    Returns
    -------
    ndarray
        Of v's shape and dtype. A slice of zeros stays zero.

    Raises
    ------
    TypeError
        For an array of another dtype, or a masked one.
    ValueError
        For a wrong shape or axis, or an `out` that overlaps an input in part.

    References
    ----------
    Salimans and Kingma, "Weight Normalization", arXiv:1602.07868.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> fn.weight_norm(np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([10.0, 1.0]))
    array([[6., 8.],
           [0., 1.]])
    """
    w: Array = _run("weight_norm", v, g, axis, out, inference=True)
    return w


def weight_norm_forward(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = 0, out: Array | None = None
) -> tuple[Array, WeightNormCache]:
    """`weight_norm` for training.

    Parameters
    ----------
    v, g, axis, out
        As for `weight_norm`, but `out` must not be v, which the backward pass needs.

    Returns
    -------
    w : ndarray
        Of v's shape and dtype.
    cache : WeightNormCache
        What `weight_norm_backward` needs; refers to v and g, which must stay as they are.

    Raises
    ------
    TypeError, ValueError
        As `weight_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> w, cache = fn.weight_norm_forward(np.array([[3.0, 4.0]]), np.array([10.0]))
    >>> cache.norm
    array([5.])
    """
    result: tuple[Array, WeightNormCache] = _run(
        "weight_norm_forward", v, g, axis, out, inference=False
    )
    return result


def weight_norm_backward(
    dy: ArrayLike, cache: WeightNormCache, *, out: Array | None = None
) -> tuple[Array, Array]:
    """Gradients of `weight_norm_forward`.

    ``dg = sum(dy * v) / ||v||`` and ``dv = g / ||v|| * (dy - dg * v / ||v||)``, slice by slice: dv
    is orthogonal to v.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to w, of w's shape.
    cache : WeightNormCache
        From `weight_norm_forward`. It may be used again.
    out : ndarray, optional
        Where dv goes.

    Returns
    -------
    dv : ndarray
        Of v's shape and dtype. Zero in a slice of zeros, where no gradient exists.
    dg : ndarray
        Of g's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `weight_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> w, cache = fn.weight_norm_forward(np.array([[3.0, 4.0]]), np.array([10.0]))
    >>> dv, dg = fn.weight_norm_backward(np.array([[1.0, 0.0]]), cache)
    >>> dg
    array([0.6])
    """
    function = "weight_norm_backward"
    v, g, norm, axis = _arrays.fields(function, cache, WeightNormCache)
    v = _arrays.array(function, "cache.v", v)
    if axis is not None:
        axis = _arrays.one_axis(function, axis, v.ndim)
    g = _magnitude(function, g, v, axis, "cache.")
    norm = _arrays.kept(function, "cache.norm", norm, (1,) if axis is None else (v.shape[axis],))
    dy = _arrays.shaped(function, "dy", dy, v.shape)
    dv = _arrays.output(function, out, v.shape, v.dtype, ("dy", dy), ("v", v), ("g", g))
    dg = _arrays.gradient(g)
    n, c, s = _view(v, axis)
    if v.size:
        _kernel.backward(dy, v, _arrays.contiguous(g), norm, n, c, s, dv, dg, get_num_threads())
    return dv, dg
