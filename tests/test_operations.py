"""What every operation does: the right values, types, shapes and memory, for every case."""

import numpy as np
import pytest
from checks import assert_right, over

import fastnorm as fn
from fastnorm import reference
from fastnorm._registry import (
    BATCH_NORM,
    OPERATIONS,
    PASSES,
    Case,
    differing,
    every_case,
    finfo,
    working,
)
from fastnorm.testing import check_gradients


def test_values(operation, case, dtype, pass_):
    """Values, types, shapes and order of all results; arguments stay as they are."""
    arrays = operation.draw(case, dtype)
    given = {name: a for name, a in arrays.items() if a is not None and name not in operation.state}
    before = {name: a.tobytes() for name, a in given.items()}
    for array in given.values():
        array.flags.writeable = False

    results = operation.run(fn, pass_, case, arrays)

    assert_right(operation, pass_, case, arrays, results)
    for name, result in results.items():
        assert result is not None or name not in operation.statistics, name
        if result is not None:
            assert type(result) is np.ndarray, name
            wide = working(dtype)
            dtypes = (wide, np.float64) if name in operation.statistics else (dtype,)
            assert result.dtype in ((wide,) if name in operation.state else dtypes), name
            parameter = arrays.get(name.removeprefix("d"))
            transposed = name in operation.gradients[1:] and parameter.flags.f_contiguous
            assert result.flags.c_contiguous or (transposed and result.flags.f_contiguous), name
            assert result.flags.writeable, name
    assert {name: a.tobytes() for name, a in given.items()} == before


@over(
    (operation, case)
    for operation, case in every_case()
    if operation is not BATCH_NORM or not case.forward_options.get("training", True)
)
def test_inference_and_forward_agree(operation, case, dtype):
    """Batch norm does so with frozen statistics, which are those of inference."""
    arrays = operation.draw(case, dtype)
    forward = operation.run(fn, "forward", case, arrays)
    if operation is BATCH_NORM:
        arrays |= {"mean": arrays["running_mean"], "var": arrays["running_var"]}
    inference = operation.run(fn, "inference", case, arrays)
    assert not differing(inference, forward)


GRADIENT_CASES = {
    "batch_norm": (
        Case("2-D", (5, 3)),
        Case("channels-first", (3, 2, 2, 2)),
        Case("channels-last", (2, 2, 2, 3), {"axis": -1}),
        Case("frozen", (5, 3), forward_options={"training": False}),
        Case("plain", (5, 3), without=("gamma", "beta")),
        Case("without running", (5, 3), without=("running_mean", "running_var")),
    ),
    "layer_norm": (
        Case("rows", (3, 5)),
        Case("two axes", (3, 2, 4), {"axis": (0, 2)}),
        Case("plain", (3, 5), without=("gamma", "beta")),
        Case("eps", (3, 5), {"eps": 0.5}),
    ),
    "rms_norm": (
        Case("rows", (3, 5)),
        Case("two axes", (3, 2, 4), {"axis": (0, 2)}),
        Case("plain", (3, 5), without=("gamma",)),
        Case("eps", (3, 5), {"eps": 0.5}),
    ),
    "group_norm": (
        Case("2-D", (3, 6), {"num_groups": 2}),
        Case("channels-first", (3, 4, 2, 3), {"num_groups": 2}),
        Case("channels-last", (2, 3, 2, 6), {"num_groups": 3, "axis": -1}),
        Case("middle", (2, 3, 4, 2), {"num_groups": 2, "axis": 2}),
        Case("plain", (3, 4, 2), {"num_groups": 2}, without=("gamma", "beta")),
    ),
    "instance_norm": (
        Case("channels-first", (3, 4, 2, 3)),
        Case("channels-last", (2, 3, 2, 4), {"axis": -1}),
        Case("plain", (3, 4, 5), without=("gamma", "beta")),
    ),
    "weight_norm": (
        Case("rows", (3, 5)),
        Case("columns", (3, 5), {"axis": -1}),
        Case("middle", (2, 3, 4), {"axis": 1}),
        Case("whole", (3, 5), {"axis": None}),
    ),
    "affine": (
        Case("rows", (3, 5), data={"outputs": 4}),
        Case("leading", (2, 3, 5), data={"outputs": 4}),
        Case("without bias", (3, 5), data={"outputs": 4}, without=("bias",)),
        Case("transposed", (3, 5), data={"outputs": 4, "transposed": True}),
    ),
}


