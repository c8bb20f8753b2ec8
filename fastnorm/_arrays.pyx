# cython: boundscheck=False, wraparound=False
"""All checking of arguments and all reshaping to canonical views.

A check raises before anything is written, and its message names the function, the argument, what
was expected and what came. `function` and `name` are these names in every signature below.

Compiled, because a small call spends more time here than in its kernel: what is asked of an array
is read from its struct (``PyArray_...``), which takes a tenth of the time of a Python attribute.
"""

from itertools import combinations

import numpy as np

cimport numpy as cnp
from cpython.number cimport PyNumber_Index

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cnp.import_array()

_DTYPE_NAMES = "float16, bfloat16, float32 or float64"
_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)

cdef int _bfloat16 = -1  # the number that NumPy gave to ml_dtypes' type, once an array has had it


# Arrays


cdef bint is_bfloat16(cnp.ndarray a):
    """ml_dtypes is never imported: who has an array of its type has done so."""
    global _bfloat16
    if _bfloat16 < 0 and a.dtype.name == "bfloat16" and cnp.PyArray_ITEMSIZE(a) == 2:
        _bfloat16 = cnp.PyArray_TYPE(a)
    return cnp.PyArray_TYPE(a) == _bfloat16


cdef inline bint has_known_dtype(cnp.ndarray a):
    cdef int kind = cnp.PyArray_TYPE(a)
    if not cnp.PyArray_ISNOTSWAPPED(a):
        return False
    if kind == cnp.NPY_FLOAT or kind == cnp.NPY_DOUBLE or kind == cnp.NPY_FLOAT16:
        return True
    return is_bfloat16(a) or a.dtype == _FLOAT64  # long double where it is as short as double


cpdef working_dtype(cnp.ndarray a):
    """What is computed in."""
    return _FLOAT64 if cnp.PyArray_ITEMSIZE(a) == 8 else _FLOAT32


cdef inline bint has_shape(cnp.ndarray a, tuple shape) except -1:
    cdef Py_ssize_t i
    if cnp.PyArray_NDIM(a) != len(shape):
        return False
    for i in range(len(shape)):
        if cnp.PyArray_DIM(a, i) != <Py_ssize_t> shape[i]:
            return False
    return True


cpdef cnp.ndarray array(function, name, value):
    """`value` as an ndarray of a dtype that the kernels know."""
    cdef cnp.ndarray a
    if cnp.PyArray_CheckExact(value):
        a = value
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{function}: {name} must be an array of {_DTYPE_NAMES}, got a masked array; "
            f"fill it first"
        )
    else:
        try:
            a = np.asarray(value)
        except MemoryError:
            raise
        except Exception as error:  # of whatever kind: `value` may have methods of its own
            raise TypeError(
                f"{function}: {name} must be an array of {_DTYPE_NAMES}, "
                f"got {type(value).__name__}: {error}"
            ) from error
    if not has_known_dtype(a):
        # What np.save leaves of ml_dtypes' type.
        hint = "; if it was bfloat16: .view(ml_dtypes.bfloat16)" if a.dtype == "V2" else ""
        raise TypeError(
            f"{function}: {name} must be an array of {_DTYPE_NAMES}, got {a.dtype}{hint}"
        )
    return a


cpdef str found_at(cnp.ndarray a, tuple shape, name="x", Py_ssize_t first=0):
    """The end of a message: which axes of `a`, from the first on, have a shape that others should
    have had. Nothing for none, or for so many that one would guess."""
    cdef Py_ssize_t ndim = cnp.PyArray_NDIM(a)
    if not shape or ndim > 8:
        return ""
    found = [axes for axes in combinations(range(first, ndim), len(shape))
             if lengths(a, axes) == shape]
    if not 1 <= len(found) <= 2:
        return ""
    places = [f"axis={axes[0] if len(axes) == 1 else axes}" for axes in found]
    return f", which {name} has at {' and at '.join(places)}"


cpdef cnp.ndarray shaped(
    function, name, value, tuple shape, cnp.ndarray x=None, Py_ssize_t first=0
):
    """An array of exactly this shape. An error says at which axes, from the first on, x has the
    shape that came: `axis` may be what is wrong."""
    cdef cnp.ndarray a = array(function, name, value)
    if not has_shape(a, shape):
        got = (<object> a).shape
        hint = "" if x is None else found_at(x, got, "x", first)
        raise ValueError(f"{function}: {name} must have shape {shape}, got {got}{hint}")
    return a


cpdef cnp.ndarray parameter(
    function, name, value, tuple shape, cnp.ndarray x=None, Py_ssize_t first=0
):
    """An optional parameter, in its own dtype."""
    return None if value is None else shaped(function, name, value, shape, x, first)


