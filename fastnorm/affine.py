"""The affine (fully connected, dense, linear) layer."""

from functools import cache as _once
from typing import NamedTuple

import numpy as np

from . import _arrays, _dispatch
from ._threads import get_num_threads


@_once
def _load():
    """The kernel and its BLAS. Importing SciPy takes long: it waits for the first use."""
    from . import _blas

    return _dispatch.load("affine"), _blas


class AffineCache(NamedTuple):
    """What `affine_backward` needs: references, no copies."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None


def _matmul(function, a, b, bias, out):
    """out = a @ b + bias for 2-D a and b; `out` is C-contiguous."""
    (m, k), n = a.shape, b.shape[1]
    if max(m, k, n) > 2**31 - 1:
        raise ValueError(
            f"{function}: BLAS takes at most 2**31 - 1 rows and columns, got {a.shape} @ {b.shape}"
        )
    if k == 0:
        out[...] = 0 if bias is None else bias
    if out.size == 0 or k == 0:
        return
    kernel, blas = _load()
    left, right = _arrays.blas_matrix(a), _arrays.blas_matrix(b)
    with blas.single_threaded:
        kernel.matmul(
            *left, *right, bias, out, m, n, k,
            get_num_threads() if blas.can_be_single_threaded() else 1,
        )


def _weight_gradient(function, x, dy, weight):
    """x.T @ dy for 2-D x and dy, in weight's memory order."""
    transposed = weight.flags.f_contiguous and not weight.flags.c_contiguous
    filled = _arrays.empty(weight.shape[::-1] if transposed else weight.shape, x.dtype)
    dweight = filled.T if transposed else filled
    thin, wide, product = (dy, x, dweight.T) if dy.shape[1] < x.shape[1] else (x, dy, dweight)
    kernel, _ = _load()
    if 0 < thin.shape[1] <= kernel.MAX_THIN:
        kernel.thin_matmul(
            _arrays.contiguous(thin), _arrays.contiguous(wide), product,
            len(x), thin.shape[1], wide.shape[1], get_num_threads(),
        )
    elif transposed:
        _matmul(function, dy.T, x, None, filled)
    else:
        _matmul(function, x.T, dy, None, filled)
    return dweight


def _checked(function, x, weight, bias):
    x = _arrays.array(function, "x", x)
    weight = _arrays.array(function, "weight", weight)
    if x.ndim == 0:
        raise ValueError(f"{function}: x must have at least 1 dimension, got shape ()")
    if weight.ndim != 2 or weight.shape[0] != x.shape[-1]:
        raise ValueError(
            f"{function}: weight must have shape ({x.shape[-1]}, out), got {weight.shape}"
        )
    return x, weight, _arrays.parameter(function, "bias", bias, weight.shape[1:])


def _run(function, x, weight, bias, out, *, inference):
    x, weight, bias = _checked(function, x, weight, bias)
    shape = (*x.shape[:-1], weight.shape[1])
    y = _arrays.output(
        function, out, shape, x.dtype, ("x", x), ("weight", weight), ("bias", bias),
        may_be=x if inference else None,
    )
    if y is x:  # which BLAS reads to the end
        x = x.copy()
    filled = _arrays.kernel_output(y)
    _matmul(
        function,
        _arrays.matrix(x),
        _arrays.cast(weight, x.dtype),
        _arrays.cast(bias, x.dtype),
        _arrays.matrix(filled),
    )
    _arrays.deliver(filled, y)
    return y if inference else (y, AffineCache(x, weight, bias))


def affine(x, weight, bias=None, *, out=None):
    """``y = x @ weight + bias`` over the last axis of x.

    Parameters
    ----------
    x : array_like
        float32 or float64, of shape (..., in).
    weight : array_like
        Of shape (in, out). The transposed view of an (out, in) array, PyTorch's layout, is used as
        it is.
    bias : array_like, optional
        Of shape (out,).
    out : ndarray, optional
        Where the result goes: of shape (..., out) and x's dtype, and x itself if you like and the
        shapes agree (at the price of a copy).

    Returns
    -------
    ndarray
        Of shape (..., out) and x's dtype.

    Raises
    ------
    TypeError
        For an array of another dtype, or a masked one.
    ValueError
        For a wrong shape, or an `out` that overlaps an input.

    Notes
    -----
    The product is SciPy's BLAS. Its bits do not depend on the number of threads, but they do on the
    BLAS and on the machine.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> fn.affine(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.5, 0.5]))
    array([1.5, 2.5])
    """
    return _run("affine", x, weight, bias, out, inference=True)


def affine_forward(x, weight, bias=None, *, out=None):
    """`affine` for training.

    Parameters
    ----------
    x, weight, bias, out
        As for `affine`, but `out` must not be x, which the backward pass needs.

    Returns
    -------
    y : ndarray
        Of shape (..., out) and x's dtype.
    cache : AffineCache
        What `affine_backward` needs; refers to x, weight and bias, which must stay as they are.

    Raises
    ------
    TypeError, ValueError
        As `affine`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.affine_forward(np.ones((4, 3)), np.ones((3, 2)))
    >>> y.shape
    (4, 2)
    """
    return _run("affine_forward", x, weight, bias, out, inference=False)


def affine_backward(dy, cache, *, out=None):
    """Gradients of `affine_forward`.

    ``dx = dy @ weight.T``, ``dweight = x.T @ dy`` and ``dbias = sum(dy)``, with all axes but the
    last taken as one.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of y's shape.
    cache : AffineCache
        From `affine_forward`. It may be used again.
    out : ndarray, optional
        Where dx goes.

    Returns
    -------
    dx : ndarray
        Of x's shape and dtype.
    dweight : ndarray
        Of weight's shape, dtype and memory order.
    dbias : ndarray or None
        Of bias's shape and dtype; None if it was not given.

    Raises
    ------
    TypeError, ValueError
        As `affine`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.affine_forward(np.ones((4, 3)), np.ones((3, 2)), np.zeros(2))
    >>> dx, dweight, dbias = fn.affine_backward(np.ones((4, 2)), cache)
    >>> dbias
    array([4., 4.])
    """
    function = "affine_backward"
    x, weight, bias = _arrays.fields(function, cache, AffineCache)
    dy = _arrays.shaped(function, "dy", dy, (*x.shape[:-1], weight.shape[1]))
    dx = _arrays.output(function, out, x.shape, x.dtype, ("dy", dy), ("x", x), ("weight", weight))
    x2 = _arrays.matrix(x)
    dy2 = _arrays.matrix(_arrays.contiguous(_arrays.cast(dy, x.dtype)))

    filled = _arrays.kernel_output(dx)
    _matmul(function, dy2, _arrays.cast(weight, x.dtype).T, None, _arrays.matrix(filled))
    _arrays.deliver(filled, dx)

    dweight = _arrays.cast(_weight_gradient(function, x2, dy2, weight), weight.dtype)

    dbias = _arrays.gradient(bias)
    if bias is not None and dy2.size:
        _load()[0].sum_rows(dy2, *dy2.shape, dbias, get_num_threads())
    return dx, dweight, dbias
