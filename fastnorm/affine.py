"""The affine (fully connected, dense, linear) layer."""

from __future__ import annotations

from functools import cache as _once
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _dispatch
from ._threads import get_num_threads
from ._typing import Array, ArrayLike, MaybeArray


@_once
def _load() -> tuple[Any, Any]:
    """The kernel and its BLAS. Importing SciPy takes long: it waits for the first use."""
    from . import _blas

    return _dispatch.load("affine"), _blas


class AffineCache(NamedTuple):
    """What `affine_backward` needs: references, no copies."""

    x: Array
    weight: Array
    bias: Array | None


# Bytes of x up to which a copy costs less than to have all columns of a row in one block.
_SMALL = 2**20

# A product with a weight of a few columns is our own from so many rows of it on, and of x; one with
# a weight of a few rows from so many columns on, and bytes of the result; one of a few rows of x
# from so many bytes of the weight on. Else BLAS is as fast.
_WIDE, _MANY, _LARGE, _FEW_ROWS = 64, 16, 2**20, 8


def _multiply(function: str, *product: Any) -> None:
    """The kernel's matmul, with as many threads as BLAS lets us have."""
    kernel, blas = _load()
    with blas.single_threaded:
        num_threads = get_num_threads() if blas.can_be_single_threaded() else 1
        if not kernel.matmul(*product, num_threads):
            raise MemoryError(f"{function}: no memory for the tiles")


def _has_few_rows(rows: int, k: int, n: int, dtype: Any) -> bool:
    """Whether x has, beside a weight that BLAS would pack for them."""
    is_packed = min(k, n) >= _WIDE and k * n * dtype.itemsize >= _LARGE
    return is_packed and 1 < rows <= min(_FEW_ROWS, _load()[0].MAX_FEW)


def _times_few_columns(
    function: str, x: Array, weight: Array, bias: Array | None, y: Array, dtype: Any
) -> None:
    """y = x @ weight + bias, for a weight of a few columns or rows."""
    k, n = weight.shape
    panel = np.ascontiguousarray(weight.T if n <= k else weight, dtype)
    if not _load()[0].times_thin(
        x, panel, _arrays.contiguous(bias), y, _arrays.row_count(x), k, n, dtype, get_num_threads()
    ):
        raise MemoryError(f"{function}: no memory for a few columns")


def _thin_gradient(function: str, a: Array, b: Array, product: Array, dtype: Any) -> None:
    """product = a.T @ b, with all axes but the last taken as one, for a few columns of a."""
    if not _load()[0].thin_gradient(
        a, b, product, _arrays.row_count(a), *product.shape, dtype, get_num_threads()
    ):
        raise MemoryError(f"{function}: no memory for a thin gradient")


def _times_few_rows(
    function: str, x: Array, weight: Array, bias: Array | None, y: Array, dtype: Any
) -> None:
    """The same for a few rows of x, with which the weight is multiplied, in the order of memory."""
    columns = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), dtype).T
    product = _arrays.empty((columns.shape[1], weight.shape[1]), dtype)
    if _arrays.is_transposed(weight):
        _times_few_columns(function, weight.T, columns, None, product.T, dtype)
    else:
        _thin_gradient(function, columns, weight, product, dtype)
    if bias is not None:
        product += bias.astype(dtype)
    y[...] = product.reshape(y.shape)


def _times_weight(
    function: str, x: Array, weight: Array, transposed: bool, bias: Array | None, y: Array
) -> None:
    """y = x @ weight + bias, or x @ weight.T; y may be x."""
    k, n = x.shape[-1], y.shape[-1]
    if k == 0:
        y[...] = 0 if bias is None else bias
    if k == 0 or y.size == 0:
        return
    dtype = _arrays.working_dtype(y)  # x may be dy
    rows, few = _arrays.row_count(x), _load()[0].MAX_FEW
    is_narrow = n <= few and k >= _WIDE and rows >= _MANY
    is_shallow = k <= few and n >= _WIDE and rows * n * dtype.itemsize >= _LARGE
    product = function, x, weight.T if transposed else weight, bias, y, dtype
    if is_narrow or is_shallow:
        _times_few_columns(*product)
        return
    if _has_few_rows(rows, k, n, dtype):
        _times_few_rows(*product)
        return
    if _arrays.is_transposed(weight):
        weight, transposed = weight.T, not transposed
    _multiply(
        function, x, False, weight, transposed, _arrays.contiguous(bias), y,
        rows, n, k, dtype,
    )  # fmt: skip


def _weight_gradient(function: str, x: Array, dy: Array, weight: Array) -> Array:
    """x.T @ dy, in weight's dtype and memory order."""
    (m, n), rows, dtype = weight.shape, _arrays.row_count(x), _arrays.working_dtype(x)
    if rows == 0 or weight.size == 0:
        return np.zeros_like(weight, subok=False)
    transposed = weight.flags.f_contiguous and not weight.flags.c_contiguous
    filled = _arrays.empty((n, m) if transposed else (m, n), weight.dtype)
    dweight = filled.T if transposed else filled
    if min(m, n) <= _load()[0].MAX_THIN:
        thin, wide, product = (x, dy, dweight) if m <= n else (dy, x, dweight.T)
        _thin_gradient(function, thin, wide, product, dtype)
    elif _has_few_rows(rows, m, n, dtype):
        a, b = (v.reshape(rows, v.shape[-1]) for v in ((dy, x) if transposed else (x, dy)))
        _times_few_columns(function, a.T, b, None, filled, dtype)
    elif transposed:
        _multiply(function, dy, True, x, False, None, filled, n, m, rows, dtype)
    else:
        _multiply(function, x, True, dy, False, None, filled, m, n, rows, dtype)
    return dweight


