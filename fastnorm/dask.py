"""The normalisations of dask arrays: lazy, chunk by chunk, equal to those of the array in memory.

An array may be chunked in any way, and the result has its chunks and its dtype. Where the axes that
a norm sums over lie in one chunk, each chunk is normalised by itself, with the bits that fastnorm
gives it in memory. Else the chunks' moments are merged (`fastnorm.Moments`) along a tree that the
graph fixes, and a second pass over the chunks normalises: the same bits with every scheduler.

The kernels in a task run on one thread, because the scheduler has the others; ``num_threads`` is
for clusters whose workers have one thread and many cores.

dask is an optional extra: ``pip install 'fastnorm-kernels[dask]'``. It is imported at the first
call.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from . import _arrays
from ._threads import num_threads as _threads
from ._typing import Array, Axes
from .batch_norm import batch_norm as _batch_norm
from .group_norm import group_norm as _group_norm
from .layer_norm import layer_norm as _layer_norm
from .moments import Moments, merged
from .rms_norm import rms_norm as _rms_norm

__all__ = ["batch_norm", "batch_norm_forward", "group_norm", "layer_norm", "moments", "rms_norm"]

# Of one channel; arrays of it are what chunks are reduced to.
_STATISTICS = np.dtype([(name, np.float64) for name in ("count", "mean", "low", "m2")])


def _lazy(function: str, x: Any) -> Any:
    """dask.array, once x is known to be one of its arrays, with chunks of known sizes."""
    try:
        import dask.array
    except ImportError:
        raise ImportError(
            f"{function} needs dask: pip install 'fastnorm-kernels[dask]'", name="dask"
        ) from None
    if not isinstance(x, dask.array.Array):
        raise TypeError(f"{function}: x must be a dask array, got {type(x).__name__}")
    if any(np.isnan(length) for length in x.shape):
        raise ValueError(
            f"{function}: x must have chunks of known sizes, got shape {x.shape}; "
            f"x.compute_chunk_sizes() finds them"
        )
    return dask.array


def _beside(x: Any, parameter: Any, axes: tuple[int, ...]) -> Any:
    """A parameter that belongs to these axes of x, in the chunks that belong to those of x."""
    import dask.array

    if parameter is None:
        return None
    shape = tuple(length if a in axes else 1 for a, length in enumerate(x.shape))
    chunks = tuple(lengths if a in axes else (1,) for a, lengths in enumerate(x.chunks))
    return dask.array.asarray(parameter).reshape(shape).rechunk(chunks)


def _lengths(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x.shape[a] for a in axes)


def _at(parameter: Array | None, axes: tuple[int, ...]) -> Array | None:
    """A chunk of `_beside` in the shape that the functions in memory want."""
    return None if parameter is None else parameter.reshape(_lengths(parameter, axes))


def _is_split(x: Any, axes: tuple[int, ...]) -> bool:
    return any(x.numblocks[a] > 1 for a in axes)


def _others(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


# From chunks to statistics


def _order(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Of all axes, those that are not summed over side by side."""
    kept = _others(ndim, axes)
    lie_together = not kept or kept[-1] - kept[0] == len(kept) - 1
    return tuple(range(ndim)) if lie_together else kept + axes


def _as_channels(x: Array, axes: tuple[int, ...]) -> Array:
    """(N, C, S) of a chunk, whose axes but these are the channels; a view where these lie together
    in a contiguous chunk."""
    order = _order(x.ndim, axes)
    kept = [i for i, a in enumerate(order) if a not in axes] or [0]
    stop = kept[-1] + 1 if len(axes) < x.ndim else 0
    shape = _lengths(x, order)
    cuts = shape[: kept[0]], shape[kept[0] : stop], shape[stop:]
    return x.transpose(order).reshape([prod(part) for part in cuts])