@pytest.mark.parametrize("module", [fn, reference], ids=["fastnorm", "reference"])
@pytest.mark.parametrize(
    ("operation", "case"),
    [(operation, case) for operation in OPERATIONS for case in GRADIENT_CASES[operation.name]],
    ids=lambda value: getattr(value, "label", str(value)),
)
def test_gradients(module, operation, case):
    """Backward is the derivative of forward; the reference is held to it as well."""
    arrays = operation.draw(case, np.float64)
    arguments = operation.arguments("forward", case, arrays)

    def forward(*inputs, **options):
        named = dict(zip(operation.inputs, inputs, strict=True))  # other arguments may be between
        return getattr(module, operation.function("forward"))(**named, **options)

    check_gradients(
        forward,
        getattr(module, operation.function("backward")),
        *(arguments.pop(name) for name in operation.inputs),
        dy=arrays["dy"],
        **arguments,
    )


def test_cache_serves_twice(operation, dtype):
    """A cache is not used up, and its backward passes do not depend on one another."""
    case = operation.typical
    arrays = operation.draw(case, dtype)
    _, cache = operation.bind(fn, "forward", case, arrays)()
    backward = getattr(fn, operation.function("backward"))

    def gradients(dy):
        return dict(zip(operation.gradients, backward(dy, cache), strict=True))

    first = gradients(arrays["dy"])
    gradients(2 * arrays["dy"])
    assert not differing(first, gradients(arrays["dy"]))
    assert not differing(first, operation.run(fn, "backward", case, arrays))


# ---- empty and tiny input ------------------------------------------------------------------------

EMPTY = {
    "batch_norm": [
        Case("", (0, 5)),
        Case("", (5, 0)),
        Case("", (0, 3, 4, 4)),
        Case("", (2, 3, 0, 4)),
        Case("", (2, 0, 4, 4)),
        Case("", (2, 4, 0, 3), {"axis": -1}),
        Case("", (0, 5), forward_options={"training": False}),
    ],
    "layer_norm": [
        Case("", (0, 5)),
        Case("", (5, 0)),
        Case("", (0,)),
        Case("", (2, 0, 3), {"axis": 0}),
        Case("", (2, 0, 3), {"axis": (1, 2)}),
    ],
    "rms_norm": [
        Case("", (0, 5)),
        Case("", (5, 0)),
        Case("", (0,)),
        Case("", (2, 0, 3), {"axis": 0}),
        Case("", (2, 0, 3), {"axis": (1, 2)}),
    ],
    "group_norm": [
        Case("", (0, 6), {"num_groups": 2}),
        Case("", (5, 0), {"num_groups": 2}),
        Case("", (0, 4, 3, 3), {"num_groups": 2}),
        Case("", (2, 4, 0, 3), {"num_groups": 2}),
        Case("", (2, 4, 0, 6), {"num_groups": 2, "axis": -1}),
    ],
    "instance_norm": [
        Case("", (0, 5, 3)),
        Case("", (5, 0, 3)),
        Case("", (2, 5, 0)),
        Case("", (2, 4, 0, 3), {"axis": -1}),
    ],
    "weight_norm": [
        Case("", (0, 5)),
        Case("", (5, 0)),
        Case("", (0, 5), {"axis": 1}),
        Case("", (5, 0), {"axis": -1}),
        Case("", (5, 0), {"axis": None}),
        Case("", (2, 0, 3), {"axis": 1}),
    ],
    "affine": [
        Case("", (0, 5), data={"outputs": 3}),
        Case("", (2, 0, 5), data={"outputs": 3}),
        Case("", (5, 4), data={"outputs": 0}),
        Case("", (4, 0), data={"outputs": 3}),
        Case("", (0,), data={"outputs": 3}),
    ],
}


@over((operation, case) for operation in OPERATIONS for case in EMPTY[operation.name])
def test_empty_input(operation, case, dtype, pass_):
    """Empty results, gradients of zero for parameters, state untouched; no warning, no error."""
    arrays = operation.draw(case, dtype)
    results = operation.run(fn, pass_, case, arrays)
    expected = operation.run(reference, pass_, case, arrays)
    for name, result in results.items():
        assert result.shape == expected[name].shape, name
        if name in operation.state:
            np.testing.assert_array_equal(result, arrays[name])
        elif name not in operation.statistics:
            assert result.dtype == dtype, name
            np.testing.assert_allclose(result, expected[name], rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 7), (1, 7, 1, 1), (1, 1, 7)])
