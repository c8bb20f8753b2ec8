"""The specification of fastnorm, in plain NumPy.

Every operation is three functions: `op` for inference, `op_forward`, which also returns a cache,
and `op_backward(dy, cache)`, which returns the gradients. Layer, RMS, batch, group and instance
normalisation are one computation over different axes::

    mean = sum(x) / n                           over the axes of the statistics
    var  = sum((x - mean)^2) / n                two passes; biased
    rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) * rstd
    y    = gamma * xhat + beta

    dbeta  = sum(dy)                            over the axes that gamma and beta do not have
    dgamma = sum(dy * xhat)
    dxhat  = dy * gamma
    dx     = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))

In dx, the second term is what flows through the mean and the third what flows through the variance.
Weight normalisation and the affine layer follow with formulas of their own.

Results have the dtype of x and are computed in it; for float16 and bfloat16 in float32, rounded
once at the end. Given float64 (or longdouble) these functions are the oracle of the tests. In the
narrower types they round as plain NumPy does, and squares overflow where NumPy's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from ._typing import Array, ArrayLike, Axes, Group, MaybeArray

__all__ = [
    "affine",
    "affine_backward",
    "affine_forward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_staged",
    "batch_norm_forward",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "merge_moments",
    "moments",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "weight_norm",
    "weight_norm_backward",
    "weight_norm_forward",
]


# ---- Arguments and results -----------------------------------------------------------------------


def _floating(name: str, a: ArrayLike) -> Array:
    """a as an array, which must be of floating point: integers would round the result away."""
    a = np.asarray(a)
    if a.dtype.kind != "f" and a.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be a floating-point array, got {a.dtype}")
    return a


def _shaped(name: str, a: ArrayLike, *shapes: tuple[int, ...]) -> Array:
    """a as a floating-point array of one of the shapes."""
    a = _floating(name, a)
    if a.shape not in shapes:
        raise ValueError(f"{name} must have shape {' or '.join(map(str, shapes))}, got {a.shape}")
    return a


def _optional(name: str, a: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    return None if a is None else _shaped(name, a, shape)


def _axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """An int or a tuple of axes as an ascending tuple of non-negative ones."""
    axes = tuple(sorted(normalize_axis_tuple(axis, ndim)))
    if not axes:
        raise ValueError("axis must name at least one axis, got ()")
    return axes


def _channel_axis(axis: int, ndim: int) -> int:
    if ndim < 2:
        raise ValueError(f"x must have 2 dimensions or more, got {ndim}")
    return normalize_axis_index(axis, ndim)


def _working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def _write(result: Array, out: Array | None, *inputs: Array | None) -> Array:
    """The result, written into out if there is one, which must share no memory with the inputs."""
    if out is None:
        return result
    if out.shape != result.shape:
        raise ValueError(f"out must have shape {result.shape}, got {out.shape}")
    if out.dtype != result.dtype:
        raise TypeError(f"out must have dtype {result.dtype}, got {out.dtype}")
    if any(a is not None and np.shares_memory(out, a) for a in inputs):
        raise ValueError("out overlaps an input")
    out[...] = result
    return out


# ---- The core: standardise over a set of axes ----------------------------------------------------


class _View(NamedTuple):
    """How an operation sees x: all that tells one normalisation from another."""

    shape: tuple[int, ...]  # x's; for groups with the channel axis split in (groups, C / groups)
    over: tuple[int, ...]  # the axes of this shape that the statistics are taken over
    along: tuple[int, ...]  # the axes of this shape that gamma and beta have

    @property
    def num_values(self) -> int:
        """The number of values behind each statistic."""
        return prod(self.shape[a] for a in self.over)

    def of(self, a: Array, dtype: np.dtype[Any]) -> Array:
        """An array of x's size, in the shape of the view."""
        return a.astype(dtype, copy=False).reshape(self.shape)

    def statistic(self, s: Array) -> Array:
        """A statistic, made to broadcast."""
        return s.reshape([1 if a in self.over else n for a, n in enumerate(self.shape)])

    def parameter(self, p: Array, dtype: np.dtype[Any]) -> Array:
        """A parameter, made to broadcast."""
        shape = [n if a in self.along else 1 for a, n in enumerate(self.shape)]
        return p.astype(dtype, copy=False).reshape(shape)

    def mean(self, a: Array) -> Array:
        """The mean over the axes of the statistics, which are kept; that of no values is 0."""
        total: Array = a.sum(axis=self.over, keepdims=True)
        return total / max(self.num_values, 1)

    def gradient(self, terms: Array, p: Array | None) -> MaybeArray:
        """The sum of terms for each element of the parameter p, in its shape and dtype."""
        if p is None:
            return None
        others = tuple(a for a in range(len(self.shape)) if a not in self.along)
        return terms.sum(axis=others).astype(p.dtype).reshape(p.shape)


