"""Group normalisation, and instance normalisation, in which every channel is a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import _arrays, _dispatch
from ._threads import get_num_threads
from ._typing import Array, ArrayLike, MaybeArray

if TYPE_CHECKING:  # a stub alone has this name: _dispatch.py loads a file under it
    from ._kernels import group_norm as _kernel
else:
    _kernel = _dispatch.load("group_norm")


class GroupNormCache(NamedTuple):
    """What `group_norm_backward` needs: references, no copies, and two numbers a group.

    mean and rstd are float64, of shape (N, num_groups).
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    mean: Array
    rstd: Array
    axis: int


class InstanceNormCache(GroupNormCache):
    """The same for `instance_norm_backward`; every channel is a group."""

    __slots__ = ()


def _input(function: str, x: ArrayLike, axis: int, name: str = "x") -> tuple[Array, int]:
    x = _arrays.array(function, name, x)
    if x.ndim < 2:
        raise ValueError(f"{function}: {name} must have at least 2 dimensions, got shape {x.shape}")
    axis = _arrays.one_axis(function, axis, x.ndim)
    if axis == 0:
        raise ValueError(f"{function}: axis must not be 0, which counts the samples, got 0")
    return x, axis


def _view(x: Array, axis: int) -> tuple[int, int, int, int]:
    """(B, N, C, S): the samples, what stands between them and the channels, and after these."""
    n, c, s = _arrays.channel_view(x, axis)
    return x.shape[0], n // x.shape[0], c, s


def _normalise(
    function: str,
    x: Array,
    axis: int,
    num_groups: int | None,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    out: Array | None,
    may_be: Array | None = None,
) -> tuple[Array, tuple[Array, Array | None, Array | None, Array, Array, int]]:
    """y and the cache's fields; num_groups None makes every channel a group."""
    shape = (x.shape[axis],)
    num_groups = shape[0] if num_groups is None else _arrays.groups(function, num_groups, shape[0])
    gamma = _arrays.parameter(function, "gamma", gamma, shape, x, 1)
    beta = _arrays.parameter(function, "beta", beta, shape, x, 1)
    eps = _arrays.epsilon(function, eps)
    y = _arrays.output(
        function, out, x.shape, x.dtype, ("x", x), ("gamma", gamma), ("beta", beta), may_be=may_be
    )
    mean, rstd = _arrays.new_statistics((x.shape[0], num_groups), x.size, eps)
    if x.size:
        _kernel.forward(
            function, x, gamma, beta, *_view(x, axis), num_groups, eps, y, mean, rstd,
            get_num_threads(),
        )  # fmt: skip
    return y, (x, gamma, beta, mean, rstd, axis)


def _number_of_groups(mean: object) -> int:
    """The cache's shape says it."""
    return mean.shape[1] if isinstance(mean, np.ndarray) and mean.ndim == 2 else 0


def _backward(
    function: str,
    dy: ArrayLike,
    cache: GroupNormCache,
    kind: type[GroupNormCache],
    out: Array | None,
) -> tuple[Array, MaybeArray, MaybeArray]:
    x, gamma, beta, mean, rstd, axis = _arrays.fields(function, cache, kind)
    x, axis = _input(function, x, axis, "cache.x")
    shape = (x.shape[axis],)
    gamma = _arrays.parameter(function, "cache.gamma", gamma, shape)
    beta = _arrays.parameter(function, "cache.beta", beta, shape)
    num_groups = shape[0] if kind is InstanceNormCache else _number_of_groups(mean)
    if x.size:
        num_groups = _arrays.groups(function, num_groups, shape[0])
    mean = _arrays.kept(function, "cache.mean", mean, (x.shape[0], num_groups))
    rstd = _arrays.kept(function, "cache.rstd", rstd, (x.shape[0], num_groups))
    dy = _arrays.shaped(function, "dy", dy, x.shape)
    dx = _arrays.output(function, out, x.shape, x.dtype, ("dy", dy), ("x", x), ("gamma", gamma))
    dgamma = _arrays.gradient(gamma)
    dbeta = _arrays.gradient(beta)
    if x.size:
        _kernel.backward(
            function, dy, x, gamma, mean, rstd, *_view(x, axis), num_groups, dx, dgamma, dbeta,
            get_num_threads(),
        )  # fmt: skip
    return dx, dgamma, dbeta