def _parameter_gradients(
    function: str, dy: Array, x: Array, weight: Array, bias: Array | None
) -> tuple[Array, MaybeArray]:
    dbias = _arrays.gradient(bias)
    if bias is not None and dy.size:
        if not _load()[0].sum_rows(
            dy, _arrays.row_count(dy), dy.shape[-1], dbias, _arrays.working_dtype(x),
            get_num_threads(),
        ):  # fmt: skip
            raise MemoryError(f"{function}: no memory for dbias")
    return _weight_gradient(function, x, dy, weight), dbias


def _checked_dy(
    function: str, dy: ArrayLike, cache: AffineCache
) -> tuple[Array, Array, Array, Array | None]:
    x, weight, bias = _checked(function, *_arrays.fields(function, cache, AffineCache), "cache.")
    return _arrays.shaped(function, "dy", dy, (*x.shape[:-1], weight.shape[1])), x, weight, bias


def parameter_gradients(dy: ArrayLike, cache: AffineCache) -> tuple[Array, MaybeArray]:
    """What `affine_backward` returns, without dx: a network's first layer has no use for it."""
    function = "affine_backward"
    return _parameter_gradients(function, *_checked_dy(function, dy, cache))


def _checked(
    function: str, x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, prefix: str = ""
) -> tuple[Array, Array, Array | None]:
    x = _arrays.array(function, f"{prefix}x", x)
    weight = _arrays.array(function, f"{prefix}weight", weight)
    if x.ndim == 0:
        raise ValueError(f"{function}: {prefix}x must have at least 1 dimension, got shape ()")
    if weight.ndim != 2 or weight.shape[0] != x.shape[-1]:
        fits = weight.ndim == 2 and weight.shape[1] == x.shape[-1]
        hint = "; its transpose, weight.T, would do" if fits else ""
        raise ValueError(
            f"{function}: {prefix}weight must have shape ({x.shape[-1]}, out), "
            f"got {weight.shape}{hint}"
        )
    if max(weight.shape) > 2**31 - 1:
        raise ValueError(
            f"{function}: {prefix}weight must have at most 2**31 - 1 rows and columns, "
            f"got {weight.shape}"
        )
    return x, weight, _arrays.parameter(function, f"{prefix}bias", bias, weight.shape[1:])


def _run(
    function: str,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    out: Array | None,
    *,
    inference: bool,
) -> Any:
    """y; for training, y and the cache."""
    x, weight, bias = _checked(function, x, weight, bias)
    shape = (*x.shape[:-1], weight.shape[1])
    y = _arrays.output(
        function, out, shape, x.dtype, ("x", x), ("weight", weight), ("bias", bias),
        may_be=x if inference else None,
    )  # fmt: skip
    if inference and x.nbytes <= _SMALL and _arrays.is_same(x, y):
        x = x.copy()
    _times_weight(function, x, weight, False, bias, y)
    return y if inference else (y, AffineCache(x, weight, bias))


def affine(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, out: Array | None = None
) -> Array:
    """``y = x @ weight + bias`` over the last axis of x.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of shape (..., in), any strides.
    weight : array_like
        Of shape (in, out) and any of these dtypes. The transposed view of an (out, in) array,
        PyTorch's layout, is used as it is.
    bias : array_like, optional
        Of shape (out,).
    out : ndarray, optional
        Where the result goes: of shape (..., out) and x's dtype, any strides, and x itself if you
        like and the shapes agree.

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
    The product is SciPy's BLAS, or a kernel of fastnorm's own where one side is thin. Its bits do
    not depend on the number of threads, nor on the strides of x, but they do on the BLAS, the
    processor and how many CPUs the machine has, and may depend on how the weight lies.

    16 bits are converted to float32 tile by tile, the sums are float32, and rounded once.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> fn.affine(np.array([1.0, 2.0]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.5, 0.5]))
    array([1.5, 2.5])
    """
    y: Array = _run("affine", x, weight, bias, out, inference=True)
    return y


def affine_forward(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, out: Array | None = None
) -> tuple[Array, AffineCache]:
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
    result: tuple[Array, AffineCache] = _run(
        "affine_forward", x, weight, bias, out, inference=False
    )
    return result


def affine_backward(
    dy: ArrayLike, cache: AffineCache, *, out: Array | None = None
) -> tuple[Array, Array, MaybeArray]:
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
    dy, x, weight, bias = _checked_dy(function, dy, cache)
    dx = _arrays.output(function, out, x.shape, x.dtype, ("dy", dy), ("x", x), ("weight", weight))
    dweight, dbias = _parameter_gradients(function, dy, x, weight, bias)  # may want memory; no out
    _times_weight(function, dy, weight, True, None, dx)
    return dx, dweight, dbias