@dataclass(frozen=True, eq=False)
class NormCache:
    """What a normalisation's backward pass needs: references, and two small statistics.

    xhat is not kept: it is as large as x and follows from x, mean and rstd.
    """

    x: Array
    gamma: Array | None
    beta: Array | None  # for the dtype of its gradient only
    mean: MaybeArray  # None if x was not centred (RMS)
    rstd: Array
    view: _View
    frozen: bool = False  # mean and rstd were given: constants, not functions of x
    group: Group | None = None  # who shares the batch


@np.errstate(all="ignore")  # NaN and Inf go through as IEEE arithmetic has it, without warnings
def _moments(x: Array, view: _View, *, centre: bool = True) -> tuple[Array, Array]:
    """Mean and biased variance of x; the moments about zero if x is not to be centred."""
    x = view.of(x, _working_dtype(x.dtype))
    mean = view.mean(x) if centre else np.zeros((), x.dtype)
    return mean, view.mean(np.square(x - mean))


@np.errstate(all="ignore")
def _normalise(
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    view: _View,
) -> tuple[Array, Array]:
    """y in x's shape and dtype, and rstd. mean and var must broadcast with the view."""
    dtype = _working_dtype(x.dtype)
    rstd = 1 / np.sqrt(var + eps)
    y = (view.of(x, dtype) - mean) * rstd
    if gamma is not None:
        y = y * view.parameter(gamma, dtype)
    if beta is not None:
        y = y + view.parameter(beta, dtype)
    return y.reshape(x.shape).astype(x.dtype, copy=False), rstd


