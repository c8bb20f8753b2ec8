"""Where others lose digits: large means, constant, huge and tiny values, NaN and Inf, long sums."""

import numpy as np
import pytest
from checks import assert_right, over

import fastnorm as fn
from fastnorm import reference
from fastnorm._registry import (
    BATCH_NORM,
    GROUP_NORM,
    HALF_DTYPES,
    INSTANCE_NORM,
    LAYER_NORM,
    RMS_NORM,
    WEIGHT_NORM,
    Case,
    differing,
    finfo,
    working,
)

LAYER_CASES = (
    Case("rows", (33, 768)),
    Case("narrow rows", (500, 17)),
    Case("long rows", (2, 50_021)),
    Case("first axis", (65, 70), {"axis": 0}),
    Case("middle axis", (5, 64, 49), {"axis": 1}),
)
BATCH_CASES = (
    Case("2-D", (500, 65)),
    Case("2-D narrow", (5000, 3)),
    Case("channels-first", (8, 17, 12, 12)),
    Case("channels-first small", (65, 33, 2, 2)),
    Case("channels-first long", (2, 3, 50_021)),
    Case("channels-last", (8, 12, 12, 17), {"axis": -1}),
    Case("channels-last narrow", (8, 25, 25, 3), {"axis": -1}),
    Case("frozen", (500, 65), forward_options={"training": False}),
)
GROUP_CASES = (
    Case("channels-first", (3, 6, 12, 12), {"num_groups": 2}),
    Case("channels-first small", (9, 66, 5, 5), {"num_groups": 6}),
    Case("channels-first tiny", (9, 66, 2, 2), {"num_groups": 3}),
    Case("channels-first long", (1, 4, 20_021), {"num_groups": 2}),
    Case("channels-last", (3, 12, 12, 18), {"num_groups": 3, "axis": -1}),
    Case("channels-last narrow", (3, 25, 25, 4), {"num_groups": 2, "axis": -1}),
    Case("channels-last long", (1, 70, 70, 6), {"num_groups": 2, "axis": -1}),
    Case("2-D", (33, 66), {"num_groups": 3}),
)
INSTANCE_CASES = (
    Case("channels-first", (3, 6, 12, 12)),
    Case("channels-first small", (9, 33, 5, 5)),
    Case("channels-last", (3, 12, 12, 17), {"axis": -1}),
)
CENTRED = [(LAYER_NORM, case) for case in LAYER_CASES]
CENTRED += [(BATCH_NORM, case) for case in BATCH_CASES]
CENTRED += [(GROUP_NORM, case) for case in GROUP_CASES]
CENTRED += [(INSTANCE_NORM, case) for case in INSTANCE_CASES]
SCALED = [
    (WEIGHT_NORM, Case("rows", (33, 768))),
    (WEIGHT_NORM, Case("short rows", (33, 7))),
    (WEIGHT_NORM, Case("columns", (500, 65), {"axis": -1})),
    (WEIGHT_NORM, Case("middle", (5, 17, 49), {"axis": 1})),
    (WEIGHT_NORM, Case("whole", (65, 70), {"axis": None})),
]


def run_right(operation, pass_, case, arrays, allowed=1):
    """The results of a pass, all of which are within the tolerances of the registry."""
    results = operation.run(fn, pass_, case, arrays)
    assert_right(operation, pass_, case, arrays, results, allowed)
    return results


# ---- large means ---------------------------------------------------------------------------------


def with_mean(operation, case, dtype, mean):
    """Arrays whose x is N(mean, 1), with statistics that fit it, gamma = 1 and beta = 0."""
    rng = np.random.default_rng(0)
    arrays = operation.draw(case, dtype)
    arrays["x"] = rng.normal(mean, 1, case.shape).astype(dtype)
    for name in ("mean", "running_mean"):
        if name in arrays:
            arrays[name] = rng.normal(mean, 0.1, arrays[name].shape).astype(arrays[name].dtype)
            arrays[name.replace("mean", "var")] = np.ones_like(arrays[name])
    return arrays | {"gamma": np.ones_like(arrays["gamma"]), "beta": np.zeros_like(arrays["beta"])}


