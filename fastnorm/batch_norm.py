"""Batch normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import _arrays, _dispatch
from ._threads import get_num_threads
from ._typing import Array, ArrayLike, MaybeArray

if TYPE_CHECKING:  # the kernels of all instruction sets have the same functions
    from ._kernels import batch_norm_baseline as _kernel
else:
    _kernel = _dispatch.load("batch_norm")


class BatchNormCache(NamedTuple):
    """What `batch_norm_backward` needs: references, no copies, and two numbers a channel.

    mean and rstd are float64, of shape (C,). frozen: they were given, not the batch's.
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    mean: Array
    rstd: Array
    axis: int
    frozen: bool


def _input(function: str, x: ArrayLike, axis: int, name: str = "x") -> tuple[Array, int]:
    x = _arrays.array(function, name, x)
    if x.ndim < 2:
        raise ValueError(f"{function}: {name} must have at least 2 dimensions, got shape {x.shape}")
    return x, _arrays.one_axis(function, axis, x.ndim)


def batch_norm(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Normalise each channel with given statistics: batch norm at inference.

    ``y = (x - mean) / sqrt(var + eps) * gamma + beta``, channel by channel.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of 2 dimensions or more and any strides.
    mean, var : array_like
        Of shape (C,), C being ``x.shape[axis]``.
    gamma, beta : array_like, optional
        Scale and shift, of shape (C,). Default: 1 and 0.
    axis : int, optional
        The channel axis: 1 for channels first, -1 for channels last.
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
    batch_norm_forward : training, with the statistics of the batch.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> fn.batch_norm(x, np.array([2.0, 20.0]), np.array([1.0, 100.0]), eps=0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    function = "batch_norm"
    x, axis = _input(function, x, axis)
    shape = (x.shape[axis],)
    mean = _arrays.shaped(function, "mean", mean, shape, x)
    var = _arrays.shaped(function, "var", var, shape, x)
    gamma = _arrays.parameter(function, "gamma", gamma, shape, x)
    beta = _arrays.parameter(function, "beta", beta, shape, x)
    eps = _arrays.epsilon(function, eps)
    y = _arrays.output(
        function, out, x.shape, x.dtype,
        ("x", x), ("mean", mean), ("var", var), ("gamma", gamma), ("beta", beta), may_be=x,
    )  # fmt: skip
    return _infer(x, mean, var, gamma, beta, axis, eps, y, None)


def _infer(
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int,
    eps: float,
    y: Array,
    rstd: Array | None,
) -> Array:
    if x.size:
        n, c, s = _arrays.channel_view(x, axis)
        _kernel.infer(x, mean, var, gamma, beta, n, c, s, eps, y, rstd, get_num_threads())
    return y


def _decay(function: str, decay: float) -> float:
    value = _arrays.real(function, "decay", decay)
    if not 0 <= value <= 1:
        raise ValueError(f"{function}: decay must be between 0 and 1, got {value}")
    return value


def _correction(function: str, ddof: float, count: int) -> float:
    """What turns the biased variance of `count` values into that with ddof degrees less."""
    value = _arrays.real(function, "ddof", ddof)
    if count and not value < count:
        raise ValueError(
            f"{function}: running_var with ddof={ddof} needs more than {ddof} values a channel, "
            f"got {count}"
        )
    return count / (count - value) if count else 1.0


def _given(function: str, name: str, statistic: Array | None) -> Array:
    if statistic is None:
        raise ValueError(f"{function}: training=False needs {name}, got None")
    return statistic


def batch_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    decay: float = 0.9,
    ddof: int = 1,
    training: bool = True,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, BatchNormCache]:
    """Normalise each channel with the statistics of the batch.

    ``y = (x - mean) / sqrt(var + eps) * gamma + beta``, with the mean and the biased variance of
    each channel over all other axes.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of 2 dimensions or more and any strides.
    gamma, beta : array_like, optional
        Scale and shift, of shape (C,), C being ``x.shape[axis]``. Default: 1 and 0.
    running_mean, running_var : ndarray, optional
        Running statistics, of shape (C,), float32 or float64 whatever x is. Training updates them
        in place: ``running = decay * running + (1 - decay) * batch``.
    decay : float, optional
        What is kept of the running statistics, between 0 and 1: Keras' and ONNX' momentum;
        PyTorch's is ``1 - decay``.
    ddof : int, optional
        The variance that goes into `running_var` is divided by ``m - ddof``, m being the number of
        values in a channel: 1 is PyTorch's, 0 that of Keras, ONNX and cs231n.
    training : bool, optional
        False: normalise with the running statistics, which the backward pass takes as constants.
    axis : int, optional
        The channel axis: 1 for channels first, -1 for channels last.
    eps : float, optional
        Added to the variance, inside the root.
    out : ndarray, optional
        Where y goes: of x's shape and dtype, not overlapping an input.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype.
    cache : BatchNormCache
        What `batch_norm_backward` needs; refers to x, gamma and beta, which must stay as they are.

    Raises
    ------
    TypeError
        For an array of another dtype, or a masked one.
    ValueError
        For a wrong shape or axis, an `out` that overlaps an input, training=False without both
        running statistics, or a batch too small for `ddof`. Nothing has been written then.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> running_mean, running_var = np.zeros(2), np.ones(2)
    >>> y, cache = fn.batch_norm_forward(
    ...     x, running_mean=running_mean, running_var=running_var, eps=0)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> running_mean
    array([0.2, 2. ])
    """
    function = "batch_norm_forward"
    x, axis = _input(function, x, axis)
    shape = (x.shape[axis],)
    gamma = _arrays.parameter(function, "gamma", gamma, shape, x)
    beta = _arrays.parameter(function, "beta", beta, shape, x)
    training = _arrays.flag(function, "training", training)
    running_mean = _arrays.running(function, "running_mean", running_mean, shape, training, x)
    running_var = _arrays.running(function, "running_var", running_var, shape, training, x)
    decay = _decay(function, decay)
    eps = _arrays.epsilon(function, eps)
    n, c, s = _arrays.channel_view(x, axis)
    correction = 1.0
    if training and running_var is not None:
        correction = _correction(function, ddof, n * s)
    y = _arrays.output(
        function, out, x.shape, x.dtype,
        ("x", x), ("gamma", gamma), ("beta", beta),
        ("running_mean", running_mean), ("running_var", running_var),
    )  # fmt: skip
    mean, rstd = _arrays.new_statistics(shape, x.size, eps)
    if not training:
        # A copy: the cache must not see later updates.
        mean[...] = _given(function, "running_mean", running_mean)
        var = _given(function, "running_var", running_var)
        _infer(x, mean, var, gamma, beta, axis, eps, y, rstd)
    elif x.size:
        _kernel.forward(
            x, gamma, beta, n, c, s, eps, decay, correction, y, mean, rstd,
            running_mean, running_var, get_num_threads(),
        )  # fmt: skip
    return y, BatchNormCache(x, gamma, beta, mean, rstd, axis, not training)


def batch_norm_backward(
    dy: ArrayLike, cache: BatchNormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients of `batch_norm_forward`.

    With the means taken over all axes but the channels'::

        dx = gamma * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat))

    or, after training=False, ``dx = gamma * rstd * dy``. dgamma and dbeta are the sums of ``dy *
    x_hat`` and of dy.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of y's shape.
    cache : BatchNormCache
        From `batch_norm_forward`. It may be used again.
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
        As `batch_norm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.batch_norm_forward(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1))
    >>> dx, dgamma, dbeta = fn.batch_norm_backward(np.ones((2, 1)), cache)
    >>> dbeta
    array([2.])
    """
    function = "batch_norm_backward"
    x, gamma, beta, mean, rstd, axis, frozen = _arrays.fields(function, cache, BatchNormCache)
    x, axis = _input(function, x, axis, "cache.x")
    shape = (x.shape[axis],)
    gamma = _arrays.parameter(function, "cache.gamma", gamma, shape)
    beta = _arrays.parameter(function, "cache.beta", beta, shape)
    frozen = _arrays.flag(function, "cache.frozen", frozen)
    mean = _arrays.kept(function, "cache.mean", mean, shape)
    rstd = _arrays.kept(function, "cache.rstd", rstd, shape)
    dy = _arrays.shaped(function, "dy", dy, x.shape)
    dx = _arrays.output(function, out, x.shape, x.dtype, ("dy", dy), ("x", x), ("gamma", gamma))
    dgamma = _arrays.gradient(gamma)
    dbeta = _arrays.gradient(beta)
    if x.size:
        n, c, s = _arrays.channel_view(x, axis)
        _kernel.backward(
            dy, x, gamma, mean, rstd, n, c, s, frozen, dx, dgamma, dbeta, get_num_threads(),
        )  # fmt: skip
    return dx, dgamma, dbeta
