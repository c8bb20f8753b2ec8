"""Layer normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import _arrays, _dispatch
from ._threads import get_num_threads
from ._typing import Array, ArrayLike, Axes, MaybeArray

if TYPE_CHECKING:  # a stub alone has this name: _dispatch.py loads a file under it
    from ._kernels import layer_norm as _kernel
else:
    _kernel = _dispatch.load("layer_norm")


class LayerNormCache(NamedTuple):
    """What `layer_norm_backward` needs: references, no copies, and two numbers a row.

    mean and rstd are float64, with the shape of x and length 1 at the normalised axes.
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    mean: Array
    rstd: Array
    axes: tuple[int, ...]


def _forward(
    function: str,
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    axis: Axes,
    eps: float,
    out: Array | None,
    *,
    inference: bool,
) -> Any:
    """y; for training, y and the cache."""
    x = _arrays.array(function, "x", x)
    axes = _arrays.many_axes(function, axis, x.ndim)
    shape = _arrays.lengths(x, axes)
    gamma = _arrays.parameter(function, "gamma", gamma, shape, x)
    beta = _arrays.parameter(function, "beta", beta, shape, x)
    eps = _arrays.epsilon(function, eps)
    y = _arrays.output(
        function, out, x.shape, x.dtype, ("x", x), ("gamma", gamma), ("beta", beta),
        may_be=x if inference else None,
    )  # fmt: skip
    mean: Any = None
    rstd: Any = None
    if not inference:
        mean, rstd = _arrays.new_statistics(_arrays.reduced(x, axes), x.size, eps)
    if x.size:
        m, n, order = _arrays.row_view(x, axes)
        _kernel.forward(
            _arrays.ordered(x, order), _arrays.contiguous(gamma), _arrays.contiguous(beta),
            m, n, True, eps, _arrays.ordered(y, order), mean, rstd, get_num_threads(),
        )  # fmt: skip
    return y if inference else (y, LayerNormCache(x, gamma, beta, mean, rstd, axes))


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Normalise over `axis` to mean 0 and variance 1, then scale and shift.

    ``y = (x - mean) / sqrt(var + eps) * gamma + beta``, with the mean and the biased variance of
    the elements along `axis`, for each index of the other axes.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of any shape and strides.
    gamma, beta : array_like, optional
        Scale and shift, of the shape that x has at `axis`, in ascending order of the axes.
        Default: 1 and 0.
    axis : int or tuple of int, optional
        The axes to normalise over, any of them. Default: the last.
    eps : float, optional
        Added to the variance, inside the root.
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
    layer_norm_forward : the same for training.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> fn.layer_norm(np.array([[1.0, 3.0], [-2.0, 2.0]]), eps=0)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    y: Array = _forward("layer_norm", x, gamma, beta, axis, eps, out, inference=True)
    return y


def layer_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, LayerNormCache]:
    """`layer_norm` for training.

    Parameters
    ----------
    x, gamma, beta, axis, eps, out
        As for `layer_norm`, but `out` must not be x, which the backward pass needs.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype.
    cache : LayerNormCache
        What `layer_norm_backward` needs; refers to x, gamma and beta, which must stay as they are.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> x = np.array([[1.0, 3.0], [-2.0, 2.0]])
    >>> y, cache = fn.layer_norm_forward(x)
    >>> cache.mean
    array([[2.],
           [0.]])
    """
    result: tuple[Array, LayerNormCache] = _forward(
        "layer_norm_forward", x, gamma, beta, axis, eps, out, inference=False
    )
    return result


def layer_norm_backward(
    dy: ArrayLike, cache: LayerNormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients of `layer_norm_forward`.

    With ``h = dy * gamma`` and the means taken over the normalised axes::

        dx = rstd * (h - mean(h) - x_hat * mean(h * x_hat))

    dgamma and dbeta are the sums of ``dy * x_hat`` and of dy over the other axes.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of y's shape.
    cache : LayerNormCache
        From `layer_norm_forward`. It may be used again.
    out : ndarray, optional
        Where dx goes.

    Returns
    -------
    dx : ndarray
        Of x's shape and dtype.
    dgamma, dbeta : ndarray or None
        Of the shape and dtype of gamma and beta; None for one that was not given.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.layer_norm_forward(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2))
    >>> dx, dgamma, dbeta = fn.layer_norm_backward(np.ones((1, 2)), cache)
    >>> dbeta
    array([1., 1.])
    """
    function = "layer_norm_backward"
    x, gamma, beta, mean, rstd, axes = _arrays.fields(function, cache, LayerNormCache)
    x = _arrays.array(function, "cache.x", x)
    axes = _arrays.many_axes(function, axes, x.ndim)
    shape, kept = _arrays.lengths(x, axes), _arrays.reduced(x, axes)
    gamma = _arrays.parameter(function, "cache.gamma", gamma, shape)
    beta = _arrays.parameter(function, "cache.beta", beta, shape)
    mean = _arrays.kept(function, "cache.mean", mean, kept)
    rstd = _arrays.kept(function, "cache.rstd", rstd, kept)
    dy = _arrays.shaped(function, "dy", dy, x.shape)
    dx = _arrays.output(
        function, out, x.shape, x.dtype, ("dy", dy), ("x", x), ("gamma", gamma),
    )  # fmt: skip
    dgamma = _arrays.gradient(gamma)
    dbeta = _arrays.gradient(beta)
    if x.size:
        m, n, order = _arrays.row_view(x, axes)
        _kernel.backward(
            _arrays.ordered(dy, order), _arrays.ordered(x, order),
            _arrays.contiguous(gamma), mean, rstd, m, n, _arrays.ordered(dx, order),
            dgamma, dbeta, get_num_threads(),
        )  # fmt: skip
    return dx, dgamma, dbeta