def test_one_value_per_channel(shape, dtype, rng):
    """The variance is zero: y is beta, and no gradient reaches x or gamma."""
    axis = shape.index(7)
    x, dy = rng.standard_normal((2, *shape)).astype(dtype) * 1000
    gamma, beta = rng.standard_normal((2, 7)).astype(dtype)
    running_var = np.ones(7, working(dtype))
    y, cache = fn.batch_norm_forward(x, gamma, beta, running_var=running_var, ddof=0, axis=axis)
    np.testing.assert_array_equal(y.reshape(7), beta)
    np.testing.assert_allclose(running_var, 0.9, rtol=1e-6)
    dx, dgamma, dbeta = fn.batch_norm_backward(dy, cache)
    assert not dx.any()
    assert not dgamma.any()
    np.testing.assert_array_equal(dbeta, dy.reshape(7))


def test_zero_dimensions():
    assert fn.weight_norm(np.float64(-3), 2.0, axis=None) == -2


# ---- batch normalisation -------------------------------------------------------------------------


def moving(running, batch, decay):
    return decay * running + (1 - decay) * batch


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("ddof", [0, 1, 2])
@pytest.mark.parametrize("running_dtype", [np.float32, np.float64])
def test_running_statistics(dtype, running_dtype, decay, ddof, rng):
    """running = decay * running + (1 - decay) * batch, the variance with NumPy's ddof."""
    x = (3 + 2 * rng.standard_normal((6, 5, 7))).astype(dtype)
    wide = x.astype(np.float64)
    before = rng.uniform(1, 2, (2, 5)).astype(running_dtype)
    running_mean, running_var = before.copy()
    y, cache = fn.batch_norm_forward(
        x, running_mean=running_mean, running_var=running_var, decay=decay, ddof=ddof
    )
    rtol = 8 * max(finfo(running_dtype).eps, finfo(working(dtype)).eps)
    mean, var = wide.mean(axis=(0, 2)), wide.var(axis=(0, 2), ddof=ddof)
    np.testing.assert_allclose(running_mean, moving(before[0], mean, decay), rtol=rtol)
    np.testing.assert_allclose(running_var, moving(before[1], var, decay), rtol=rtol)
    if decay == 1:
        np.testing.assert_array_equal([running_mean, running_var], before)
    # The biased variance normalises, whatever ddof.
    assert not differing({"y": y}, {"y": fn.batch_norm_forward(x)[0]})
    assert cache.mean.shape == cache.rstd.shape == (5,)


def test_running_statistics_one_at_a_time(dtype, rng):
    x = rng.standard_normal((6, 5)).astype(dtype)
    together = np.ones((2, 5), working(dtype))
    fn.batch_norm_forward(x, running_mean=together[0], running_var=together[1])
    alone = np.ones((2, 5), working(dtype))
    fn.batch_norm_forward(x, running_mean=alone[0])
    fn.batch_norm_forward(x, running_var=alone[1])
    assert not differing({"running": together}, {"running": alone})


def test_strided_running_statistics(dtype, rng):
    """They are updated where they are, not in a copy."""
    x = rng.standard_normal((6, 5)).astype(dtype)
    plain = np.ones((2, 5), working(dtype))
    fn.batch_norm_forward(x, running_mean=plain[0], running_var=plain[1])
    memory = np.ones((5, 4), working(dtype))
    fn.batch_norm_forward(x, running_mean=memory[:, 1], running_var=memory[::-1, 3])
    np.testing.assert_array_equal(memory[:, 1], plain[0])
    np.testing.assert_array_equal(memory[::-1, 3], plain[1])
    np.testing.assert_array_equal(memory[:, ::2], 1)


def test_running_statistics_stay_after_an_error(rng):
    x = rng.standard_normal((6, 5))
    for wrong in (
        {"gamma": np.ones(4)},
        {"beta": np.ones(6)},
        {"out": np.empty((6, 4))},
        {"running_var": np.ones(4)},
        {"axis": 5},
    ):
        running = {"running_mean": np.full(5, 2.0), "running_var": np.full(5, 3.0)}
        with pytest.raises(ValueError, match=r"^batch_norm_forward: "):
            fn.batch_norm_forward(x, **(running | wrong))
        np.testing.assert_array_equal(running["running_mean"], 2)
        np.testing.assert_array_equal(running["running_var"], 3)