@np.errstate(all="ignore")
def _backward(
    dy: ArrayLike, cache: NormCache, out: Array | None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """dx, dgamma, dbeta of every normalisation: the formulas at the head of this file."""
    x, gamma, beta, view, dtype = cache.x, cache.gamma, cache.beta, cache.view, cache.rstd.dtype
    given = _shaped("dy", dy, x.shape)
    dy = view.of(given, dtype)
    rstd = view.statistic(cache.rstd)
    mean = 0 if cache.mean is None else view.statistic(cache.mean)

    xhat = (view.of(x, dtype) - mean) * rstd
    dxhat = dy if gamma is None else dy * view.parameter(gamma, dtype)
    dx = dxhat
    if cache.group is not None:
        mean_dxhat, mean_products = _group_means(cache.group, view, dxhat, dxhat * xhat)
        dx = dx - xhat * mean_products - mean_dxhat
    elif not cache.frozen:
        dx = dx - xhat * view.mean(dxhat * xhat)
        if cache.mean is not None:
            dx = dx - view.mean(dxhat)
    dx = (rstd * dx).reshape(x.shape).astype(x.dtype, copy=False)
    dgamma, dbeta = view.gradient(dy * xhat, gamma), view.gradient(dy, beta)
    return _write(dx, out, given, x, gamma), dgamma, dbeta


# ---- Groups: a batch that several members share --------------------------------------------------


def _group_moments(group: Group, x: Array, view: _View) -> tuple[int, Array, Array]:
    """Count, mean and biased variance of all members' x, for each channel."""
    count, mean, m2 = moments(x, *view.along)
    rows = np.asarray(group.allgather(np.concatenate(([count], mean, m2)).astype(np.float64)))
    c = mean.size
    count, mean, m2 = merge_moments(*((int(r[0]), r[1 : 1 + c], r[1 + c :]) for r in rows))
    mean, var = (a.astype(_working_dtype(x.dtype)) for a in (mean, m2 / max(count, 1)))
    return count, view.statistic(mean), view.statistic(var)


def _group_means(group: Group, view: _View, *terms: Array) -> list[Array]:
    """The mean of each term over all members, for each channel."""
    sums = [t.sum(axis=view.over, dtype=np.float64) for t in terms]
    rows = np.asarray(group.allgather(np.concatenate(([view.num_values], *sums))))
    count, *totals = np.split(sum(rows), [1 + i * sums[0].size for i in range(len(terms))])
    return [view.statistic(t / max(count.item(), 1)) for t in totals]


# ---- Layer normalisation -------------------------------------------------------------------------


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Layer normalisation: `layer_norm_forward` without the cache. out may be x."""
    y, cache = layer_norm_forward(x, gamma, beta, axis=axis, eps=eps)
    return _write(y, out, cache.gamma, cache.beta)


def layer_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    """Normalise over the given axes: ``y = gamma * (x - mean) / sqrt(var + eps) + beta``.

    Parameters
    ----------
    x : array of any shape
    gamma, beta : arrays of x's shape at `axis` (in ascending order), optional
    axis : int or tuple of ints
    eps : float
    out : array like x, optional
        Receives y.

    Returns
    -------
    y : array like x
    cache : NormCache
        `mean` and `rstd` have x's shape with the normalised axes of length 1.

    References
    ----------
    Ba, Kiros, Hinton: Layer Normalization, 2016, arXiv:1607.06450.
    """
    x = _floating("x", x)
    axes = _axes(axis, x.ndim)
    view = _View(x.shape, over=axes, along=axes)
    shape = tuple(x.shape[a] for a in axes)
    gamma, beta = _optional("gamma", gamma, shape), _optional("beta", beta, shape)
    mean, var = _moments(x, view)
    y, rstd = _normalise(x, mean, var, gamma, beta, eps, view)
    return _write(y, out, x, gamma, beta), NormCache(x, gamma, beta, mean, rstd, view)


def layer_norm_backward(
    dy: ArrayLike, cache: NormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients dx, dgamma, dbeta of `layer_norm_forward`, from dy in x's shape.

    ::

        dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)),  dxhat = dy * gamma
        dgamma = sum(dy * xhat),  dbeta = sum(dy)                       over all other axes
    """
    return _backward(dy, cache, out)


# ---- RMS normalisation ---------------------------------------------------------------------------


def rms_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-6,
    out: Array | None = None,
) -> Array:
    """RMS normalisation: `rms_norm_forward` without the cache. out may be x."""
    y, cache = rms_norm_forward(x, gamma, axis=axis, eps=eps)
    return _write(y, out, cache.gamma)


def rms_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-6,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    """Scale by the root mean square over the given axes: ``y = gamma * x / sqrt(mean(x^2) + eps)``.

    The arguments are those of `layer_norm_forward`. `cache.rstd`, the reciprocal of the root, has
    x's shape with the normalised axes of length 1; `cache.mean` is None.

    References
    ----------
    Zhang, Sennrich: Root Mean Square Layer Normalization, 2019, arXiv:1910.07467.
    """
    x = _floating("x", x)
    axes = _axes(axis, x.ndim)
    view = _View(x.shape, over=axes, along=axes)
    gamma = _optional("gamma", gamma, tuple(x.shape[a] for a in axes))
    zero, mean_square = _moments(x, view, centre=False)
    y, rstd = _normalise(x, zero, mean_square, gamma, None, eps, view)
    return _write(y, out, x, gamma), NormCache(x, gamma, None, None, rstd, view)


