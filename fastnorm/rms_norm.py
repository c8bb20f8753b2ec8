"""RMS normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import _arrays, _dispatch
from ._threads import get_num_threads
from ._typing import Array, ArrayLike, Axes, MaybeArray

if TYPE_CHECKING:  # a stub alone has this name: _dispatch.py loads a file under it
    from ._kernels import layer_norm as _kernel
else:
    _kernel = _dispatch.load("layer_norm")  # with a mean of 0


class RMSNormCache(NamedTuple):
    """What `rms_norm_backward` needs: references, no copies, and one number a row.

    rstd is float64, with the shape of x and length 1 at the normalised axes. mean is None: x was
    not centred.
    """

    x: Array
    gamma: Array | None
    rstd: Array
    axes: tuple[int, ...]

    @property
    def mean(self) -> None:
        return None


def _forward(
    function: str,
    x: ArrayLike,
    gamma: ArrayLike | None,
    axis: Axes,
    eps: float,
    out: Array | None,
    *,
    inference: bool,
) -> Any:
    """y; for training, y and the cache."""
    x = _arrays.array(function, "x", x)
    axes = _arrays.many_axes(function, axis, x.ndim)
    gamma = _arrays.parameter(function, "gamma", gamma, _arrays.lengths(x, axes), x)
    eps = _arrays.epsilon(function, eps)
    y = _arrays.output(
        function, out, x.shape, x.dtype, ("x", x), ("gamma", gamma), may_be=x if inference else None
    )
    rstd: Any = None
    if not inference:
        _, rstd = _arrays.new_statistics(_arrays.reduced(x, axes), x.size, eps)
    if x.size:
        m, n, order = _arrays.row_view(x, axes)
        _kernel.forward(
            _arrays.ordered(x, order), _arrays.contiguous(gamma), None,
            m, n, False, eps, _arrays.ordered(y, order), None, rstd, get_num_threads(),
        )  # fmt: skip
    return y if inference else (y, RMSNormCache(x, gamma, rstd, axes))


def rms_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-6,
    out: Array | None = None,
) -> Array:
    """Divide by the root mean square over `axis`, then scale: layer norm without centring.

    ``y = x / sqrt(mean(x**2) + eps) * gamma``, with the mean over the elements along `axis`, for
    each index of the other axes.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of any shape and strides.
    gamma : array_like, optional
        Scale, of the shape that x has at `axis`, in ascending order of the axes. Default: 1.
    axis : int or tuple of int, optional
        The axes to normalise over, any of them. Default: the last.
    eps : float, optional
        Added to the mean square, inside the root.
    out : ndarray, optional
        Where the result goes: of x's shape and dtype, and x itself if you like.

    Returns
    -------
    ndarray
        Of x's shape and dtype.

    Raises
    ------
    TypeError
        For an array of another dtype, or a masked one.
    ValueError
        For a wrong shape or axis, or an `out` that overlaps an input in part.

    See Also
    --------
    rms_norm_forward : the same for training.

    References
    ----------
    Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> fn.rms_norm(np.array([[1.0, 7.0], [-2.0, 2.0]]), eps=0)
    array([[ 0.2,  1.4],
           [-1. ,  1. ]])
    """
    y: Array = _forward("rms_norm", x, gamma, axis, eps, out, inference=True)
    return y


def rms_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-6,
    out: Array | None = None,
) -> tuple[Array, RMSNormCache]:
    """`rms_norm` for training.

    Parameters
    ----------
    x, gamma, axis, eps, out
        As for `rms_norm`, but `out` must not be x, which the backward pass needs.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype.
    cache : RMSNormCache
        What `rms_norm_backward` needs; refers to x and gamma, which must stay as they are.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.rms_norm_forward(np.array([[1.0, 7.0], [-2.0, 2.0]]), eps=0)
    >>> cache.rstd
    array([[0.2],
           [0.5]])
    """
    result: tuple[Array, RMSNormCache] = _forward(
        "rms_norm_forward", x, gamma, axis, eps, out, inference=False
    )
    return result


def rms_norm_backward(
    dy: ArrayLike, cache: RMSNormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray]:
    """Gradients of `rms_norm_forward`.

    With ``h = dy * gamma``, ``x_hat = x * rstd`` and the mean taken over the normalised axes::

        dx = rstd * (h - x_hat * mean(h * x_hat))

    dgamma is the sum of ``dy * x_hat`` over the other axes.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of y's shape.
    cache : RMSNormCache
        From `rms_norm_forward`. It may be used again.
    out : ndarray, optional
        Where dx goes.

    Returns
    -------
    dx : ndarray
        Of x's shape and dtype.
    dgamma : ndarray or None
        Of the shape and dtype of gamma; None if it was not given.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.rms_norm_forward(np.array([[1.0, 7.0]]), np.ones(2), eps=0)
    >>> dx, dgamma = fn.rms_norm_backward(np.ones((1, 2)), cache)
    >>> dgamma
    array([0.2, 1.4])
    """
    function = "rms_norm_backward"
    x, gamma, rstd, axes = _arrays.fields(function, cache, RMSNormCache)
    x = _arrays.array(function, "cache.x", x)
    axes = _arrays.many_axes(function, axes, x.ndim)
    gamma = _arrays.parameter(function, "cache.gamma", gamma, _arrays.lengths(x, axes))
    rstd = _arrays.kept(function, "cache.rstd", rstd, _arrays.reduced(x, axes))
    dy = _arrays.shaped(function, "dy", dy, x.shape)
    dx = _arrays.output(function, out, x.shape, x.dtype, ("dy", dy), ("x", x), ("gamma", gamma))
    dgamma = _arrays.gradient(gamma)
    if x.size:
        m, n, order = _arrays.row_view(x, axes)
        _kernel.backward(
            _arrays.ordered(dy, order), _arrays.ordered(x, order),
            _arrays.contiguous(gamma), None, rstd, m, n, _arrays.ordered(dx, order),
            dgamma, None, get_num_threads(),
        )  # fmt: skip
    return dx, dgamma