def group_norm(
    x: ArrayLike,
    num_groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Normalise each sample's groups of adjacent channels.

    ``y = (x - mean) / sqrt(var + eps) * gamma + beta``, with the mean and the biased variance of
    each sample and group, over its channels and all axes but the first and the channels'.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of 2 dimensions or more and any strides; axis 0
        counts the samples.
    num_groups : int
        A divisor of C, C being ``x.shape[axis]``. With 1 a sample has one group.
    gamma, beta : array_like, optional
        Scale and shift, of shape (C,). Default: 1 and 0.
    axis : int, optional
        The channel axis: 1 for channels first, -1 for channels last; not 0.
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
        For a wrong shape or axis, a number of groups that does not divide C, or an `out` that
        overlaps an input in part.

    See Also
    --------
    group_norm_forward : the same, with what the backward pass needs.
    instance_norm : every channel is a group.

    References
    ----------
    Wu and He, "Group Normalization", arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])  # one sample of four channels
    >>> fn.group_norm(x, 2, eps=0)
    array([[-1.,  1., -1.,  1.]])
    """
    function = "group_norm"
    x, axis = _input(function, x, axis)
    return _normalise(function, x, axis, num_groups, gamma, beta, eps, out, may_be=x)[0]


def group_norm_forward(
    x: ArrayLike,
    num_groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, GroupNormCache]:
    """Normalise each sample's groups of adjacent channels, and keep what backward needs.

    Parameters
    ----------
    x, num_groups, gamma, beta, axis, eps
        As for `group_norm`.
    out : ndarray, optional
        Where y goes: of x's shape and dtype, not overlapping an input.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype.
    cache : GroupNormCache
        What `group_norm_backward` needs; refers to x, gamma and beta, which must stay as they are.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`, and for an `out` that is x.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.group_norm_forward(np.array([[1.0, 3.0, 10.0, 30.0]]), 2)
    >>> cache.mean
    array([[ 2., 20.]])
    """
    function = "group_norm_forward"
    x, axis = _input(function, x, axis)
    y, fields = _normalise(function, x, axis, num_groups, gamma, beta, eps, out)
    return y, GroupNormCache(*fields)


def group_norm_backward(
    dy: ArrayLike, cache: GroupNormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients of `group_norm_forward`.

    With ``h = dy * gamma`` and the means taken over each sample's group::

        dx = rstd * (h - mean(h) - x_hat * mean(h * x_hat))

    dgamma and dbeta are the sums of ``dy * x_hat`` and of dy over all axes but the channels'.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of y's shape.
    cache : GroupNormCache
        From `group_norm_forward`. It may be used again.
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
        As `group_norm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, cache = fn.group_norm_forward(x, 2, np.ones(4), np.zeros(4))
    >>> dx, dgamma, dbeta = fn.group_norm_backward(np.ones((1, 4)), cache)
    >>> dbeta
    array([1., 1., 1., 1.])
    """
    return _backward("group_norm_backward", dy, cache, GroupNormCache, out)


def instance_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Normalise each channel of each sample: `group_norm` with a group for every channel.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of 2 dimensions or more and any strides; axis 0
        counts the samples.
    gamma, beta : array_like, optional
        Scale and shift, of shape (C,), C being ``x.shape[axis]``. Default: 1 and 0.
    axis, eps, out
        As for `group_norm`.

    Returns
    -------
    ndarray
        Of x's shape and dtype.

    Raises
    ------
    TypeError, ValueError
        As `group_norm`.

    See Also
    --------
    instance_norm_forward : the same, with what the backward pass needs.

    References
    ----------
    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> fn.instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]]), eps=0)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    function = "instance_norm"
    x, axis = _input(function, x, axis)
    return _normalise(function, x, axis, None, gamma, beta, eps, out, may_be=x)[0]


def instance_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, InstanceNormCache]:
    """Normalise each channel of each sample, and keep what backward needs.

    Parameters
    ----------
    x, gamma, beta, axis, eps
        As for `instance_norm`.
    out : ndarray, optional
        Where y goes: of x's shape and dtype, not overlapping an input.

    Returns
    -------
    y : ndarray
        Of x's shape and dtype.
    cache : InstanceNormCache
        What `instance_norm_backward` needs; its mean and rstd have shape (N, C).

    Raises
    ------
    TypeError, ValueError
        As `group_norm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> y, cache = fn.instance_norm_forward(np.array([[[1.0, 3.0], [10.0, 30.0]]]))
    >>> cache.mean
    array([[ 2., 20.]])
    """
    function = "instance_norm_forward"
    x, axis = _input(function, x, axis)
    y, fields = _normalise(function, x, axis, None, gamma, beta, eps, out)
    return y, InstanceNormCache(*fields)


def instance_norm_backward(
    dy: ArrayLike, cache: InstanceNormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients of `instance_norm_forward`: those of `group_norm_backward`.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y, of y's shape.
    cache : InstanceNormCache
        From `instance_norm_forward`. It may be used again.
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
        As `instance_norm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> y, cache = fn.instance_norm_forward(x, np.ones(2), np.zeros(2))
    >>> dx, dgamma, dbeta = fn.instance_norm_backward(np.ones((1, 2, 2)), cache)
    >>> dbeta
    array([2., 2.])
    """
    return _backward("instance_norm_backward", dy, cache, InstanceNormCache, out)