@over(CENTRED)
@pytest.mark.parametrize("mean", [1e4, -1e4, 300])
def test_large_mean(operation, case, mean, dtype, pass_):
    """A mean of ten thousand standard deviations costs no digit, forward or backward.

    The tolerances are those of any input. In x_hat the error of the mean counts in units of the
    standard deviation; backward needs the x_hat of forward, so that the error of dx is bounded by
    the magnitudes of its terms, rstd (|g| + mean |g| + |x_hat| mean |g x_hat|), and nothing else. A
    mean that is kept to the digits of float32 would be off by 1e4 epsilons here.
    """
    arrays = with_mean(operation, case, dtype, mean)
    results = run_right(operation, pass_, case, arrays)
    if pass_ != "backward" and dtype == np.float32:
        wide = operation.widened(arrays, dtype)
        exact = operation.run(reference, pass_, case, wide)["y"]
        np.testing.assert_allclose(results["y"], exact, rtol=0, atol=1e-6)


@over(CENTRED)
def test_small_variance_beside_large_mean(operation, case, dtype, pass_):
    """Variances of the size of eps, where a negative one would become a NaN elsewhere."""
    arrays = operation.draw(case, dtype)
    arrays["x"] = (arrays["x"] * 1e-3 + 1).astype(dtype)
    run_right(operation, pass_, case, arrays)


# ---- constant input ------------------------------------------------------------------------------


@over([(operation, case) for operation, case in CENTRED if not case.forward_options])
@pytest.mark.parametrize("value", [0.1, 10000.1, -3.3e7, 1e-30, 1e30])
def test_constant_input(operation, case, value, dtype):
    """y is beta to the bit, no gradient reaches gamma, and dx is finite."""
    limits = finfo(dtype)
    value = np.clip(value, float(limits.min), float(limits.max))
    without = tuple(name for name in operation.state)
    case = Case(case.label, case.shape, case.options, without=without)
    arrays = operation.draw(case, dtype)
    arrays["x"] = np.full(case.shape, value, dtype)
    y = operation.run(fn, "forward", case, arrays)["y"]
    beta = operation.run(fn, "forward", case, arrays | {"x": np.zeros_like(y)})["y"]
    assert not differing({"y": y}, {"y": beta})
    default = -1 if operation is LAYER_NORM else 1
    last = np.moveaxis(y, case.options.get("axis", default), -1)
    np.testing.assert_array_equal(last, np.broadcast_to(arrays["beta"], last.shape))
    gradients = operation.run(fn, "backward", case, arrays)
    assert not gradients["dgamma"].any()
    assert np.isfinite(gradients["dx"]).all()


# ---- huge and tiny values ------------------------------------------------------------------------


# Factors that take squares out of the range of the dtype; float16's results must stay in it.
OUT_OF_RANGE = {
    "float16": (3e2, 1e-3),
    "bfloat16": (1e30, 1e-30),
    "float32": (1e30, 1e-30),
    "float64": (1e200, 1e-200),
}


@over(CENTRED + SCALED)
@pytest.mark.parametrize("exponent", ["huge", "tiny"])
def test_squares_out_of_range(operation, case, exponent, dtype, pass_):
    """Values whose squares overflow or vanish give the results that arithmetic has for them.

    Such a slice is computed again, its values scaled, with plain sums in double. For float32 these
    lose nothing; in float64 they are chains, for which four times the tolerance is allowed.
    """
    scale = OUT_OF_RANGE[dtype.name][exponent == "tiny"]
    if dtype == np.float64 and np.finfo(np.longdouble).maxexp < 4096:
        pytest.skip("no type on this platform holds the squares")
    without = tuple(name for name in operation.state if not case.forward_options)
    case = Case(case.label, case.shape, case.options, case.forward_options, without)
    arrays = operation.draw(case, dtype)
    first = operation.inputs[0]
    arrays[first] = (arrays[first] * dtype.type(scale)).astype(dtype)
    allowed = 4 if dtype == np.float64 else 1
    results = run_right(operation, pass_, case, arrays, allowed)
    assert all(result is None or np.isfinite(result).all() for result in results.values())


