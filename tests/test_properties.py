"""What holds for any shape, axis, dtype, strides, parameters and number of threads.

Examples are the same at every run; ``pytest --hypothesis-profile=explore`` looks further.
"""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
from checks import (
    ANY_LAYOUT,
    OUT_LAYOUTS,
    assert_dtypes,
    assert_right,
    assert_same,
    read_only,
)
from hypothesis import assume, given
from hypothesis import strategies as st

import fastnorm as fn
from fastnorm._registry import (
    AFFINE,
    BATCH_NORM,
    DTYPES,
    OPERATIONS,
    PASSES,
    WEIGHT_NORM,
    WIDE_DTYPES,
    Case,
    working,
)

# ---- cases ---------------------------------------------------------------------------------------

LENGTHS = st.one_of(st.integers(1, 5), st.sampled_from((7, 16, 17, 33, 65, 129)))
EPS = st.sampled_from((1e-5, 1e-3, 0.5))
MEANS = st.sampled_from((0, 1, -30, 1e4))


def shapes(least, most):
    """Shapes of so many dimensions, of 10,000 elements at most."""

    def cut(shape):
        while prod(shape) > 10_000:
            k = shape.index(max(shape))
            shape = [*shape[:k], shape[k] // 3, *shape[k + 1 :]]
        return tuple(shape)

    return st.lists(LENGTHS, min_size=least, max_size=most).map(cut)


@st.composite
def over_axes(draw):
    """Of layer and RMS norm: any set of axes."""
    shape = draw(shapes(1, 4))
    axes = draw(st.sets(st.integers(-len(shape), -1), min_size=1))
    axis = draw(st.permutations(sorted(axes)))
    options = {"axis": tuple(axis) if len(axis) > 1 else axis[0], "eps": draw(EPS)}
    return Case("", shape, options, data={"mean": draw(MEANS)})


@st.composite
def over_batch(draw):
    shape = draw(shapes(2, 4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    few = prod(shape) <= 2 * shape[axis]
    forward_options = {
        "decay": draw(st.sampled_from((0.9, 0.5, 0.0, 1.0))),
        "ddof": 0 if few else draw(st.integers(0, 1)),
        "training": draw(st.booleans()),
    }
    options = {"axis": axis, "eps": draw(EPS)}
    return Case("", shape, options, forward_options, data={"mean": draw(MEANS)})


@st.composite
def over_groups(draw):
    shape = list(draw(shapes(2, 4)))
    axis = draw(st.integers(1, len(shape) - 1))
    num_groups = draw(st.integers(1, 4))
    shape[axis] = num_groups * draw(st.integers(1, 9))
    axis -= draw(st.sampled_from((0, len(shape))))
    return Case("", tuple(shape), {"num_groups": num_groups, "axis": axis, "eps": draw(EPS)})


@st.composite
def over_instances(draw):
    shape = draw(shapes(2, 4))
    axis = draw(st.integers(1, len(shape) - 1)) - draw(st.sampled_from((0, len(shape))))
    return Case("", shape, {"axis": axis, "eps": draw(EPS)})


@st.composite
def over_weights(draw):
    shape = draw(shapes(1, 4))
    axis = draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1)))
    return Case(
        "", shape, {"axis": axis}, data={"keepdims": axis is not None and draw(st.booleans())}
    )


@st.composite
def over_rows(draw):
    data = {"outputs": draw(LENGTHS), "transposed": draw(st.booleans())}
    return Case("", draw(shapes(1, 4)), data=data)


CASES = {
    "affine": over_rows(),
    "batch_norm": over_batch(),
    "group_norm": over_groups(),
    "instance_norm": over_instances(),
    "layer_norm": over_axes(),
    "rms_norm": over_axes(),
    "weight_norm": over_weights(),
}
CENTRED = ("batch_norm", "group_norm", "instance_norm", "layer_norm")
RMS = ("rms_norm",)
OPTIONAL = {"gamma", "beta", "bias"}
SEEDS = st.integers(0, 2**32 - 1)
THREADS = st.sampled_from((1, 2, 3))


def over_operations(names):
    """Parametrise a test over the operations that there are of these."""
    there = [operation for operation in OPERATIONS if operation.name in names]
    return pytest.mark.parametrize("operation", there, ids=repr)