def rms_norm_backward(
    dy: ArrayLike, cache: NormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray]:
    """Gradients dx, dgamma of `rms_norm_forward`: those of layer norm without the mean's term.

    ::

        dx = rstd * (dxhat - xhat * mean(dxhat * xhat)),  dxhat = dy * gamma,  xhat = x * rstd
        dgamma = sum(dy * xhat)                           over all other axes
    """
    dx, dgamma, _ = _backward(dy, cache, out)
    return dx, dgamma


# ---- Group and instance normalisation ------------------------------------------------------------


def _group_forward(
    x: Array,
    num_groups: int,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    axis: int,
    eps: float,
    out: Array | None,
) -> tuple[Array, NormCache]:
    """Split the channel axis in (groups, C / groups); a statistic for each sample and group."""
    channels = x.shape[axis]
    split = (num_groups, channels // max(num_groups, 1))
    shape = (*x.shape[:axis], *split, *x.shape[axis + 1 :])
    over = tuple(a for a in range(len(shape)) if a not in (0, axis))
    view = _View(shape, over, along=(axis, axis + 1))
    gamma, beta = _optional("gamma", gamma, (channels,)), _optional("beta", beta, (channels,))
    mean, var = _moments(x, view)
    y, rstd = _normalise(x, mean, var, gamma, beta, eps, view)
    mean, rstd = (s.reshape(x.shape[0], num_groups) for s in (mean, rstd))
    return _write(y, out, x, gamma, beta), NormCache(x, gamma, beta, mean, rstd, view)


def _group_arguments(x: ArrayLike, axis: int) -> tuple[Array, int, int]:
    """x, its channel axis and the number of channels."""
    x = _floating("x", x)
    axis = _channel_axis(axis, x.ndim)
    if axis == 0:
        raise ValueError("axis 0 holds the samples and cannot be the channel axis")
    return x, axis, x.shape[axis]


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
    """Group normalisation: `group_norm_forward` without the cache. out may be x."""
    y, cache = group_norm_forward(x, num_groups, gamma, beta, axis=axis, eps=eps)
    return _write(y, out, cache.gamma, cache.beta)


def group_norm_forward(
    x: ArrayLike,
    num_groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    """Normalise each sample's groups of adjacent channels: ``y = gamma * xhat + beta``.

    Parameters
    ----------
    x : array (N, ...) with C channels at `axis`
    num_groups : int
        A divisor of C.
    gamma, beta : arrays (C,), optional
    axis : int
        The channel axis; not 0, which holds the samples.
    eps : float
    out : array like x, optional
        Receives y.

    Returns
    -------
    y : array like x
    cache : NormCache
        `mean` and `rstd` have shape (N, num_groups).

    References
    ----------
    Wu, He: Group Normalization, 2018, arXiv:1803.08494.
    """
    x, axis, channels = _group_arguments(x, axis)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups must divide the {channels} channels, got {num_groups}")
    return _group_forward(x, num_groups, gamma, beta, axis, eps, out)


def group_norm_backward(
    dy: ArrayLike, cache: NormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients dx, dgamma, dbeta of `group_norm_forward`; dx as in `layer_norm_backward`."""
    return _backward(dy, cache, out)


def instance_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """Instance normalisation: `instance_norm_forward` without the cache. out may be x."""
    y, cache = instance_norm_forward(x, gamma, beta, axis=axis, eps=eps)
    return _write(y, out, cache.gamma, cache.beta)


def instance_norm_forward(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, NormCache]:
    """Normalise each channel of each sample: group normalisation with a group per channel.

    References
    ----------
    Ulyanov, Vedaldi, Lempitsky: Instance Normalization, 2016, arXiv:1607.08022.
    """
    x, axis, channels = _group_arguments(x, axis)
    return _group_forward(x, channels, gamma, beta, axis, eps, out)


def instance_norm_backward(
    dy: ArrayLike, cache: NormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients dx, dgamma, dbeta of `instance_norm_forward`; dx as in `layer_norm_backward`."""
    return _backward(dy, cache, out)


# ---- Batch normalisation -------------------------------------------------------------------------


def _batch_view(x: Array, axis: int) -> tuple[_View, tuple[int, ...]]:
    """x's view, and the shape (C,) of the parameters."""
    axis = _channel_axis(axis, x.ndim)
    over = tuple(a for a in range(x.ndim) if a != axis)
    return _View(x.shape, over, along=(axis,)), (x.shape[axis],)


def _check_running(**statistics: object) -> None:
    """Running statistics to be updated in place: arrays that can be."""
    for name, s in statistics.items():
        if s is None:
            continue
        if not isinstance(s, np.ndarray) or s.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} must be a float32 or float64 array")
        if not s.flags.writeable:
            raise ValueError(f"{name} must be writeable")


def _update_running(running: Array | None, batch: Array, decay: float) -> None:
    if running is not None:
        running[...] = decay * running + (1 - decay) * batch.reshape(running.shape)


def _given_statistics(
    mean: Array, var: Array, view: _View, dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """Copies, since the running statistics change in place while a cache holds the mean."""
    mean, var = mean.astype(dtype, copy=True), var.astype(dtype, copy=True)
    return view.statistic(mean), view.statistic(var)


@np.errstate(all="ignore")
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
    """Batch normalisation with given statistics: ``gamma * (x - mean) / sqrt(var + eps) + beta``.

    mean, var, gamma and beta have shape (C,), C being the length of `axis`. out may be x.
    """
    x = _floating("x", x)
    view, shape = _batch_view(x, axis)
    mean, var = _shaped("mean", mean, shape), _shaped("var", var, shape)
    gamma, beta = _optional("gamma", gamma, shape), _optional("beta", beta, shape)
    stats = _given_statistics(mean, var, view, _working_dtype(x.dtype))
    y, _ = _normalise(x, *stats, gamma, beta, eps, view)
    return _write(y, out, mean, var, gamma, beta)


@np.errstate(all="ignore")
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
) -> tuple[Array, NormCache]:
    """Normalise each channel over the batch and all positions: ``y = gamma * xhat + beta``.

    While training, the running statistics that are given are updated in place::

        running_mean = decay * running_mean + (1 - decay) * mean
        running_var  = decay * running_var  + (1 - decay) * sum((x - mean)^2) / (n - ddof)

    The variance that normalises is the biased one whatever `ddof`. With ``training=False`` the
    running statistics normalise, and the backward pass takes them as constants.

    Parameters
    ----------
    x : array of 2 dimensions or more with C channels at `axis`
    gamma, beta : arrays (C,), optional
    running_mean, running_var : float32 or float64 arrays (C,), optional
    decay : float
        The weight of the past; PyTorch's momentum is ``1 - decay``.
    ddof : int
        1 as PyTorch has it, 0 as Keras, ONNX and cs231n.
    training : bool
    group : Group, optional
        Who shares the batch: the statistics, and those of the backward pass, are those of all
        members' x together. Parameters' gradients are not: they are the sums over this x.
    axis : int
        The channel axis.
    eps : float
    out : array like x, optional
        Receives y.

    Returns
    -------
    y : array like x
    cache : NormCache
        `mean` and `rstd` have shape (C,).

    Raises
    ------
    ValueError
        If `running_var` cannot be updated because a channel has no more than `ddof` values (none
        at all leave the statistics as they are), or if ``training=False`` without both of them.

    References
    ----------
    Ioffe, Szegedy: Batch Normalization, 2015, arXiv:1502.03167.
    """
    if training:
        _check_running(running_mean=running_mean, running_var=running_var)
    x = _floating("x", x)
    view, shape = _batch_view(x, axis)
    gamma, beta = _optional("gamma", gamma, shape), _optional("beta", beta, shape)
    running_mean = _optional("running_mean", running_mean, shape)
    running_var = _optional("running_var", running_var, shape)
    if training and group is not None:
        n, mean, var = _group_moments(group, x, view)
    elif training:
        n = view.num_values if x.size else 0
        mean, var = _moments(x, view)
    elif running_mean is None or running_var is None:
        raise ValueError("training=False needs both running_mean and running_var")
    else:
        n, group = 0, None  # nothing to update, nothing to exchange
        mean, var = _given_statistics(running_mean, running_var, view, _working_dtype(x.dtype))
    if n and running_var is not None and n <= ddof:
        raise ValueError(f"running_var with ddof={ddof} needs more than {n} values per channel")
    y, rstd = _normalise(x, mean, var, gamma, beta, eps, view)
    y = _write(y, out, x, gamma, beta, running_mean, running_var)
    if n:
        _update_running(running_mean, mean, decay)
        _update_running(running_var, var * (n / max(n - ddof, 1)), decay)
    mean, rstd = mean.reshape(-1), rstd.reshape(-1)  # (C,)
    return y, NormCache(x, gamma, beta, mean, rstd, view, frozen=not training, group=group)


def batch_norm_backward(
    dy: ArrayLike, cache: NormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """Gradients dx, dgamma, dbeta of `batch_norm_forward`, from dy in x's shape.

    ::

        dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)),  dxhat = dy * gamma
        dx = rstd * dxhat                                               if training was False
        dgamma = sum(dy * xhat),  dbeta = sum(dy)                       over all other axes

    `batch_norm_backward_staged` derives the same dx step by step.
    """
    return _backward(dy, cache, out)


@np.errstate(all="ignore")
def batch_norm_backward_staged(
    dy: ArrayLike, cache: NormCache, *, out: Array | None = None
) -> tuple[Array, MaybeArray, MaybeArray]:
    """The gradients of `batch_norm_backward`, by walking back through the graph node by node.

    The forward pass::

        (1) mean = sum(x) / n         (4) var = sum(sq) / n           (7) xhat   = xc * rstd
        (2) xc   = x - mean           (5) std = sqrt(var + eps)       (8) scaled = gamma * xhat
        (3) sq   = xc^2               (6) rstd = 1 / std              (9) y      = scaled + beta

    Backward, each node turns the gradient of its result into those of its inputs. x feeds nodes 1
    and 2, xc feeds 3 and 7: where paths meet, the gradients add up. Substituting the steps into one
    another and cancelling gives the closed form of `batch_norm_backward`.
    """
    x, gamma, beta, view = cache.x, cache.gamma, cache.beta, cache.view
    n, dtype = max(view.num_values, 1), cache.rstd.dtype
    given = _shaped("dy", dy, x.shape)
    dy = view.of(given, dtype)
    mean, rstd = view.statistic(cache.mean), view.statistic(cache.rstd)
    xc = view.of(x, dtype) - mean
    xhat = xc * rstd

    # (9) y = scaled + beta
    dbeta = view.gradient(dy, beta)
    dscaled = dy
    # (8) scaled = gamma * xhat
    dgamma = view.gradient(dscaled * xhat, gamma)
    dxhat = dscaled if gamma is None else dscaled * view.parameter(gamma, dtype)
    # (7) xhat = xc * rstd
    dxc_7 = dxhat * rstd
    if cache.frozen:  # mean and rstd are constants: nodes 1 and 3 to 6 are not there
        dx = dxc_7
    else:
        drstd = (dxhat * xc).sum(axis=view.over, keepdims=True)
        # (6) rstd = 1 / std
        dstd = -drstd * rstd**2
        # (5) std = sqrt(var + eps)
        dvar = dstd * rstd / 2
        # (4) var = sum(sq) / n
        dsq = np.broadcast_to(dvar / n, view.shape)
        # (3) sq = xc^2
        dxc_3 = 2 * xc * dsq
        # (2) xc = x - mean
        dxc = dxc_7 + dxc_3
        dx_2 = dxc
        dmean = -dxc.sum(axis=view.over, keepdims=True)
        # (1) mean = sum(x) / n
        dx_1 = np.broadcast_to(dmean / n, view.shape)
        dx = dx_1 + dx_2
    return _write(dx.astype(x.dtype, copy=False), out, given, x, gamma), dgamma, dbeta


# ---- Moments: statistics of data in pieces -------------------------------------------------------


@np.errstate(all="ignore")
def moments(x: ArrayLike, axis: int = 1) -> tuple[int, Array, Array]:
    """Count, mean and sum of squared deviations of each channel: `fastnorm.Moments.of`.

    In float64, or longdouble for that. Those of no values are 0.
    """
    x = _floating("x", x)
    view, shape = _batch_view(x, axis)
    mean, var = _moments(x.astype(np.promote_types(x.dtype, np.float64)), view)
    return view.num_values, mean.reshape(shape), (var * view.num_values).reshape(shape)


@np.errstate(all="ignore")
def merge_moments(*parts: tuple[int, Array, Array]) -> tuple[int, Array, Array]:
    """The moments of all parts together, by Chan's formula, one part after another::

        delta = mean_b - mean_a
        mean  = mean_a + delta * n_b / (n_a + n_b)
        m2    = m2_a + m2_b + delta^2 * n_a * n_b / (n_a + n_b)

    References
    ----------
    Chan, Golub and LeVeque, The American Statistician 37, 1983.
    """
    count, mean, m2 = parts[0]
    for more, other_mean, other_m2 in parts[1:]:
        total = max(count + more, 1)
        delta = other_mean - mean
        mean = mean + delta * (more / total)
        m2 = m2 + other_m2 + delta**2 * (count * more / total)
        count += more
    return count, mean, m2


# ---- Weight normalisation ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WeightNormCache:
    """What weight norm's backward pass needs; w is not kept, it follows from these."""

    v: Array
    g: Array
    rnorm: Array  # 1 / norm of each slice, 0 for a slice of zeros; v's shape with ones
    over: tuple[int, ...]  # the axes of the norm


def weight_norm(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = 0, out: Array | None = None
) -> Array:
    """Weight normalisation: `weight_norm_forward` without the cache. out may be v."""
    w, cache = weight_norm_forward(v, g, axis=axis)
    return _write(w, out, cache.g)


@np.errstate(all="ignore")
def weight_norm_forward(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = 0, out: Array | None = None
) -> tuple[Array, WeightNormCache]:
    """A direction v with a length g of its own: ``w = g * v / norm(v)``.

    Parameters
    ----------
    v : array of any shape
    g : array
        Of shape (v.shape[axis],), or v's shape with ones at all axes but `axis`; () for axis=None.
    axis : int or None
        The norm is taken over all other axes; None: over all.
    out : array like v, optional
        Receives w.

    Returns
    -------
    w : array like v
        Zero where a slice of v is zero and has no direction.
    cache : WeightNormCache

    References
    ----------
    Salimans, Kingma: Weight Normalization, 2016, arXiv:1602.07868.
    """
    v = _floating("v", v)
    kept = () if axis is None else (normalize_axis_index(axis, v.ndim),)
    over = tuple(a for a in range(v.ndim) if a not in kept)
    lengths = tuple(1 if a in over else n for a, n in enumerate(v.shape))
    g = _shaped("g", g, tuple(v.shape[a] for a in kept), lengths)

    u = v.astype(_working_dtype(v.dtype), copy=False)
    norm = np.sqrt(np.square(u).sum(axis=over, keepdims=True))
    rnorm = np.divide(1, norm, out=np.zeros_like(norm), where=norm != 0)
    w = g.astype(u.dtype, copy=False).reshape(lengths) * (u * rnorm)
    return _write(w.astype(v.dtype, copy=False), out, v, g), WeightNormCache(v, g, rnorm, over)


@np.errstate(all="ignore")
def weight_norm_backward(
    dy: ArrayLike, cache: WeightNormCache, *, out: Array | None = None
) -> tuple[Array, Array]:
    """Gradients dv, dg of `weight_norm_forward`, from dy, the gradient of w, in v's shape.

    ::

        dg = sum(dy * vhat),  vhat = v / norm(v)
        dv = g / norm(v) * (dy - vhat * sum(dy * vhat))     the part along v changes no direction
    """
    v, g, rnorm, over = cache.v, cache.g, cache.rnorm, cache.over
    given = _shaped("dy", dy, v.shape)
    dw = given.astype(rnorm.dtype)
    vhat = v.astype(rnorm.dtype) * rnorm
    along = (dw * vhat).sum(axis=over, keepdims=True)
    dv = g.astype(rnorm.dtype).reshape(rnorm.shape) * rnorm * (dw - vhat * along)
    dg = along.astype(g.dtype).reshape(g.shape)
    return _write(dv.astype(v.dtype, copy=False), out, given, v, g), dg


# ---- The affine layer ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AffineCache:
    """What the affine layer's backward pass needs; bias for the dtype of its gradient only."""

    x: Array
    weight: Array
    bias: Array | None


def affine(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, out: Array | None = None
) -> Array:
    """The affine layer: `affine_forward` without the cache. out may be x if the shapes agree."""
    y, cache = affine_forward(x, weight, bias)
    return _write(y, out, cache.weight, cache.bias)


@np.errstate(all="ignore")
def affine_forward(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, *, out: Array | None = None
) -> tuple[Array, AffineCache]:
    """``y = x @ weight + bias`` over the last axis of x.

    Parameters
    ----------
    x : array (..., D)
    weight : array (D, M)
    bias : array (M,), optional
    out : array (..., M), optional
        Receives y.

    Returns
    -------
    y : array (..., M) of x's dtype
    cache : AffineCache
    """
    x, weight = _floating("x", x), _floating("weight", weight)
    if x.ndim < 1 or weight.ndim != 2 or weight.shape[0] != x.shape[-1]:
        raise ValueError(f"weight must have shape (in, out) for x {x.shape}, got {weight.shape}")
    bias = _optional("bias", bias, weight.shape[1:])
    dtype = _working_dtype(x.dtype)
    y = x.astype(dtype, copy=False) @ weight.astype(dtype, copy=False)
    if bias is not None:
        y = y + bias.astype(dtype, copy=False)
    y = _write(y.astype(x.dtype, copy=False), out, x, weight, bias)
    return y, AffineCache(x, weight, bias)


@np.errstate(all="ignore")
def affine_backward(
    dy: ArrayLike, cache: AffineCache, *, out: Array | None = None
) -> tuple[Array, Array, MaybeArray]:
    """Gradients dx, dweight, dbias of `affine_forward`, from dy (..., M).

    ::

        dx = dy @ weight.T,  dweight = x.T @ dy,  dbias = sum(dy)     x and dy as (rows, columns)
    """
    x, weight, bias = cache.x, cache.weight, cache.bias
    given = _shaped("dy", dy, (*x.shape[:-1], weight.shape[1]))
    dtype = _working_dtype(x.dtype)
    dy = given.astype(dtype, copy=False)
    rows = tuple(range(x.ndim - 1))
    dx = dy @ weight.astype(dtype, copy=False).T
    dweight = np.tensordot(x.astype(dtype, copy=False), dy, axes=(rows, rows))  # (D, M)
    dbias = None if bias is None else dy.sum(axis=rows).astype(bias.dtype)
    dx = _write(dx.astype(x.dtype, copy=False), out, given, x, weight)
    return dx, dweight.astype(weight.dtype), dbias