@over([pair for pair in CENTRED if not pair[1].forward_options])
@pytest.mark.parametrize("half", HALF_DTYPES, ids=str)
def test_largest_halves(operation, case, half, pass_):
    """6e4 is near the end of float16, and sums of it are beyond: nothing is kept in 16 bits."""
    case = Case(case.label, case.shape, case.options, without=operation.state)
    arrays = operation.draw(case, half)
    arrays["x"] = np.copysign(half.type(6e4), arrays["x"])
    arrays["gamma"] *= half.type(0.25)  # y of given statistics is as large as x
    results = run_right(operation, pass_, case, arrays)
    assert all(result is None or np.isfinite(result).all() for result in results.values())


@pytest.mark.parametrize("width", [256, 32, 7])
@pytest.mark.parametrize("half", HALF_DTYPES, ids=str)
def test_each_value_of_16_bits(half, width, rng):
    """All of them, NaN and Inf too, times numbers that make ties, infinite and subnormal products:
    the float32 product, rounded once, to nearest even."""
    x = np.arange(2**16, dtype=np.uint16)[: 2**16 // width * width].view(half).reshape(-1, width)
    mean, var = np.zeros((2, width), np.float32)
    var += 1
    for size in (1, 1.5, 1 + 2**-8, 2**-12, 2**14):
        gamma = np.float32(size) * rng.choice(np.float32([1, -1, 1.25, 0.75]), width)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = (x.astype(np.float32) * gamma + 0).astype(half)  # -0 + 0 is 0
        y = fn.batch_norm(x, mean, var, gamma, eps=0)
        nan = np.isnan(expected.astype(np.float32))
        np.testing.assert_array_equal(np.isnan(y.astype(np.float32)), nan)
        np.testing.assert_array_equal(y.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])


def test_one_huge_row_changes_no_other(dtype, rng):
    """The second path that squares need when they overflow is taken by the rows that need it."""
    x = rng.standard_normal((33, 129)).astype(dtype)
    mixed = x.copy()
    mixed[7] *= dtype.type(OUT_OF_RANGE[dtype.name][0])
    others = np.arange(33) != 7
    np.testing.assert_array_equal(fn.layer_norm(mixed)[others], fn.layer_norm(x)[others])
    g = np.ones(33, dtype)
    np.testing.assert_array_equal(fn.weight_norm(mixed, g)[others], fn.weight_norm(x, g)[others])
    v, w = np.ascontiguousarray(x.T), np.ascontiguousarray(mixed.T)
    for function in (
        lambda a: fn.weight_norm(a, g, axis=1),
        lambda a: fn.batch_norm_forward(a)[0],
        lambda a: fn.layer_norm(a, axis=0),
    ):
        np.testing.assert_array_equal(function(w)[:, others], function(v)[:, others])


# ---- NaN and Inf ---------------------------------------------------------------------------------


