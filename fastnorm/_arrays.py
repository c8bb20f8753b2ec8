"""All checking of arguments and all reshaping to canonical views.

A check raises before anything is written, and its message names the function, the argument, what
was expected and what came. `function` and `name` are these names in every signature below.
"""

from math import prod
from operator import index

import numpy as np

_FLOAT32, _FLOAT64 = DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_DTYPE_NAMES = " or ".join(map(str, DTYPES))


# Arrays


def array(function, name, value):
    """`value` as an ndarray of a dtype that the kernels know."""
    if type(value) is np.ndarray:
        a = value
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: {name} must be an array of {_DTYPE_NAMES}, got a masked array; "
            f"fill it first"
        )
    else:
        a = np.asarray(value)
    dtype = a.dtype
    # Identity first: it is much faster than equality, and almost always true.
    if dtype is _FLOAT32 or dtype is _FLOAT64 or dtype in DTYPES:
        return a
    raise TypeError(f"{function}: {name} must be an array of {_DTYPE_NAMES}, got {dtype}")


def shaped(function, name, value, shape):
    """An array of exactly this shape."""
    a = array(function, name, value)
    if a.shape != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {a.shape}")
    return a


def parameter(function, name, value, shape):
    """An optional parameter, contiguous, in its own dtype."""
    return None if value is None else statistic(function, name, value, shape)


def statistic(function, name, value, shape):
    """A statistic or a parameter that must be given, likewise."""
    return contiguous(shaped(function, name, value, shape))


def running(function, name, value, shape, *, written):
    """A running statistic, which training updates in place."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{function}: {name} must be an ndarray, got {type(value).__name__}")
    a = shaped(function, name, value, shape)
    if written and not a.flags.writeable:
        raise ValueError(f"{function}: {name} must be writeable, got a read-only array")
    return a


def output(function, out, shape, dtype, *inputs, may_be=None):
    """`out`, or a new array. It must not overlap an input, but may be `may_be` itself."""
    if out is None:
        return np.empty(shape, dtype)
    if type(out) is not np.ndarray:
        if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
            raise TypeError(f"{function}: out must be an ndarray, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"{function}: out must have shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"{function}: out must have dtype {dtype}, got {out.dtype}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError(f"{function}: out must be writeable, got a read-only array")
    if not flags.forc and has_internal_overlap(out):
        raise ValueError(
            f"{function}: out must have an element of its own for each index, "
            f"got strides {out.strides}"
        )
    for name, a in inputs:
        if (
            a is not None
            and np.may_share_memory(out, a)
            and not (a is may_be and _is_same(out, a))
            and overlap(out, a)
        ):
            raise ValueError(f"{function}: out must not overlap {name}")
    return out


def _is_same(a, b):
    """Whether two arrays of one shape are the same elements in the same places."""
    return (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.shape == b.shape
        and a.strides == b.strides
    )


def overlap(a, b):
    """Whether two arrays share an element; in doubt, yes."""
    try:
        return np.shares_memory(a, b, max_work=100_000)
    except np.exceptions.TooHardError:
        return True


def has_internal_overlap(a):
    """Whether two indices of `a` may lead to one element: a stride that does not clear those below
    it."""
    if a.size == 0:
        return False
    reach = a.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return True
            reach += stride * (length - 1)
    return False


# Scalars


def real(function, name, value):
    try:
        return float(value + 0)  # a string has no + 0, though it may have a float
    except (TypeError, ValueError):
        raise TypeError(
            f"{function}: {name} must be a real number, got {type(value).__name__}"
        ) from None


def epsilon(function, eps):
    value = real(function, "eps", eps)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{function}: eps must be finite and not negative, got {value}")
    return value


def one_axis(function, axis, ndim):
    """`axis` counted from the front."""
    try:
        i = index(axis)
    except TypeError:
        raise TypeError(
            f"{function}: axis must be an integer, got {type(axis).__name__}"
        ) from None
    if not -ndim <= i < ndim:
        raise ValueError(
            f"{function}: axis must be between {-ndim} and {ndim - 1} "
            f"for an array of {ndim} dimensions, got {i}"
        )
    return i % ndim


def many_axes(function, axis, ndim):
    """`axis`, an int or a tuple of them, as a tuple counted from the front, ascending."""
    if type(axis) is int or not isinstance(axis, tuple | list):
        return (one_axis(function, axis, ndim),)
    axes = tuple(sorted(one_axis(function, a, ndim) for a in axis))
    if not axes:
        raise ValueError(f"{function}: axis must name at least one axis, got {axis}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"{function}: axis must not name an axis twice, got {axis}")
    return axes


# Caches


def fields(function, cache, kind):
    """What a cache of this kind holds."""
    if type(cache) is not kind:
        raise TypeError(
            f"{function}: cache must be what {function.removesuffix('backward')}forward returned, "
            f"got {type(cache).__name__}"
        )
    return cache


# Canonical views


def contiguous(a, order=None):
    """`a` with its axes in `order`, C-contiguous: `a` itself where it is so already."""
    view = a if order is None else a.transpose(order)
    return view if view.flags.c_contiguous else np.asarray(view, order="C")


def new_statistics(shape, size, eps):
    """Arrays for mean and rstd of `size` values; those of none are 0 and 1 / sqrt(eps)."""
    if size:
        return np.empty(shape), np.empty(shape)
    return np.zeros(shape), np.full(shape, eps**-0.5 if eps else np.inf)


def cast(a, dtype):
    """An optional array in this dtype: `a` itself where it has it."""
    return a if a is None or a.dtype is dtype else a.astype(dtype, copy=False)


def trailing(axes, ndim):
    """The order of axes that brings these to the end, or None where they are there."""
    if axes[0] + len(axes) == ndim:
        return None
    return (*(i for i in range(ndim) if i not in axes), *axes)


def channel_view(shape, axis):
    """(N, C, S): what stands before the channel axis, the axis, what stands after it."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def kernel_output(result, order=None):
    """The array that a kernel fills for `result`; `deliver` it afterwards."""
    view = result if order is None else result.transpose(order)
    return view if view.flags.c_contiguous else np.empty(view.shape, view.dtype)


def deliver(filled, result, order=None):
    """Copy what a kernel filled to its place, unless it is there already."""
    view = result if order is None else result.transpose(order)
    if not view.flags.c_contiguous:
        view[...] = filled
    return result