cpdef cnp.ndarray running(
    function, name, value, tuple shape, bint written, cnp.ndarray x=None
):
    """A running statistic, float32 or float64, which training updates in place."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{function}: {name} must be an ndarray, got {type(value).__name__}")
    cdef cnp.ndarray a = shaped(function, name, value, shape, x)
    if cnp.PyArray_ITEMSIZE(a) == 2:  # where (1 - decay) * batch would be lost in the rounding
        raise TypeError(f"{function}: {name} must be an array of float32 or float64, got {a.dtype}")
    if written and not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{function}: {name} must be writeable, got a read-only array")
    return a


def output(function, out, tuple shape, cnp.dtype dtype, *inputs, may_be=None):
    """`out`, or a new array. It must not overlap an input, but may be `may_be` itself."""
    given = out
    if out is None:
        return empty(shape, dtype)
    if not cnp.PyArray_CheckExact(out):
        if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
            raise TypeError(f"{function}: out must be an ndarray, got {type(out).__name__}")
        out = np.asarray(out)  # whatever a subclass makes of its attributes
    cdef cnp.ndarray result = out
    if not has_shape(result, shape):
        raise ValueError(f"{function}: out must have shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"{function}: out must have dtype {dtype}, got {out.dtype}")
    if not cnp.PyArray_ISWRITEABLE(result):
        raise ValueError(f"{function}: out must be writeable, got a read-only array")
    if not cnp.PyArray_ISONESEGMENT(result) and has_internal_overlap(out):
        raise ValueError(
            f"{function}: out must have an element of its own for each index, "
            f"got strides {out.strides}"
        )
    for name, a in inputs:
        if a is not None and not (a is may_be and is_same(result, a)) and overlap(result, a):
            raise ValueError(f"{function}: out must not overlap {name}")
    return given


cpdef bint is_same(cnp.ndarray a, cnp.ndarray b):
    """Whether two arrays of one shape are the same elements in the same places."""
    return cnp.PyArray_DATA(a) == cnp.PyArray_DATA(b) and cnp.PyArray_CompareLists(
        cnp.PyArray_STRIDES(a), cnp.PyArray_STRIDES(b), cnp.PyArray_NDIM(a)
    )


cdef inline char* begin(cnp.ndarray a) noexcept:
    """The lowest address of an element."""
    cdef char* p = cnp.PyArray_BYTES(a)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_NDIM(a)):
        p += min(cnp.PyArray_STRIDE(a, i), 0) * (cnp.PyArray_DIM(a, i) - 1)
    return p


cdef inline char* end(cnp.ndarray a) noexcept:
    """The address after the highest element."""
    cdef char* p = cnp.PyArray_BYTES(a) + cnp.PyArray_ITEMSIZE(a)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_NDIM(a)):
        p += max(cnp.PyArray_STRIDE(a, i), 0) * (cnp.PyArray_DIM(a, i) - 1)
    return p


cdef bint overlap(cnp.ndarray a, cnp.ndarray b) except -1:
    """Whether two arrays share an element; in doubt, yes."""
    if cnp.PyArray_SIZE(a) == 0 or cnp.PyArray_SIZE(b) == 0:
        return False
    if begin(a) >= end(b) or begin(b) >= end(a):  # almost always
        return False
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


cpdef real(function, name, value):
    try:
        return float(value + 0)  # a string has no + 0, though it may have a float
    except (TypeError, ValueError):
        raise TypeError(
            f"{function}: {name} must be a real number, got {type(value).__name__}"
        ) from None
    except OverflowError:
        raise ValueError(f"{function}: {name} must be finite, got {value}") from None


cpdef bint flag(function, name, value) except -1:
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{function}: {name} must be True or False, got {type(value).__name__}"
        ) from None


cpdef epsilon(function, eps):
    cdef double value = real(function, "eps", eps)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{function}: eps must be finite and not negative, got {value}")
    return value


cpdef one_axis(function, axis, Py_ssize_t ndim):
    """`axis` counted from the front."""
    try:
        i = PyNumber_Index(axis)
    except TypeError:
        raise TypeError(
            f"{function}: axis must be an integer, got {type(axis).__name__}"
        ) from None
    if not -ndim <= i < ndim:
        raise ValueError(
            f"{function}: axis must be between {-ndim} and {ndim - 1} "
            f"for an array of {ndim} dimensions, got {i}"
        )
    return <Py_ssize_t> i % ndim


cpdef Py_ssize_t groups(function, num_groups, Py_ssize_t channels) except -1:
    """`num_groups`, which must divide the number of channels."""
    try:
        value = PyNumber_Index(num_groups)
    except TypeError:
        raise TypeError(
            f"{function}: num_groups must be an integer, got {type(num_groups).__name__}"
        ) from None
    if value < 1 or value > PY_SSIZE_T_MAX or channels % value:
        raise ValueError(
            f"{function}: num_groups must divide the {channels} channels of x, got {value}"
        )
    return value


cpdef length(function, name, value):
    """A number of elements."""
    try:
        n = PyNumber_Index(value)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be an integer, got {type(value).__name__}"
        ) from None
    if n < 0:
        raise ValueError(f"{function}: {name} must be at least 0, got {n}")
    return n


cpdef tuple many_axes(function, axis, Py_ssize_t ndim):
    """`axis`, an int or a tuple of them, as a tuple counted from the front, ascending."""
    if not isinstance(axis, tuple | list):
        return (one_axis(function, axis, ndim),)
    axes = tuple(sorted([one_axis(function, a, ndim) for a in axis]))
    if not axes:
        raise ValueError(f"{function}: axis must name at least one axis, got {axis}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"{function}: axis must not name an axis twice, got {axis}")
    return axes


cpdef tuple lengths(cnp.ndarray a, tuple axes):
    """The part of its shape that belongs to these axes."""
    return tuple([cnp.PyArray_DIM(a, i) for i in axes])


# Caches


def fields(function, cache, kind):
    """What a cache of this kind holds."""
    if type(cache) is not kind:
        raise TypeError(
            f"{function}: cache must be what {function.removesuffix('backward')}forward returned, "
            f"got {type(cache).__name__}"
        )
    return cache


cpdef cnp.ndarray kept(function, name, value, tuple shape):
    """A statistic of a cache: as forward made it, unless x has got another shape since."""
    if cnp.PyArray_CheckExact(value):
        a = <cnp.ndarray> value
        if (
            cnp.PyArray_TYPE(a) == cnp.NPY_DOUBLE and cnp.PyArray_IS_C_CONTIGUOUS(a)
            and has_shape(a, shape)
        ):
            return a
        value = f"{a.dtype} {(<object> a).shape}"
    else:
        value = type(value).__name__
    raise ValueError(
        f"{function}: {name} must be as forward returned it, float64 {shape}, got {value}"
    )


# New arrays


cdef inline int lengths_of(tuple shape, cnp.npy_intp* lengths) except -1:
    cdef Py_ssize_t i
    for i in range(len(shape)):
        lengths[i] = shape[i]
    return <int> len(shape)


cpdef cnp.ndarray empty(tuple shape, cnp.dtype dtype):
    cdef cnp.npy_intp lengths[cnp.NPY_MAXDIMS]
    return cnp.PyArray_EMPTY(lengths_of(shape, lengths), lengths, dtype.type_num, False)


cpdef cnp.ndarray gradient(cnp.ndarray parameter):
    """Zeros for the gradient of an optional parameter."""
    if parameter is None:
        return None
    return cnp.PyArray_ZEROS(
        cnp.PyArray_NDIM(parameter), cnp.PyArray_DIMS(parameter), cnp.PyArray_TYPE(parameter), False
    )


cpdef tuple new_statistics(tuple shape, Py_ssize_t size, eps):
    """Arrays for mean and rstd of `size` values; those of none are 0 and 1 / sqrt(eps)."""
    if size:
        return empty(shape, _FLOAT64), empty(shape, _FLOAT64)
    return np.zeros(shape), np.full(shape, eps**-0.5 if eps else np.inf)


# Canonical views


cpdef cnp.ndarray contiguous(cnp.ndarray a):
    """An optional array in C order and aligned: `a` itself where it is so already."""
    return a if a is None or cnp.PyArray_ISCARRAY_RO(a) else np.array(a, order="C")


cpdef cnp.ndarray ordered(cnp.ndarray a, order):
    """A view of `a` with its axes in `order`; None: as they are."""
    cdef cnp.npy_intp axes[cnp.NPY_MAXDIMS]
    cdef cnp.PyArray_Dims permutation
    if order is None:
        return a
    permutation.ptr, permutation.len = axes, lengths_of(order, axes)
    return cnp.PyArray_Transpose(a, &permutation)  # no method, which a subclass may have changed


cpdef tuple reduced(cnp.ndarray a, tuple axes):
    """The shape of statistics over these axes, which have length 1."""
    return tuple([1 if i in axes else cnp.PyArray_DIM(a, i) for i in range(cnp.PyArray_NDIM(a))])


cpdef tuple row_view(cnp.ndarray a, tuple axes):
    """(M, N), N being the elements along these axes, and the order of axes that brings these to the
    end, or None where they are there already. `a` is not empty."""
    cdef Py_ssize_t ndim = cnp.PyArray_NDIM(a), n = 1
    for axis in axes:
        n *= cnp.PyArray_DIM(a, axis)
    order = None
    if <Py_ssize_t> axes[0] + len(axes) < ndim:
        order = (*[i for i in range(ndim) if i not in axes], *axes)
    return cnp.PyArray_SIZE(a) // n, n, order


cpdef tuple channel_view(cnp.ndarray a, int axis):
    """(N, C, S): what stands before the channel axis, the axis, what stands after it."""
    cdef cnp.npy_intp* shape = cnp.PyArray_DIMS(a)
    cdef Py_ssize_t n = cnp.PyArray_MultiplyList(shape, axis)
    cdef Py_ssize_t s = cnp.PyArray_MultiplyList(
        shape + axis + 1, cnp.PyArray_NDIM(a) - axis - 1
    )
    return n, shape[axis], s


cpdef Py_ssize_t row_count(cnp.ndarray a):
    """Of the matrix whose rows are `a` along its last axis."""
    return cnp.PyArray_MultiplyList(cnp.PyArray_DIMS(a), cnp.PyArray_NDIM(a) - 1)


cpdef bint is_transposed(cnp.ndarray a):
    """Whether the columns of this matrix, and not its rows, lie in memory as rows do."""
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(a)
    return cnp.PyArray_STRIDE(a, 1) != size and cnp.PyArray_STRIDE(a, 0) == size