def slices(operation, case):
    """Index of the slice that shares its statistics with the middle of x, and of all the others."""
    shape = case.shape
    middle = tuple(n // 2 for n in shape)
    if operation in (GROUP_NORM, INSTANCE_NORM):
        axis = case.options.get("axis", 1) % len(shape)
        size = shape[axis] // case.options.get("num_groups", shape[axis])
        start = middle[axis] // size * size
        affected = np.zeros(shape, bool)
        affected[middle[0]].swapaxes(0, axis - 1)[start : start + size] = True
        return middle, affected
    if operation is BATCH_NORM:
        kept = {case.options.get("axis", 1) % len(shape)}
    elif operation is LAYER_NORM:
        kept = set(range(len(shape))) - {case.options.get("axis", -1) % len(shape)}
    else:
        axis = case.options.get("axis", 0)
        kept = set() if axis is None else {axis % len(shape)}
    affected = np.zeros(shape, bool)
    affected[tuple(middle[a] if a in kept else np.s_[:] for a in range(len(shape)))] = True
    return middle, affected


@over(CENTRED + SCALED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_stay_in_their_slice(operation, case, value, dtype, pass_):
    """They do what IEEE arithmetic has in their row or channel, and leave no trace elsewhere."""
    arrays = operation.draw(case, dtype)
    middle, affected = slices(operation, case)
    first = operation.inputs[0]
    clean = operation.run(fn, pass_, case, arrays)
    arrays[first][middle] = value
    dirty = operation.run(fn, pass_, case, arrays)
    exact = operation.run(reference, pass_, case, operation.widened(arrays, dtype))
    name = next(iter(clean))
    np.testing.assert_array_equal(dirty[name][~affected], clean[name][~affected])
    for name, result in dirty.items():
        if name in (*operation.statistics, *operation.state):
            np.testing.assert_array_equal(np.isfinite(result), np.isfinite(exact[name]), name)
        elif result is not None:
            np.testing.assert_array_equal(np.isnan(result), np.isnan(exact[name]), name)
            np.testing.assert_array_equal(np.isposinf(result), np.isposinf(exact[name]), name)
            np.testing.assert_array_equal(np.isneginf(result), np.isneginf(exact[name]), name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_affine_keeps_nan_and_inf_in_their_row(value, dtype, rng):
    x, weight = rng.standard_normal((65, 33)).astype(dtype), rng.standard_normal((33, 17))
    weight = weight.astype(dtype)
    clean = fn.affine(x, weight)
    x[7, 3] = value
    y = fn.affine(x, weight)
    others = np.arange(65) != 7
    np.testing.assert_array_equal(y[others], clean[others])
    assert not np.isfinite(y[7]).any()


@pytest.mark.parametrize("function", ["layer_norm_forward", "batch_norm_forward"])
@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 300)])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NumPy's, in the reference
def test_variance_of_zero_without_eps(function, shape, dtype):
    """1 / sqrt(0) is infinite and 0 · inf is NaN: no exception, and no 0."""
    results, exact = (getattr(m, function)(np.ones(shape, dtype), eps=0) for m in (fn, reference))
    y, expected = (a.astype(np.float64) for a in (results[0], exact[0]))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(results[1].rstd, exact[1].rstd)


# ---- long sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16)], ids=str)
@over(
    [
        (BATCH_NORM, Case("2-D", (2**20 + 3, 1))),
        (BATCH_NORM, Case("2-D pairs", (2**19 + 3, 2))),
        (BATCH_NORM, Case("channels-first", (2, 1, 2**19 + 3))),
        (GROUP_NORM, Case("channels-first", (1, 2, 2**19 + 3), {"num_groups": 1})),
        (GROUP_NORM, Case("channels-last", (1, 2**19 + 3, 2), {"num_groups": 1, "axis": -1})),
        (INSTANCE_NORM, Case("samples", (2**17 + 3, 1, 8))),
        (LAYER_NORM, Case("rows", (1, 2**20 + 3))),
        (LAYER_NORM, Case("many rows", (2**18 + 3, 3))),
        (WEIGHT_NORM, Case("rows", (1, 2**20 + 3))),
        (WEIGHT_NORM, Case("columns", (2**19 + 3, 2), {"axis": -1})),
        (WEIGHT_NORM, Case("whole", (1021, 1031), {"axis": None})),
    ]
)
def test_long_sums_do_not_drift(operation, case, dtype, pass_):
    """Positive terms, whose sum in one chain of float32 loses more with every term.

    The parameters are float32, as they are beside 16 bits, and show what the sums have.
    """
    arrays = operation.draw(case, np.float32)
    arrays = {name: np.abs(array) for name, array in arrays.items()}
    for name in (operation.inputs[0], "dy"):
        arrays[name] = arrays[name].astype(dtype)
    run_right(operation, pass_, case, arrays)