def drawn(operation, case, dtypes, seed):
    return operation.draw(case, dtypes, np.random.default_rng(seed))


# ---- right results -------------------------------------------------------------------------------


@given(st.data())
def test_right(operation, data):
    """As the reference has it, in the dtype, shape and strides that are promised."""
    case = data.draw(CASES[operation.name])
    names = list(operation.draw(case, np.float32))
    without = data.draw(st.sets(st.sampled_from(sorted(OPTIONAL.intersection(names) or names))))
    frozen = not case.forward_options.get("training", True)
    if not frozen and data.draw(st.booleans()):
        without |= set(operation.state)
    case = replace(case, without=tuple(without & (OPTIONAL | set(operation.state))))

    x_dtype = data.draw(st.sampled_from(DTYPES))
    dtypes = {n: working(x_dtype) if n in operation.state else x_dtype for n in names} | data.draw(
        st.dictionaries(st.sampled_from(names), st.sampled_from(DTYPES), max_size=3)
    )
    for name in operation.state:
        dtypes[name] = working(dtypes[name])
    arrays = drawn(operation, case, dtypes, data.draw(SEEDS))
    for name in data.draw(st.sets(st.sampled_from(names))):
        if arrays[name] is not None and arrays[name].ndim and name not in operation.state:
            arrays[name] = ANY_LAYOUT[data.draw(st.sampled_from(sorted(ANY_LAYOUT)))](arrays[name])
    given_ = {n: a for n, a in arrays.items() if a is not None}
    before = {n: a.tobytes() for n, a in given_.items()}
    read_only(arrays, operation.state)

    out_layout = data.draw(st.none() | st.sampled_from(sorted(OUT_LAYOUTS)))
    with fn.num_threads(data.draw(THREADS)):
        for pass_ in PASSES:
            more = {}
            if out_layout:
                blank = operation.blank(pass_, arrays)
                more["out"] = OUT_LAYOUTS[out_layout](blank)
            results = operation.run(fn, pass_, case, arrays, **more)
            assert_right(operation, pass_, case, arrays, results)
            assert_dtypes(operation, arrays, results)
            first, *others = (r for r in results.values() if r is not None)
            assert first is more["out"] if out_layout else first.flags.c_contiguous
            assert all(type(r) is np.ndarray and r.flags.writeable for r in others)
    assert {n: a.tobytes() for n, a in given_.items()} == before


# ---- what must not matter ------------------------------------------------------------------------


def independent(operation, case, pass_):
    """An axis whose slices have nothing to do with one another, and the parameters that it cuts."""
    ndim = len(case.shape)
    axis = case.options.get("axis", {"batch_norm": 1, "weight_norm": 0}.get(operation.name, -1))
    if operation.name in ("layer_norm", "rms_norm"):
        over = {a % ndim for a in np.atleast_1d(axis)}
        return min(set(range(ndim)) - over, default=None), ()
    if operation is WEIGHT_NORM:
        return (None, ()) if axis is None else (axis % ndim, ("g",))
    if operation is BATCH_NORM and pass_ == "inference":
        return int(axis % ndim == 0), ()
    if operation is BATCH_NORM:
        return axis % ndim, ("gamma", "beta", *operation.state)
    return 0, ()


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o is not AFFINE], ids=repr)
@given(st.data())
def test_slices_are_on_their_own(operation, data):
    """A sample has the same bits wherever it stands, and in any company; a channel wherever it
    stands, for with their number the order of a sum may change.

    Not in an affine layer, whose BLAS cuts a matrix as it likes.
    """
    case = data.draw(CASES[operation.name])
    arrays = drawn(operation, case, data.draw(st.sampled_from(DTYPES)), data.draw(SEEDS))
    for pass_ in PASSES:
        axis, parameters = independent(operation, case, pass_)
        if axis is None:
            continue
        n = case.shape[axis]
        rows = not parameters or (operation is WEIGHT_NORM and axis == 0)
        least, most = (1, 2 * n) if rows else (n, n)
        index = data.draw(st.lists(st.integers(0, n - 1), min_size=least, max_size=most))
        some = dict(arrays)
        for name in (operation.inputs[0], "dy"):
            some[name] = np.take(arrays[name], index, axis)
        for name in parameters:
            along = axis if arrays[name].ndim == len(case.shape) else 0
            some[name] = np.take(arrays[name], index, along)
        whole, part = (operation.run(fn, pass_, case, a) for a in (arrays, some))
        first = next(iter(whole))
        assert_same({first: part[first]}, {first: np.take(whole[first], index, axis)}, pass_)