def test_one_value_per_channel_has_no_unbiased_variance():
    running_mean, running_var = np.full(3, 2.0), np.full(3, 3.0)
    out = np.full((1, 3), 7.0)
    with pytest.raises(ValueError, match=r"^batch_norm_forward: .*ddof"):
        fn.batch_norm_forward(
            np.ones((1, 3)), running_mean=running_mean, running_var=running_var, out=out
        )
    np.testing.assert_array_equal(running_mean, 2)
    np.testing.assert_array_equal(running_var, 3)
    np.testing.assert_array_equal(out, 7)
    fn.batch_norm_forward(np.ones((1, 3)), running_mean=running_mean)  # needs no variance
    np.testing.assert_allclose(running_mean, 1.9)


def test_frozen_batch_norm(dtype, rng):
    """Running statistics normalise, stay as they are, and are constants to backward."""
    x, dy = rng.standard_normal((2, 6, 5, 3)).astype(dtype)
    gamma = rng.standard_normal(5).astype(dtype)
    running_mean = rng.standard_normal(5).astype(working(dtype))
    running_var = rng.uniform(1, 2, 5).astype(working(dtype))
    before = running_mean.tobytes(), running_var.tobytes()
    _, cache = fn.batch_norm_forward(
        x, gamma, running_mean=running_mean, running_var=running_var, training=False
    )
    assert (running_mean.tobytes(), running_var.tobytes()) == before
    running_mean += 1  # the cache holds what normalised, not what the arrays are later
    running_var *= 2
    dx, _, _ = fn.batch_norm_backward(dy, cache)
    mean, var = (np.frombuffer(b, working(dtype)).astype(np.float64) for b in before)
    scale = gamma / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(dx, dy * scale[:, None], rtol=8 * finfo(dtype).eps)
    np.testing.assert_array_equal(cache.mean, mean)


# ---- weight normalisation ------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "zero"), [(0, np.s_[3]), (1, np.s_[:, 3]), (None, np.s_[:])])
def test_zero_slices(axis, zero, dtype, rng):
    """A slice of zeros has no direction: w and the gradients are zero there, and nowhere else."""
    v, dy = rng.standard_normal((2, 9, 7)).astype(dtype)
    v[zero] = 0
    g = np.ones(() if axis is None else v.shape[axis], dtype)
    w, cache = fn.weight_norm_forward(v, g, axis=axis)
    dv, dg = fn.weight_norm_backward(dy, cache)
    for result in (w, dv):
        assert not result[zero].any()
        assert np.count_nonzero(result) == np.count_nonzero(v)
    assert np.count_nonzero(dg) == (0 if axis is None else g.size - 1)


# ---- affine --------------------------------------------------------------------------------------


def one_row(stride):
    """An array of shape (1, 5) whose rows, were there a second, would be so many bytes apart."""
    return np.lib.stride_tricks.as_strided(np.arange(5, dtype=np.float32), (1, 5), (stride, 4))


@pytest.mark.parametrize("stride", [0, -20, 3, 20])
def test_any_stride_of_one_row(stride):
    """BLAS would not take all of these for those of a matrix."""
    x, weight = np.ones((3, 1), np.float32), one_row(stride)
    y, cache = fn.affine_forward(x, weight)
    np.testing.assert_array_equal(y, np.tile(np.arange(5), (3, 1)))
    dx, dweight, _ = fn.affine_backward(y, cache)
    np.testing.assert_array_equal(dx, np.full((3, 1), 30))
    np.testing.assert_array_equal(dweight, 3 * weight)
    np.testing.assert_array_equal(fn.affine(one_row(stride), np.ones((5, 1), np.float32)), [[10]])


# ---- the tests themselves ------------------------------------------------------------------------


def test_every_function_is_tested():
    """Each function of an operation in the package belongs to a registered operation."""
    names = {operation.function(pass_) for operation in OPERATIONS for pass_ in PASSES}
    public = {name for name in dir(fn) if name.endswith(("_forward", "_backward"))}
    assert public == {name for name in names if name.endswith(("_forward", "_backward"))}