@over(
    [
        (RMS_NORM, Case("rows", (2, 4096))),
        (RMS_NORM, Case("long rows", (1, 10_000))),
        (WEIGHT_NORM, Case("rows", (2, 4096))),
        (WEIGHT_NORM, Case("whole", (100, 100), {"axis": None})),
    ]
)
def test_sums_of_equal_squares(operation, case, dtype, pass_):
    """Equal terms round the same way each time: errors that add up, unless sums are short."""
    for value in np.linspace(1.05, 1.95, 7):
        arrays = operation.draw(case, dtype)
        arrays[operation.inputs[0]] = np.full(case.shape, value, dtype)
        run_right(operation, pass_, case, arrays)


def test_long_parameter_gradients_of_affine():
    """A thousand blocks of rows: dbias, whose sum is fastnorm's own."""
    dy = np.full((2**17 + 3, 3), 0.1, np.float32)
    _, cache = fn.affine_forward(
        np.ones((len(dy), 2), np.float32), np.ones((2, 3), np.float32), np.ones(3, np.float32)
    )
    dbias = fn.affine_backward(dy, cache)[2]
    np.testing.assert_allclose(dbias, len(dy) * np.float64(dy[0, 0]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=lambda d: d.__name__)
def test_many_chunks_of_affine(dtype):
    """A weight's gradient over a million rows, which BLAS has in chunks; fat enough for BLAS."""
    number = np.full((1, 1), 0.1, dtype)
    x, dy = (np.broadcast_to(number, (2**20 + 3, n)) for n in (18, 17))
    _, cache = fn.affine_forward(x, np.ones((18, 17), np.float32))
    dweight = fn.affine_backward(dy, cache)[1]
    np.testing.assert_allclose(dweight, len(dy) * np.float64(number[0, 0]) ** 2, rtol=5e-6)


# ---- the tolerances ------------------------------------------------------------------------------


def wrong_results(operation, pass_, results, arrays):
    """What a kernel might get wrong: one result at a time, each in a way that is easily missed."""
    first = next(iter(results))
    y = results[first]
    source = arrays["dy"] if pass_ == "backward" else arrays[operation.inputs[0]]
    if source.shape == y.shape:
        yield f"{first} is its input", {first: source}
    yield f"the last row of {first} is missing", {first: np.concatenate([y[:-1], 0 * y[-1:]])}
    last = y.copy()
    last.reshape(-1)[-1] = 0
    yield f"the last value of {first} is missing", {first: last}
    block = y.copy()
    block.reshape(-1)[y.size // 2 : -y.shape[-1]] = np.nan
    yield f"a block of {first} is missing", {first: block}
    for name, result in results.items():
        if result is not None and name not in operation.statistics:
            little = 1 + max(1e-4, 4 * float(finfo(result.dtype).eps))
            yield f"{name} is a little off", {name: (result * little).astype(result.dtype)}
            if name in operation.gradients[1:]:
                yield f"{name} misses a row", {name: result - arrays["dy"][-1:].sum()}


def test_the_tolerances_notice(operation, dtype, pass_):
    """Each tolerance is passed by a right result and failed by results that are slightly wrong."""
    case = operation.typical
    arrays = operation.draw(case, dtype)
    wide = operation.widened(arrays, dtype)
    exact = operation.run(reference, pass_, case, wide)
    right = {
        name: None if a is None else a.astype(working(dtype) if name in operation.state else dtype)
        for name, a in exact.items()
    }
    assert max(operation.judge(pass_, case, arrays, right).values()) <= 0.2
    for what, wrong in wrong_results(operation, pass_, right, arrays):
        errors = operation.judge(pass_, case, arrays, right | wrong)
        assert max(errors.values()) > 1, what
    if "beta" in arrays and pass_ != "backward":
        results = operation.run(reference, pass_, case, wide | {"beta": None})
        assert operation.judge(pass_, case, arrays, right | {"y": results["y"]})["y"] > 1