def _from_channels(y: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """What `_as_channels` has made an (N, C, S) array of."""
    order = _order(len(shape), axes)
    return y.reshape([shape[a] for a in order]).transpose(np.argsort(order))


def _state(statistics: Array) -> Array:
    """As `Moments.pack` has it."""
    one = statistics.ravel()
    count = one["count"][:1] if one.size else np.zeros(1)
    return np.concatenate([count, one["mean"], one["low"], one["m2"]])


def _with_shape(state: Array, shape: tuple[int, ...]) -> Array:
    statistics = np.empty(shape, _STATISTICS)
    statistics["count"] = state[0]
    for name, values in zip(("mean", "low", "m2"), state[1:].reshape(3, -1), strict=True):
        statistics[name] = values.reshape(shape)
    return statistics


def _chunk_statistics(x: Array, axis: tuple[int, ...], keepdims: bool, num_threads: int) -> Array:
    shape = tuple(1 if a in axis else length for a, length in enumerate(x.shape))
    with _threads(num_threads):
        return _with_shape(Moments.of(_as_channels(x, axis)).pack(), shape)


def _leaves(parts: Any) -> Iterator[Array]:
    """Of nested lists, in their order."""
    if isinstance(parts, list):
        for part in parts:
            yield from _leaves(part)
    else:
        yield parts


def _merged_statistics(parts: Any, axis: tuple[int, ...], keepdims: bool) -> Array:
    leaves = list(_leaves(parts))
    return _with_shape(merged(np.stack([_state(part) for part in leaves])), leaves[0].shape)


def _statistics(x: Any, axes: tuple[int, ...], num_threads: int) -> Any:
    """Over these axes, which have length 1 in the result, a lazy array of `_STATISTICS`."""
    import functools

    import dask.array

    return dask.array.reduction(
        x,
        functools.partial(_chunk_statistics, num_threads=num_threads),
        _merged_statistics,
        combine=_merged_statistics,
        axis=axes,
        keepdims=True,
        dtype=_STATISTICS,
        concatenate=False,
        meta=np.empty((0,) * x.ndim, _STATISTICS),
    )


def _gathered_later(statistics: Any) -> Any:
    import dask

    return dask.delayed(_gathered)(statistics)


def _gathered(statistics: Array) -> Moments:
    return Moments.unpack(_state(statistics))


# From statistics to results


def _of_channels(parameter: Array | None, x: Array, axes: tuple[int, ...]) -> Array | None:
    """A chunk of a parameter, if it has one value for each channel of a chunk of x."""
    channels = tuple(1 if a in axes else length for a, length in enumerate(x.shape))
    return None if parameter is None or parameter.shape != channels else parameter.ravel()


def _normalised_chunk(
    x: Array,
    statistics: Array,
    gamma: Array | None,
    beta: Array | None,
    axes: tuple[int, ...],
    eps: float,
    centred: bool,
    num_threads: int,
) -> Array:
    # 16 bits are rounded once, at the end.
    dtype = x.dtype if x.dtype in (np.float32, np.float64) else np.dtype(np.float32)
    mean = statistics["mean"].ravel()
    var = (statistics["m2"] / np.maximum(statistics["count"], 1)).ravel()
    if not centred:
        mean, var = np.zeros_like(mean), var + mean * mean
    scale, shift = _of_channels(gamma, x, axes), _of_channels(beta, x, axes)
    if beta is not None and shift is None:
        scale = None  # a shift for each element comes after gamma
    view = _as_channels(x, axes).astype(dtype, copy=False)
    with _threads(num_threads):
        y = _from_channels(_batch_norm(view, mean, var, scale, shift, eps=eps), x.shape, axes)
    if gamma is not None and scale is None:
        y *= gamma
    if beta is not None and shift is None:
        y += beta
    return y.astype(x.dtype, copy=False)


def _normalised(
    x: Any,
    statistics: Any,
    gamma: Any,
    beta: Any,
    axes: tuple[int, ...],
    eps: float,
    centred: bool,
    num_threads: int,
) -> Any:
    import dask.array

    return dask.array.map_blocks(
        _normalised_chunk, x, statistics, gamma, beta, axes=axes, eps=eps, centred=centred,
        num_threads=num_threads, dtype=x.dtype, meta=x._meta,
    )  # fmt: skip


def _whole_rows_chunk(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    axes: tuple[int, ...],
    eps: float,
    centred: bool,
    num_threads: int,
) -> Array:
    """A chunk that has whole rows: the function in memory."""
    gamma, beta = _at(gamma, axes), _at(beta, axes)
    with _threads(num_threads):
        if centred:
            return _layer_norm(x, gamma, beta, axis=axes, eps=eps)
        return _rms_norm(x, gamma, axis=axes, eps=eps)


def _over_rows(
    x: Any, gamma: Any, beta: Any, axes: tuple[int, ...], eps: float, centred: bool, threads: int
) -> Any:
    import dask.array

    gamma, beta = _beside(x, gamma, axes), _beside(x, beta, axes)
    if _is_split(x, axes):
        return _normalised(
            x, _statistics(x, axes, threads), gamma, beta, axes, eps, centred, threads
        )
    return dask.array.map_blocks(
        _whole_rows_chunk, x, gamma, beta, axes=axes, eps=eps, centred=centred,
        num_threads=threads, dtype=x.dtype, meta=x._meta,
    )  # fmt: skip


def _like(parameter: Any) -> Any:
    """A parameter's shape and dtype, for a check; what is not lazy is checked itself."""
    if hasattr(parameter, "dask"):
        return np.broadcast_to(np.zeros((), parameter.dtype), parameter.shape)
    return parameter


def _row_axes(function: str, x: Any, gamma: Any, beta: Any, axis: Axes) -> tuple[int, ...]:
    """Checked as the functions in memory do."""
    axes = _arrays.many_axes(function, axis, x.ndim)
    array = np.broadcast_to(np.zeros((), x.dtype), x.shape)
    for name, parameter in (("gamma", gamma), ("beta", beta)):
        _arrays.parameter(function, name, _like(parameter), _arrays.lengths(array, axes), array)
    return axes


# What users call


def moments(x: Any, axis: int = 1, *, num_threads: int = 1) -> Any:
    """The moments of each channel of a dask array, over all its other axes.

    Parameters
    ----------
    x : dask.array.Array
        float16, bfloat16, float32 or float64, of 2 dimensions or more, chunked in any way.
    axis : int, optional
        The channel axis.
    num_threads : int, optional
        Of the kernels in a task.

    Returns
    -------
    dask.delayed.Delayed
        Of a `fastnorm.Moments`.

    Raises
    ------
    ImportError
        Without dask.
    TypeError, ValueError
        As `Moments.of`, and for what is not a dask array or has chunks of unknown sizes.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastnorm as fn
    >>> x = da.arange(12.0, chunks=5).reshape(6, 2)
    >>> fn.dask.moments(x).compute()
    Moments(count=6, mean=[5. 6.], std=[3.41565026 3.41565026])
    """
    function = "dask.moments"
    _lazy(function, x)
    Moments.of(np.empty((0, 1), x.dtype))
    if x.ndim < 2:
        raise ValueError(f"{function}: x must have at least 2 dimensions, got shape {x.shape}")
    axes = _others(x.ndim, (_arrays.one_axis(function, axis, x.ndim),))
    return _gathered_later(_statistics(x, axes, num_threads))


def batch_norm(
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    num_threads: int = 1,
) -> Any:
    """Normalise each channel of a dask array with given statistics: `fastnorm.batch_norm`.

    Parameters
    ----------
    x : dask.array.Array
        Chunked in any way.
    mean, var, gamma, beta : array_like or dask.array.Array
        Of shape (C,); gamma and beta may be None.
    axis : int, optional
        The channel axis.
    eps : float, optional
        Added to the variance.
    num_threads : int, optional
        Of the kernels in a task.

    Returns
    -------
    dask.array.Array
        With the dtype and the chunks of x, and the bits that `fastnorm.batch_norm` gives.

    Raises
    ------
    ImportError
        Without dask.
    TypeError, ValueError
        As `fastnorm.batch_norm`, when the graph is made.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastnorm as fn
    >>> x = da.ones((6, 2), chunks=2)
    >>> fn.dask.batch_norm(x, [1.0, 0.0], [1.0, 1.0], eps=0).compute()[0]
    array([0., 1.])
    """
    function = "dask.batch_norm"
    array = _lazy(function, x)
    channel = _arrays.one_axis(function, axis, x.ndim)
    shape = tuple(length if a == channel else 0 for a, length in enumerate(x.shape))
    given = [mean, var, gamma, beta]
    _batch_norm(np.empty(shape, x.dtype), *map(_like, given), axis=channel, eps=eps)
    lazy = [_beside(x, parameter, (channel,)) for parameter in given]
    return array.map_blocks(
        _batch_norm_chunk, x, *lazy, axis=channel, eps=eps, num_threads=num_threads,
        dtype=x.dtype, meta=x._meta,
    )  # fmt: skip


def _batch_norm_chunk(
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int,
    eps: float,
    num_threads: int,
) -> Array:
    parameters = [_at(p, (axis,)) for p in (mean, var, gamma, beta)]
    with _threads(num_threads):
        return _batch_norm(x, *parameters, axis=axis, eps=eps)  # type: ignore[arg-type]


def batch_norm_forward(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    num_threads: int = 1,
) -> tuple[Any, Any]:
    """Normalise each channel of a dask array with its own mean and variance.

    Two passes over x: its chunks' moments, which are merged, and the normalisation. What is kept
    for a training step in memory has no place in a lazy graph: there is no cache and no running
    statistics; those of the batch come back as moments.

    Parameters
    ----------
    x, gamma, beta, axis, eps, num_threads
        As in `batch_norm`.

    Returns
    -------
    y : dask.array.Array
        With the dtype and the chunks of x.
    moments : dask.delayed.Delayed
        Of the `fastnorm.Moments` of x. ``dask.compute(y, moments)`` reads x for both at once.

    Raises
    ------
    ImportError
        Without dask.
    TypeError, ValueError
        As `fastnorm.batch_norm_forward`, when the graph is made.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import fastnorm as fn
    >>> x = da.arange(12.0, chunks=5).reshape(6, 2)
    >>> y, moments = dask.compute(*fn.dask.batch_norm_forward(x, eps=0))
    >>> y.std(0)
    array([1., 1.])
    >>> running_mean = 0.9 * 0 + 0.1 * moments.mean
    """
    function = "dask.batch_norm_forward"
    _lazy(function, x)
    channel = _arrays.one_axis(function, axis, x.ndim)
    shape = tuple(length if a == channel else 0 for a, length in enumerate(x.shape))
    some = np.ones(x.shape[channel])
    _batch_norm(
        np.empty(shape, x.dtype), some, some, _like(gamma), _like(beta), axis=channel, eps=eps
    )
    gamma, beta = _beside(x, gamma, (channel,)), _beside(x, beta, (channel,))
    axes = _others(x.ndim, (channel,))
    statistics = _statistics(x, axes, num_threads)
    y = _normalised(x, statistics, gamma, beta, axes, eps, True, num_threads)
    return y, _gathered_later(statistics)


def layer_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: Axes = -1,
    eps: float = 1e-5,
    num_threads: int = 1,
) -> Any:
    """Normalise a dask array over some axes: `fastnorm.layer_norm`.

    Parameters
    ----------
    x : dask.array.Array
        Chunked in any way. Where `axis` lies in one chunk, the result has the bits of
        `fastnorm.layer_norm`; else the moments of chunks are merged, and it is equal to rounding.
    gamma, beta : array_like or dask.array.Array, optional
        Of the shape of x at `axis`.
    axis : int or tuple of int, optional
        The axes to normalise over.
    eps : float, optional
        Added to the variance.
    num_threads : int, optional
        Of the kernels in a task.

    Returns
    -------
    dask.array.Array
        With the dtype and the chunks of x.

    Raises
    ------
    ImportError
        Without dask.
    TypeError, ValueError
        As `fastnorm.layer_norm`, when the graph is made.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastnorm as fn
    >>> x = da.arange(12.0, chunks=5).reshape(2, 6)
    >>> y = fn.dask.layer_norm(x, eps=0)
    >>> y.chunks == x.chunks
    True
    >>> y.std(-1).compute()
    array([1., 1.])
    """
    _lazy("dask.layer_norm", x)
    axes = _row_axes("dask.layer_norm", x, gamma, beta, axis)
    return _over_rows(
        x, gamma, beta, axes, _arrays.epsilon("dask.layer_norm", eps), True, num_threads
    )