def scaled(arrays, factors):
    """Arrays times powers of two, in their dtypes."""
    return arrays | {
        name: (arrays[name] * np.float64(factor)).astype(arrays[name].dtype)
        for name, factor in factors.items()
        if arrays.get(name) is not None
    }


def assert_scaled(operation, case, arrays, other_case, other_arrays, factors):
    """The results of others are those of `arrays` times `factors`, by result; to the bit."""
    for pass_ in PASSES:
        results = operation.run(fn, pass_, case, arrays)
        others = operation.run(fn, pass_, other_case, other_arrays)
        assert_same(others, scaled(results, factors), pass_)


POWERS = st.integers(-8, 8).map(lambda k: 2.0**k)
SCALABLE = st.sampled_from([dtype for dtype in DTYPES if dtype != np.float16])  # no subnormals


@over_operations(CENTRED + RMS)
@given(st.data())
def test_scale_of_x(operation, data):
    """x may be in metres or miles, if eps is: by a power of two not a bit of y changes."""
    case = data.draw(CASES[operation.name])
    assume(case.forward_options.get("training", True))
    case = replace(case, without=operation.state)
    arrays = drawn(operation, case, data.draw(SCALABLE), data.draw(SEEDS))
    s = data.draw(POWERS)
    other = replace(case, options={**case.options, "eps": case.options["eps"] * s**2})
    factors = {"x": s, "mean": s, "var": s**2, "rstd": 1 / s, "dx": 1 / s}
    assert_scaled(operation, case, arrays, other, scaled(arrays, factors), factors)


@given(st.data())
def test_scale_of_weight_norm(data):
    """w has the direction of v and the length of g."""
    case = data.draw(CASES["weight_norm"])
    arrays = drawn(WEIGHT_NORM, case, data.draw(SCALABLE), data.draw(SEEDS))
    s, t = data.draw(POWERS), data.draw(POWERS)
    factors = {"v": s, "g": t, "y": t, "dv": t / s}
    assert_scaled(WEIGHT_NORM, case, arrays, case, scaled(arrays, {"v": s, "g": t}), factors)


@given(st.data())
def test_scale_of_affine(data):
    """It is linear in x, in the weight and in dy."""
    case = replace(data.draw(CASES["affine"]), without=("bias",))
    arrays = drawn(AFFINE, case, data.draw(SCALABLE), data.draw(SEEDS))
    s, t = data.draw(POWERS), data.draw(POWERS)
    factors = {"y": s * t, "dx": t, "dweight": s}
    assert_scaled(AFFINE, case, arrays, case, scaled(arrays, {"x": s, "weight": t}), factors)


@over_operations(CENTRED)
@given(st.data())
def test_shift_of_x(operation, data):
    """What is added to all of x changes its mean, and nothing else.

    x has eight binary places and the shift none: the sum is exact.
    """
    case = data.draw(CASES[operation.name])
    assume(case.forward_options.get("training", True))
    case = replace(case, without=operation.state)
    dtype = data.draw(st.sampled_from(WIDE_DTYPES))
    arrays = drawn(operation, case, dtype, data.draw(SEEDS))
    arrays["x"] = (np.round(256 * (arrays["x"] - case.data.get("mean", 0))) / 256).astype(dtype)
    shift = data.draw(st.integers(-4000, 4000))
    shifted = arrays | {"x": arrays["x"] + dtype.type(shift)}
    for pass_ in ("forward", "backward"):
        results, others = (operation.run(fn, pass_, case, a) for a in (arrays, shifted))
        if pass_ == "forward":
            others["mean"] = others["mean"] - shift
        exact = {n: r for n, r in results.items() if r is not None}
        magnitudes = operation.magnitude(pass_, case, operation.widened(shifted, dtype))
        for name, error in operation.errors(others, exact, magnitudes, dtype).items():
            assert error <= 2, f"{name} of {pass_} changes by {error} tolerances"  # one of each


def test_every_operation_has_cases():
    assert {operation.name for operation in OPERATIONS} <= CASES.keys()
