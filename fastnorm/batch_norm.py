"""Batch normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import _arrays, _dispatch
from ._exchange import check, dtype_term, exchange
from ._threads import get_num_threads
from ._typing import Array, ArrayLike, Group, MaybeArray
from .moments import merged, state_of_view

if TYPE_CHECKING:  # a stub alone has this name: _dispatch.py loads a file under it
    from ._kernels import batch_norm as _kernel
else:
    _kernel = _dispatch.load("batch_norm")


class BatchNormCache(NamedTuple):
    """What `batch_norm_backward` needs: references, no copies, and two numbers a channel.

    mean and rstd are float64, of shape (C,). frozen: they were given, not the batch's. group: who
    shares the batch.
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    mean: Array
    rstd: Array
    axis: int
    frozen: bool
    group: Group | None = None


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
    group: Group | None = None,
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
    group : Group, optional
        Who shares the batch: anything with a method ``allgather(array)``, such as
        `fastnorm.distributed.mpi` returns. The statistics are then those of all members' x
        together, and all members get the same bits in them and in the running ones, to which one
        exchange of ``8 + 3 * C`` numbers a member is needed. All members must call, with as many
        channels, dtype, eps, decay, ddof and running statistics; an x may have any other size, or
        be empty. Without training, nothing is exchanged.
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
        running statistics, a batch too small for `ddof`, members that do not agree, or an
        `allgather` that returns something else. Nothing has been written then.

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
    if group is not None:
        check(function, group)
    n, c, s = _arrays.channel_view(x, axis)
    correction = 1.0
    if training and running_var is not None and group is None:
        correction = _correction(function, ddof, n * s)
    y = _arrays.output(
        function, out, x.shape, x.dtype,
        ("x", x), ("gamma", gamma), ("beta", beta),
        ("running_mean", running_mean), ("running_var", running_var),
    )  # fmt: skip
    if training and group is not None:
        mean, rstd = _forward_of_group(
            x, gamma, beta, running_mean, running_var, decay, ddof, group, axis, eps, y
        )
        return y, BatchNormCache(x, gamma, beta, mean, rstd, axis, False, group)
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


@np.errstate(all="ignore")  # NaN and Inf go through as IEEE arithmetic has it
def _forward_of_group(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    decay: float,
    ddof: float,
    group: Group,
    axis: int,
    eps: float,
    y: Array,
) -> tuple[Array, Array]:
    """Normalise with the statistics of all members; returns mean and rstd."""
    function = "batch_norm_forward"
    n, c, s = _arrays.channel_view(x, axis)
    terms = {
        "pass": 1.0,
        "channels": c,
        "dtype": dtype_term(x.dtype),
        "eps": eps,
        "decay": decay,
        "ddof": _arrays.real(function, "ddof", ddof),
        "running statistics": 2.0 * (running_mean is not None) + (running_var is not None),
    }
    state = merged(exchange(function, group, terms, state_of_view(x, n, c, s)))
    count = int(state[0])
    # All members know the count, so that all raise or none.
    correction = _correction(function, ddof, count) if running_var is not None else 1.0
    mean, var = state[1 : 1 + c].copy(), state[1 + 2 * c :] / max(count, 1)
    rstd = 1 / np.sqrt(var + eps)
    _infer(x, mean, var, gamma, beta, axis, eps, y, None)
    if count:
        moved = [
            (running, decay * running.astype(np.float64) + (1 - decay) * (factor * batch))
            for running, factor, batch in (
                (running_mean, 1.0, mean),
                (running_var, correction, var),
            )
            if running is not None
        ]
        for running, value in moved:
            running[...] = value
    return mean, rstd


def batch_norm_backward(
    dy: ArrayLike, cache: BatchNormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients of `batch_norm_forward`.

    With the means taken over all axes but the channels'::

        dx = gamma * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat))

    or, after training=False, ``dx = gamma * rstd * dy``. dgamma and dbeta are the sums of ``dy *
    x_hat`` and of dy.

    Where a `group` shares the batch, the means are over that of all members, for which they
    exchange ``4 + 2 * C`` numbers each: all of them must call. dgamma and dbeta stay the sums over
    this member's x: add them up over the members together with the other gradients.

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
    x, gamma, beta, mean, rstd, axis, frozen, group = _arrays.fields(
        function, cache, BatchNormCache
    )
    x, axis = _input(function, x, axis, "cache.x")
    shape = (x.shape[axis],)
    gamma = _arrays.parameter(function, "cache.gamma", gamma, shape)
    beta = _arrays.parameter(function, "cache.beta", beta, shape)
    frozen = _arrays.flag(function, "cache.frozen", frozen)
    if group is not None:
        check(function, group)
    mean = _arrays.kept(function, "cache.mean", mean, shape)
    rstd = _arrays.kept(function, "cache.rstd", rstd, shape)
    dy = _arrays.shaped(function, "dy", dy, x.shape)
    dx = _arrays.output(function, out, x.shape, x.dtype, ("dy", dy), ("x", x), ("gamma", gamma))
    dgamma = _arrays.gradient(gamma)
    dbeta = _arrays.gradient(beta)
    if group is not None and not frozen:
        _backward_of_group(dy, x, gamma, mean, rstd, axis, group, dx, dgamma, dbeta)
    elif x.size:
        n, c, s = _arrays.channel_view(x, axis)
        _kernel.backward(
            dy, x, gamma, mean, rstd, n, c, s, frozen, dx, dgamma, dbeta, get_num_threads(),
        )  # fmt: skip
    return dx, dgamma, dbeta


def _backward_of_group(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    axis: int,
    group: Group,
    dx: Array,
    dgamma: Array | None,
    dbeta: Array | None,
) -> None:
    """dx with the sums of all members; dgamma and dbeta with this one's."""
    function = "batch_norm_backward"
    view = _arrays.channel_view(x, axis)
    n, c, s = view
    numbers = np.zeros(1 + 2 * c)  # the count, the sums of dy, those of dy * x_hat
    numbers[0] = n * s
    threads = get_num_threads()
    if x.size:
        _kernel.gradient_sums(
            dy, x, mean, rstd, *view, numbers[1 : 1 + c], numbers[1 + c :], dgamma, dbeta, threads
        )
    terms = {"pass": 2.0, "channels": c, "dtype": dtype_term(x.dtype)}
    rows = exchange(function, group, terms, numbers)
    _kernel.add_rows(rows, numbers)
    if x.size:
        _kernel.map_gradient(
            dy, x, gamma, mean, rstd, *view,
            numbers[1 : 1 + c], numbers[1 + c :], float(numbers[0]), dx, threads,
        )  # fmt: skip