def rms_norm(
    x: Any, gamma: Any = None, *, axis: Axes = -1, eps: float = 1e-6, num_threads: int = 1
) -> Any:
    """Divide a dask array by its root mean square over some axes: `fastnorm.rms_norm`.

    Parameters
    ----------
    x, gamma, axis, eps, num_threads
        As in `layer_norm`.

    Returns
    -------
    dask.array.Array
        With the dtype and the chunks of x.

    Raises
    ------
    ImportError
        Without dask.
    TypeError, ValueError
        As `fastnorm.rms_norm`, when the graph is made.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastnorm as fn
    >>> fn.dask.rms_norm(da.full((1, 4), 2.0, chunks=2), eps=0).compute()
    array([[1., 1., 1., 1.]])
    """
    _lazy("dask.rms_norm", x)
    axes = _row_axes("dask.rms_norm", x, gamma, None, axis)
    return _over_rows(
        x, gamma, None, axes, _arrays.epsilon("dask.rms_norm", eps), False, num_threads
    )


def group_norm(
    x: Any,
    num_groups: int,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    num_threads: int = 1,
) -> Any:
    """Normalise groups of adjacent channels of each sample of a dask array: `fastnorm.group_norm`.

    Parameters
    ----------
    x : dask.array.Array
        Samples along its first axis, chunked in any way. Where chunks hold whole groups, the result
        has the bits of `fastnorm.group_norm`. Chunks that end within a group of channels are joined
        for the computation.
    num_groups : int
        How many groups; divides the number of channels. As many as channels is instance norm.
    gamma, beta : array_like or dask.array.Array, optional
        Of shape (C,).
    axis : int, optional
        The channel axis.
    eps : float, optional
        Added to the variance.
    num_threads : int, optional
        Of the kernels in a task.

    Returns
    -------
    dask.array.Array
        With the dtype and the chunks of x.

    Raises
    ------
    ImportError
        Without dask.
    TypeError, ValueError
        As `fastnorm.group_norm`, when the graph is made.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastnorm as fn
    >>> x = da.arange(48.0, chunks=7).reshape(2, 4, 6)
    >>> y = fn.dask.group_norm(x, 2, eps=0)
    >>> y.chunks == x.chunks
    True
    >>> y.compute().reshape(2, 2, 12).std(-1)
    array([[1., 1.],
           [1., 1.]])
    """
    function = "dask.group_norm"
    array = _lazy(function, x)
    channel = _arrays.one_axis(function, axis, x.ndim)
    _group_norm(
        np.empty((0, *x.shape[1:]), x.dtype), num_groups, _like(gamma), _like(beta),
        axis=channel, eps=eps,
    )  # fmt: skip
    chunks, group = x.chunks, x.shape[channel] // num_groups
    x = x.rechunk({channel: _whole_groups(chunks[channel], group)})
    if not _is_split(x, _others(x.ndim, (0, channel))):
        gamma, beta = _beside(x, gamma, (channel,)), _beside(x, beta, (channel,))
        return array.map_blocks(
            _whole_groups_chunk, x, gamma, beta, axis=channel, group=group, eps=eps,
            num_threads=num_threads, dtype=x.dtype, meta=x._meta,
        ).rechunk(chunks)  # fmt: skip
    # As (..., groups, channels of a group, ...), over all axes but the samples and the groups.
    cut, ends = _cut(x, channel, group), (channel, channel + 1)
    gamma, beta = _beside(cut, gamma, ends), _beside(cut, beta, ends)
    axes = _others(cut.ndim, (0, channel))
    statistics = _statistics(cut, axes, num_threads)
    y = _normalised(cut, statistics, gamma, beta, axes, eps, True, num_threads)
    return _joined(y, channel, x.chunks[channel]).rechunk(chunks)


def _whole_groups(lengths: tuple[int, ...], group: int) -> tuple[int, ...]:
    """Chunks of whole groups, each begun where one of these is, or at the next group."""
    ends = np.unique(-(-np.cumsum(lengths) // group) * group)
    return tuple(int(length) for length in np.diff(ends, prepend=0))


def _whole_groups_chunk(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    axis: int,
    group: int,
    eps: float,
    num_threads: int,
) -> Array:
    gamma, beta = _at(gamma, (axis,)), _at(beta, (axis,))
    with _threads(num_threads):
        return _group_norm(x, x.shape[axis] // group, gamma, beta, axis=axis, eps=eps)


def _cut_chunk(x: Array, axis: int, group: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] // group, group, *x.shape[axis + 1 :])


def _cut(x: Any, axis: int, group: int) -> Any:
    """The channels as (groups, channels of a group); chunks hold whole groups."""
    chunks = (
        *x.chunks[:axis],
        tuple(length // group for length in x.chunks[axis]),
        (group,),
        *x.chunks[axis + 1 :],
    )
    return x.map_blocks(
        _cut_chunk, axis=axis, group=group, chunks=chunks, new_axis=axis + 1, dtype=x.dtype,
        meta=np.empty((0,) * (x.ndim + 1), x.dtype),
    )  # fmt: skip


def _joined_chunk(x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _joined(x: Any, axis: int, lengths: tuple[int, ...]) -> Any:
    """What `_cut` cut."""
    chunks = (*x.chunks[:axis], lengths, *x.chunks[axis + 2 :])
    return x.map_blocks(
        _joined_chunk, axis=axis, chunks=chunks, drop_axis=axis + 1, dtype=x.dtype,
        meta=np.empty((0,) * (x.ndim - 1), x.dtype),
    )  # fmt: skip
