"""The reference against values it did not compute: by hand, exact arithmetic, differences, PyTorch.

Everything else is tested against the reference, so that nothing here may be.
"""

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastnorm.reference as ref
from fastnorm.testing import check_gradients

EPS = np.finfo(np.float64).eps

# Worked out by hand on a handful of values of the order of 1: a few roundings.
BY_HAND = {"rtol": 8 * EPS, "atol": 8 * EPS}
# One formula in another order of operations (other strides, other derivation, other library), on up
# to a few hundred values of the order of 1.
REORDERED = {"rtol": 1e-12, "atol": 1e-12}
# The same in float32.
SINGLE = {"rtol": 2e-6, "atol": 2e-6}
# Central differences: the step squared, 4e-11, times third derivatives that reach 100 for variances
# of the order of 0.1 make errors up to 4e-9. A wrong term makes 1e-3 and more.
DIFFERENCES = 1e-7


@pytest.fixture
def rng():
    return np.random.default_rng(10)


# ---- By hand: layer norm and RMS norm ------------------------------------------------------------


def test_layer_norm_of_1_2_3_4():
    # mean 5/2; var (9/4 + 1/4 + 1/4 + 9/4) / 4 = 5/4; rstd 2/sqrt(5); xhat (-3, -1, 1, 3)/sqrt(5)
    root5 = 5**0.5
    x = np.array([1.0, 2.0, 3.0, 4.0])
    y, cache = ref.layer_norm_forward(x, [1.0, 2.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0], eps=0)
    assert_allclose(y, [-3 / root5, -2 / root5, 1 + 1 / root5, 1 + 6 / root5], **BY_HAND)
    assert_allclose(cache.mean, [2.5], **BY_HAND)
    assert_allclose(cache.rstd, [2 / root5], **BY_HAND)

    # dy = e0, gamma = 1: mean(dxhat) = 1/4, mean(dxhat * xhat) = -3/(4 sqrt(5)), and so
    # dx = 2/sqrt(5) * ((1, 0, 0, 0) - 1/4 - (9, 3, -3, -9)/20) = 2/sqrt(5) * (6, -8, -2, 4)/20
    _, cache = ref.layer_norm_forward(x, np.ones(4), np.zeros(4), eps=0)
    dx, dgamma, dbeta = ref.layer_norm_backward(np.array([1.0, 0, 0, 0]), cache)
    assert_allclose(dx, np.array([6, -8, -2, 4]) / (10 * root5), **BY_HAND)
    assert_allclose(dgamma, [-3 / root5, 0, 0, 0], **BY_HAND)
    assert_allclose(dbeta, [1, 0, 0, 0], **BY_HAND)


def test_layer_norm_eps_is_under_the_root():
    # mean 2, var 1, eps 3: 1 / sqrt(1 + 3) = 1/2
    y, cache = ref.layer_norm_forward([[1.0, 3.0]], eps=3)
    assert_allclose(y, [[-0.5, 0.5]], **BY_HAND)
    assert_allclose(cache.rstd, [[0.5]], **BY_HAND)


def test_layer_norm_over_axis_0():
    # columns (1, 3) and (10, 30): means 2 and 20, deviations 1 and 10
    y, cache = ref.layer_norm_forward([[1.0, 10.0], [3.0, 30.0]], [1.0, 2.0], axis=0, eps=0)
    assert_allclose(y, [[-1, -1], [2, 2]], **BY_HAND)  # gamma goes down the columns
    assert_allclose(cache.mean, [[2, 20]], **BY_HAND)
    dy = np.array([[1.0, 0.0], [0.0, 1.0]])
    _, dgamma, dbeta = ref.layer_norm_backward(dy, cache)
    assert_allclose(dgamma, [-1, 1], **BY_HAND)  # sums over each row of dy * xhat
    assert dbeta is None


def test_rms_norm():
    # mean(x^2) = (9 + 16)/2 = 25/2; x / (5/sqrt(2))
    y, cache = ref.rms_norm_forward([3.0, 4.0], [1.0, 10.0], eps=0)
    assert_allclose(y, [3 * 2**0.5 / 5, 40 * 2**0.5 / 5], **BY_HAND)
    assert_allclose(cache.rstd, [2**0.5 / 5], **BY_HAND)
    assert cache.mean is None

    # mean(x^2) = 1, eps = 3: rstd 1/2, xhat (1/2, -1/2). With dy = e0: mean(dy * xhat) = 1/4,
    # dx = 1/2 * ((1, 0) - (1/8, -1/8)) = (7/16, 1/16)
    y, cache = ref.rms_norm_forward([1.0, -1.0], [1.0, 1.0], eps=3)
    dx, dgamma = ref.rms_norm_backward([1.0, 0.0], cache)
    assert_allclose(y, [1 / 2, -1 / 2], **BY_HAND)
    assert_allclose(dx, [7 / 16, 1 / 16], **BY_HAND)
    assert_allclose(dgamma, [1 / 2, 0], **BY_HAND)


# ---- By hand: group, instance and batch norm -----------------------------------------------------


def test_group_norm():
    # groups (1, 3) and (10, 14): means 2 and 12, deviations 1 and 2
    x = np.array([[1.0, 3.0, 10.0, 14.0]])
    gamma, beta = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 0.0, 1.0])
    y, cache = ref.group_norm_forward(x, 2, gamma, beta, eps=0)
    assert_allclose(y, [[-1, 2, -3, 5]], **BY_HAND)
    assert_allclose(cache.mean, [[2, 12]], **BY_HAND)
    assert_allclose(cache.rstd, [[1, 1 / 2]], **BY_HAND)
    # two values always become -1 and 1: dx is 0; xhat = (-1, 1, -1, 1)
    dx, dgamma, dbeta = ref.group_norm_backward([[1.0, 2.0, 3.0, 4.0]], cache)
    assert_allclose(dx, [[0, 0, 0, 0]], **BY_HAND)
    assert_allclose(dgamma, [-1, 2, -3, 4], **BY_HAND)
    assert_allclose(dbeta, [1, 2, 3, 4], **BY_HAND)


def test_instance_norm():
    # two channels of two positions, as the groups above
    x = np.array([[[1.0, 3.0], [10.0, 14.0]]])
    y, cache = ref.instance_norm_forward(x, [1.0, 3.0], [0.0, 1.0], eps=0)
    assert_allclose(y, [[[-1, 1], [-2, 4]]], **BY_HAND)
    assert_allclose(cache.mean, [[2, 12]], **BY_HAND)
    _, dgamma, dbeta = ref.instance_norm_backward([[[1.0, 2.0], [3.0, 4.0]]], cache)
    assert_allclose(dgamma, [1, 1], **BY_HAND)
    assert_allclose(dbeta, [3, 7], **BY_HAND)


def test_batch_norm_of_two_samples():
    # channel 0: (1, 3), mean 2, var 1, eps 3: rstd 1/2, xhat (-1/2, 1/2)
    # channel 1: (10, 10), mean 10, var 0: rstd 1/sqrt(3), xhat 0
    x = np.array([[1.0, 10.0], [3.0, 10.0]])
    y, cache = ref.batch_norm_forward(x, [2.0, 5.0], [1.0, 7.0], eps=3)
    assert_allclose(y, [[0, 7], [2, 7]], **BY_HAND)
    assert_allclose(cache.mean, [2, 10], **BY_HAND)
    assert_allclose(cache.rstd, [1 / 2, 1 / 3**0.5], **BY_HAND)

    # dy = 1 for the first sample. Channel 0: dxhat (2, 0), its mean 1, mean(dxhat * xhat) = -1/2,
    # dx = 1/2 * ((2, 0) - 1 - (1/4, -1/4)) = (3/8, -3/8). Channel 1: 1/sqrt(3) * ((5, 0) - 5/2).
    for backward in (ref.batch_norm_backward, ref.batch_norm_backward_staged):
        dx, dgamma, dbeta = backward(np.array([[1.0, 1.0], [0.0, 0.0]]), cache)
        assert_allclose(dx, [[3 / 8, 2.5 / 3**0.5], [-3 / 8, -2.5 / 3**0.5]], **BY_HAND)
        assert_allclose(dgamma, [-1 / 2, 0], **BY_HAND)
        assert_allclose(dbeta, [1, 1], **BY_HAND)


@pytest.mark.parametrize(("ddof", "running"), [(1, [1.25, 0.75]), (0, [1.0, 0.75])])
def test_running_statistics(ddof, running):
    # means (2, 10); sums of squares (2, 0), so that the variances are 2/(2 - ddof) and 0;
    # 3/4 of the past (0 and 1) and 1/4 of these
    x = np.array([[1.0, 10.0], [3.0, 10.0]])
    mean, var = np.zeros(2), np.ones(2)
    y, _ = ref.batch_norm_forward(
        x, running_mean=mean, running_var=var, decay=0.75, ddof=ddof, eps=3
    )
    assert_allclose(mean, [0.5, 2.5], **BY_HAND)
    assert_allclose(var, running, **BY_HAND)
    assert_allclose(y, [[-0.5, 0], [0.5, 0]], **BY_HAND)  # whatever ddof


def test_frozen_batch_norm():
    # (x - (1, 0)) / sqrt((1, 13) + 3) = (x - (1, 0)) / (2, 4) = ((0, 5/2), (1, 5/2))
    x = np.array([[1.0, 10.0], [3.0, 10.0]])
    mean, var, gamma, beta = (np.array(a) for a in ([1.0, 0], [1.0, 13], [2.0, 4], [0.0, 1]))
    y, cache = ref.batch_norm_forward(
        x, gamma, beta, running_mean=mean, running_var=var, training=False, eps=3
    )
    assert_allclose(y, [[0, 11], [2, 11]], **BY_HAND)
    assert_allclose(ref.batch_norm(x, mean, var, gamma, beta, eps=3), y, **BY_HAND)
    assert_allclose(cache.mean, [1, 0], **BY_HAND)
    assert_allclose(cache.rstd, [1 / 2, 1 / 4], **BY_HAND)
    assert mean.tolist() == [1, 0]
    assert var.tolist() == [1, 13]
    for backward in (ref.batch_norm_backward, ref.batch_norm_backward_staged):
        dx, dgamma, dbeta = backward([[1.0, 2.0], [3.0, 4.0]], cache)
        assert_allclose(dx, [[1, 2], [3, 4]], **BY_HAND)  # gamma * rstd = 1
        assert_allclose(dgamma, [3, 15], **BY_HAND)
        assert_allclose(dbeta, [4, 6], **BY_HAND)


# ---- By hand: weight norm and affine -------------------------------------------------------------


@pytest.mark.parametrize(
    ("v", "g", "axis"),
    [
        ([[3.0, 4.0]], [10.0], 0),
        ([[3.0, 4.0]], [[10.0]], 0),
        ([[3.0], [4.0]], [10.0], 1),
        ([[3.0], [4.0]], [[10.0]], -1),
        ([[3.0, 4.0]], 10.0, None),
        ([3.0, 4.0], 10.0, None),
    ],
)
def test_weight_norm_of_3_4(v, g, axis):
    # the norm is 5, w = 10 * (3, 4)/5 = (6, 8)
    v, g = np.array(v), np.array(g)
    w, cache = ref.weight_norm_forward(v, g, axis=axis)
    assert_allclose(w.ravel(), [6, 8], **BY_HAND)
    assert w.shape == v.shape
    # dy = e0, vhat = (3, 4)/5: dg = 3/5, dv = 2 * ((1, 0) - 3/5 * (3/5, 4/5)) = (32, -24)/25
    dv, dg = ref.weight_norm_backward(np.array([1.0, 0.0]).reshape(v.shape), cache)
    assert_allclose(dv.ravel(), [32 / 25, -24 / 25], **BY_HAND)
    assert_allclose(dg, np.full(g.shape, 3 / 5), **BY_HAND)
    assert dg.shape == g.shape


def test_weight_norm_slices():
    # rows of norms 5 and 13; columns of norms 5 and 13
    v = np.array([[3.0, 4.0], [5.0, 12.0]])
    assert_allclose(ref.weight_norm(v, [10.0, 13.0]), [[6, 8], [5, 12]], **BY_HAND)
    assert_allclose(ref.weight_norm(v.T, [10.0, 13.0], axis=1), [[6, 5], [8, 12]], **BY_HAND)


@pytest.mark.parametrize("axis", [0, None])
def test_weight_norm_of_a_zero_slice(axis):
    v = np.array([[0.0, 0.0], [3.0, 4.0]]) if axis == 0 else np.zeros((2, 2))
    g = np.array([2.0, 10.0]) if axis == 0 else np.array(2.0)
    w, cache = ref.weight_norm_forward(v, g, axis=axis)
    dv, dg = ref.weight_norm_backward(np.ones((2, 2)), cache)
    zero = 0 if axis == 0 else ...
    assert not w[zero].any()
    assert not dv[zero].any()
    assert not dg[zero].any()
    if axis == 0:
        assert_allclose(w[1], [6, 8], **BY_HAND)
        assert_allclose(dg[1], 7 / 5, **BY_HAND)  # (1, 1) . (3, 4)/5


def test_affine():
    x, weight = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [2.0, 1.0]])
    y, cache = ref.affine_forward(x, weight, [10.0, 20.0])
    assert_array_equal(y, [[15, 22], [21, 24]])  # (1 + 4, 2), (3 + 8, 4), and bias
    dx, dweight, dbias = ref.affine_backward([[1.0, 0.0], [1.0, 2.0]], cache)
    assert_array_equal(dx, [[1, 2], [1, 4]])  # rows of dy times ((1, 2), (0, 1))
    assert_array_equal(dweight, [[4, 6], [6, 8]])  # ((1, 3), (2, 4)) times dy
    assert_array_equal(dbias, [2, 2])


def test_affine_of_one_sample():
    y, cache = ref.affine_forward([1.0, 2.0], [[1.0, 0.0, 3.0], [2.0, 1.0, 0.0]])
    assert_array_equal(y, [5, 2, 3])
    dx, dweight, dbias = ref.affine_backward([1.0, 10.0, 100.0], cache)
    assert_array_equal(dx, [301, 12])
    assert_array_equal(dweight, [[1, 10, 100], [2, 20, 200]])
    assert dbias is None


# ---- Exact arithmetic ----------------------------------------------------------------------------


def _exact_layer_norm(x, eps):
    """Layer norm of the very numbers that the floats are, rounded once, at the end."""
    x = [Fraction(float(v)) for v in x]
    mean = sum(x) / len(x)
    radicand = sum((v - mean) ** 2 for v in x) / len(x) + Fraction(float(eps))
    with localcontext() as context:
        context.prec = 60

        def decimal(q):
            return Decimal(q.numerator) / Decimal(q.denominator)

        return np.array([float(decimal(v - mean) / decimal(radicand).sqrt()) for v in x])


@pytest.mark.parametrize(
    ("x", "eps"),
    [
        # mean / std = 3e6: sum(x^2) - sum(x)^2 / n has no digit left of a variance of 0.1
        pytest.param(1e6 + np.array([0.1, 0.7, 0.2, 0.9, 0.3, 0.4, 0.8]), 1e-5, id="large mean"),
        pytest.param(np.array([1e150, -3e150, 2e149]), 1e-5, id="huge"),
        pytest.param(np.array([1e-12, 3e-12, -2e-12]), 1e-5, id="below eps"),
        pytest.param(np.array([1e-12, 3e-12, -2e-12]), 0.0, id="tiny"),
        pytest.param(np.array([1.0, 1.0, 1.0 + EPS]), 0.0, id="neighbours"),
        pytest.param(np.array([1e16, 1.0, -1e16, 3.0, 2.0]), 1e-5, id="cancelling sum"),
    ],
)
def test_layer_norm_in_exact_arithmetic(x, eps):
    y, cache = ref.layer_norm_forward(x, eps=eps)
    # The mean is rounded, by half a unit of the largest x for each addition; y as far, times rstd.
    centring = len(x) * EPS / 2 * np.max(np.abs(x)) * cache.rstd.item()
    assert_allclose(y, _exact_layer_norm(x, eps), rtol=8 * EPS, atol=centring)


def test_float32_of_a_large_mean_keeps_the_digits_of_two_passes():
    # 1e4 and 1 apart; one pass would have none left: eps * mean^2 = 12
    x = (1e4 + np.array([-1.5, -0.25, 0.5, 1.25, 2.0])).astype(np.float32)
    expected = _exact_layer_norm(x, 1e-5)
    assert_allclose(ref.layer_norm(x), expected, rtol=0, atol=5e-4)


# ---- Every operation, with every combination of its options --------------------------------------


class Case(NamedTuple):
    """An operation with its positional arguments (shapes of arrays, None, numbers) and options."""

    op: str
    args: tuple[Any, ...]
    options: dict[str, Any] = {}  # noqa: RUF012
    backward: str = ""

    @property
    def forward(self):
        return getattr(ref, f"{self.op}_forward")

    @property
    def back(self):
        return getattr(ref, self.backward or f"{self.op}_backward")

    def arrays(self, rng, dtype=np.float64):
        """The positional arguments, with normally distributed arrays for the shapes."""
        return [rng.normal(size=a).astype(dtype) if isinstance(a, tuple) else a for a in self.args]

    def fresh_options(self):
        """Options with copies of the running statistics."""
        return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in self.options.items()}

    def run(self, *args):
        return self.forward(*args, **self.fresh_options())


def _cases():
    layer_shapes = [
        ((5,), -1, (5,)),
        ((3, 5), -1, (5,)),
        ((3, 5), 0, (3,)),
        ((3, 5), (0, 1), (3, 5)),
        ((2, 3, 4), (-2, -1), (3, 4)),
        ((2, 3, 4), (2, 0), (2, 4)),  # gamma in ascending order of the axes
        ((2, 3, 4, 2), 1, (3,)),
        ((2, 3, 1), -1, (1,)),
    ]
    for x, axis, p in layer_shapes:
        options = {"axis": axis, "eps": 1e-3}
        for gamma, beta in [(p, p), (p, None), (None, p), (None, None)]:
            yield Case("layer_norm", (x, gamma, beta), options)
        for gamma in (p, None):
            yield Case("rms_norm", (x, gamma), options)

    for x, axis, groups in [
        ((3, 4), 1, 2),
        ((2, 6, 3), 1, 3),
        ((2, 6, 3), 1, 1),
        ((2, 3, 2, 6), -1, 2),
        ((2, 3, 4, 2), 2, 2),
    ]:
        c = (x[axis],)
        options = {"axis": axis, "eps": 1e-3}
        for gamma, beta in [(c, c), (c, None), (None, c), (None, None)]:
            yield Case("group_norm", (x, groups, gamma, beta), options)
            yield Case("instance_norm", (x, gamma, beta), options)

    for x, axis in [((5, 3), 1), ((3, 5), 0), ((2, 3, 4), 1), ((2, 3, 2, 4), -1), ((1, 3), 1)]:
        c = (x[axis],)
        running = {
            "running_mean": np.linspace(-1, 1, c[0]),
            "running_var": np.linspace(0.5, 2, c[0]),
            "ddof": 0,
        }
        for options in ({}, running, {**running, "training": False}):
            options = {**options, "axis": axis, "eps": 1e-3}
            for gamma, beta in [(c, c), (c, None), (None, c), (None, None)]:
                yield Case("batch_norm", (x, gamma, beta), options)
                yield Case(
                    "batch_norm", (x, gamma, beta), options, backward="batch_norm_backward_staged"
                )

    for v, g, axis in [
        ((3, 4), (3,), 0),
        ((3, 4), (3, 1), 0),
        ((3, 4), (4,), 1),
        ((3, 4), (1, 4), -1),
        ((3, 4), (), None),
        ((2, 3, 4), (3,), 1),
        ((2, 3, 4), (1, 3, 1), -2),
        ((5,), (5,), 0),
        ((5,), (), None),
    ]:
        yield Case("weight_norm", (v, g), {"axis": axis})

    for x, weight in [((3,), (3, 4)), ((2, 3), (3, 4)), ((2, 3, 4), (4, 2)), ((1, 1), (1, 1))]:
        for bias in (weight[1:], None):
            yield Case("affine", (x, weight, bias))


def _label(case):
    args = ",".join("x".join(map(str, a)) if isinstance(a, tuple) else str(a) for a in case.args)
    options = [f"{k}={v}" for k, v in case.options.items() if k in ("axis", "training")]
    running = ["running"] if "running_mean" in case.options else []
    staged = ["staged"] if case.backward else []
    return "-".join([case.op, args, *options, *running, *staged])


CASES = list(_cases())
every_case = pytest.mark.parametrize("case", CASES, ids=_label)
# one of each operation, with all its parameters, and frozen batch norm
one_of_each = pytest.mark.parametrize(
    "case",
    [
        Case("layer_norm", ((6, 4, 2), (4, 2), (4, 2)), {"axis": (1, 2)}),
        Case("rms_norm", ((6, 4), (4,))),
        Case("group_norm", ((6, 4, 2), 2, (4,), (4,))),
        Case("instance_norm", ((6, 4, 3), (4,), (4,))),
        Case("batch_norm", ((6, 4, 2), (4,), (4,))),
        Case(
            "batch_norm",
            ((6, 4, 2), (4,), (4,)),
            {"running_mean": np.ones(4), "running_var": np.ones(4), "training": False},
        ),
        Case("batch_norm", ((6, 4, 2), (4,), (4,)), backward="batch_norm_backward_staged"),
        Case("weight_norm", ((6, 4), (6,))),
        Case("affine", ((6, 4), (4, 4), (4,))),
    ],
    ids=_label,
)


@every_case
def test_gradients_are_those_of_central_differences(case, rng):
    args = case.arrays(rng)
    errors = check_gradients(case.forward, case.back, *args, rtol=DIFFERENCES, **case.options)
    assert len(errors) == sum(isinstance(a, np.ndarray) for a in args)


@every_case
def test_inference_is_forward_without_a_cache(case, rng):
    args = case.arrays(rng)
    y, _ = case.run(*args)
    if case.op != "batch_norm":
        assert_array_equal(getattr(ref, case.op)(*args, **case.options), y)
    elif not case.options.get("training", True):
        x, gamma, beta = args
        stats = case.options["running_mean"], case.options["running_var"]
        options = {k: case.options[k] for k in ("axis", "eps")}
        assert_array_equal(ref.batch_norm(x, *stats, gamma, beta, **options), y)


@every_case
def test_shapes_and_dtypes(case, rng):
    args = case.arrays(rng, np.float32)
    y, cache = case.run(*args)
    dy = rng.normal(size=y.shape)  # float64
    arrays = [a for a in args if a is None or isinstance(a, np.ndarray)]
    gradients = case.back(dy, cache)
    assert y.dtype == np.float32
    assert len(gradients) == len(arrays)
    for d, a in zip(gradients, arrays, strict=True):
        if a is None:
            assert d is None
        else:
            assert (d.shape, d.dtype) == (a.shape, a.dtype)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.op == "batch_norm" and not case.backward],
    ids=_label,
)
@pytest.mark.parametrize("layout", ["C", "F", "sliced", "reversed", "broadcast"])
def test_two_derivations_of_batch_norm_agree(case, layout, rng):
    x, gamma, beta = case.arrays(rng)
    dy = rng.normal(size=x.shape)
    _, cache = case.run(_laid_out(x, layout), gamma, beta)
    closed = ref.batch_norm_backward(_laid_out(dy, layout), cache)
    staged = ref.batch_norm_backward_staged(_laid_out(dy, layout), cache)
    for a, b in zip(closed, staged, strict=True):
        if a is None:
            assert b is None
        else:
            assert_allclose(a, b, **REORDERED)


def test_two_derivations_of_batch_norm_agree_on_a_large_batch(rng):
    x = 3 + 2 * rng.normal(size=(64, 5, 9, 7))
    _, cache = ref.batch_norm_forward(x, rng.normal(size=5), rng.normal(size=5))
    dy = rng.normal(size=x.shape)
    closed, staged = ref.batch_norm_backward(dy, cache), ref.batch_norm_backward_staged(dy, cache)
    for a, b in zip(closed, staged, strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-11)  # sums of 4,032 values for dgamma and dbeta


# ---- Layouts, other array-likes, memory ----------------------------------------------------------


def _laid_out(a, layout):
    """The values of a with other strides; for "broadcast", those of its first row, repeated."""
    if layout == "F":
        return np.asfortranarray(a)
    if layout == "sliced":
        wide = np.full([2 * n + 1 for n in a.shape], np.nan)
        view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
        view[...] = a
        return view
    if layout == "reversed":
        flip = (slice(None, None, -1),) * a.ndim
        return a[flip].copy()[flip]
    if layout == "broadcast":
        return np.broadcast_to(a[:1], a.shape)
    return a


@one_of_each
@pytest.mark.parametrize("layout", ["F", "sliced", "reversed", "broadcast"])
def test_strides_do_not_matter(case, layout, rng):
    args = case.arrays(rng)
    strided = [_laid_out(a, layout) if isinstance(a, np.ndarray) else a for a in args]
    args = [a.copy(order="C") if isinstance(a, np.ndarray) else a for a in strided]
    (y, cache), (ys, strided_cache) = case.run(*args), case.run(*strided)
    assert_allclose(ys, y, **REORDERED)
    strided_dy = _laid_out(rng.normal(size=y.shape), layout)
    gradients = case.back(strided_dy.copy(order="C"), cache)
    for a, b in zip(case.back(strided_dy, strided_cache), gradients, strict=True):
        assert_allclose(a, b, **REORDERED)


@one_of_each
def test_inputs_are_read_only_and_the_cache_refers_to_x(case, rng):
    args = case.arrays(rng)
    for a in args:
        if isinstance(a, np.ndarray):
            a.flags.writeable = False
    y, cache = case.run(*args)
    dy = rng.normal(size=y.shape)
    dy.flags.writeable = False
    case.back(dy, cache)
    assert (cache.v if case.op == "weight_norm" else cache.x) is args[0]


@one_of_each
def test_lists(case, rng):
    args = case.arrays(rng)
    y, _ = case.run(*args)
    lists = [a.tolist() if isinstance(a, np.ndarray) else a for a in args]
    assert_allclose(case.run(*lists)[0], y, **REORDERED)


@one_of_each
def test_out(case, rng):
    args = case.arrays(rng)
    y, cache = case.run(*args)
    out = _laid_out(np.full(y.shape, np.nan), "sliced")
    assert case.forward(*args, **case.fresh_options(), out=out)[0] is out
    assert_array_equal(out, y)
    dy = rng.normal(size=y.shape)
    gradients = case.back(dy, cache)
    out = _laid_out(np.full(args[0].shape, np.nan), "reversed")
    into = case.back(dy, cache, out=out)
    assert into[0] is out
    for a, b in zip(into, gradients, strict=True):
        assert_array_equal(a, b)
    if case.op != "batch_norm":
        x = args[0].copy()
        assert getattr(ref, case.op)(x, *args[1:], **case.options, out=x) is x
        assert_array_equal(x, y)


def test_batch_norm_in_place(rng):
    x = rng.normal(size=(3, 4))
    y = ref.batch_norm(x, np.ones(4), np.ones(4))
    assert ref.batch_norm(x, np.ones(4), np.ones(4), out=x) is x
    assert_array_equal(x, y)


@one_of_each
def test_out_of_another_kind(case, rng):
    args = case.arrays(rng)
    x = args[0]
    y, cache = case.run(*args)
    dy = rng.normal(size=y.shape)
    before = x.copy()

    def forward(out):
        case.forward(*args, **case.fresh_options(), out=out)

    for call in (forward, lambda out: case.back(dy, cache, out=out)):
        with pytest.raises(ValueError, match="out must have shape"):
            call(np.zeros((2, *y.shape)))
        with pytest.raises(TypeError, match="out must have dtype float64"):
            call(np.zeros(y.shape, np.float32))
        with pytest.raises(ValueError, match="out overlaps an input"):
            call(x)  # the cache refers to it
        with pytest.raises(ValueError, match="read-only"):
            call(np.broadcast_to(0.0, y.shape))
    assert_array_equal(x, before)


def test_out_that_overlaps_a_parameter(rng):
    memory = rng.normal(size=(3, 4))
    with pytest.raises(ValueError, match="out overlaps"):
        ref.layer_norm(rng.normal(size=(3, 4)), memory[0], out=memory)


# ---- Dtypes --------------------------------------------------------------------------------------


@one_of_each
def test_float32_is_computed_in_float32(case, rng):
    args = case.arrays(rng, np.float32)
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args]
    (y, cache), (expected, wide_cache) = case.run(*args), case.run(*wide)
    assert_allclose(y, expected, **SINGLE)
    dy = rng.normal(size=y.shape)
    for a, b in zip(case.back(dy, cache), case.back(dy, wide_cache), strict=True):
        assert a.dtype == np.float32
        assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # sums of 12 products of the order of 1
    for name in ("mean", "rstd"):
        statistic = getattr(cache, name, None)
        assert statistic is None or statistic.dtype == np.float32


@one_of_each
def test_longdouble_is_computed_in_longdouble(case, rng):
    args = case.arrays(rng)
    wide = [a.astype(np.longdouble) if isinstance(a, np.ndarray) else a for a in args]
    (y, cache), (expected, wide_cache) = case.run(*args), case.run(*wide)
    dy = rng.normal(size=y.shape)
    pairs = zip(case.back(dy, cache), case.back(dy, wide_cache), strict=True)
    for a, b in [(y, expected), *pairs]:
        assert b.dtype == np.longdouble
        assert_allclose(a, b.astype(np.float64), **REORDERED)


def _half(name):
    return np.dtype(name) if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16


@one_of_each
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_16_bits_are_computed_in_float32_and_rounded_once(case, name, rng):
    half = _half(name)
    args = case.arrays(rng, half)
    wide = [a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in args]
    (y, cache), (expected, wide_cache) = case.run(*args), case.run(*wide)
    assert y.dtype == half
    assert_array_equal(y, expected.astype(half))
    for name in ("mean", "rstd"):
        statistic = getattr(cache, name, None)
        assert statistic is None or statistic.dtype == np.float32
    dy = rng.normal(size=y.shape).astype(half)
    for a, b in zip(case.back(dy, cache), case.back(dy, wide_cache), strict=True):
        assert a.dtype == half
        assert_array_equal(a, b.astype(half))


def test_a_gradient_has_the_dtype_of_its_parameter(rng):
    x = rng.normal(size=(3, 4)).astype(np.float16)
    gamma, beta = rng.normal(size=4), rng.normal(size=4).astype(np.float32)
    y, cache = ref.layer_norm_forward(x, gamma, beta)
    gradients = ref.layer_norm_backward(rng.normal(size=(3, 4)), cache)
    assert y.dtype == np.float16
    assert [d.dtype for d in gradients] == [np.float16, np.float64, np.float32]


def test_running_statistics_keep_their_dtype(rng):
    x = rng.normal(size=(6, 2))
    for dtype in (np.float32, np.float64):
        mean, var = np.zeros(2, dtype), np.ones(2, dtype)
        ref.batch_norm_forward(x, running_mean=mean, running_var=var, decay=0.0)
        assert_allclose(mean, x.mean(axis=0), **(SINGLE if dtype == np.float32 else REORDERED))
        assert_allclose(
            var, x.var(axis=0, ddof=1), **(SINGLE if dtype == np.float32 else REORDERED)
        )


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex128, object])
def test_other_dtypes(dtype):
    wrong = np.ones((2, 2), dtype)
    with pytest.raises(TypeError, match="x must be a floating-point array"):
        ref.layer_norm(wrong)
    with pytest.raises(TypeError, match="gamma must be a floating-point array"):
        ref.layer_norm(np.ones((2, 2)), wrong[0])
    with pytest.raises(TypeError, match="var must be a floating-point array, got object"):
        ref.batch_norm(np.ones((2, 2)), np.ones(2), None)
    _, cache = ref.layer_norm_forward(np.ones((2, 2)))
    with pytest.raises(TypeError, match="dy must be a floating-point array"):
        ref.layer_norm_backward(wrong, cache)


# ---- Conventions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "kept"), [(-1, (2, 3, 1)), (1, (2, 1, 4)), ((2, 0), (1, 3, 1)), ((0, 1, 2), (1, 1, 1))]
)
def test_kept_dimensions(axis, kept, rng):
    x = rng.normal(size=(2, 3, 4))
    for forward in (ref.layer_norm_forward, ref.rms_norm_forward):
        _, cache = forward(x, axis=axis)
        assert cache.rstd.shape == kept
    _, cache = ref.layer_norm_forward(x, axis=axis)
    assert_allclose(cache.mean, x.mean(axis=axis, keepdims=True), **REORDERED)
    rstd = 1 / np.sqrt(x.var(axis=axis, keepdims=True) + 1e-5)
    assert_allclose(cache.rstd, rstd, **REORDERED)


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_shapes_of_channel_statistics(axis, rng):
    x = rng.normal(size=(6, 6, 6, 6))[:5]
    assert ref.batch_norm_forward(x, axis=axis)[1].mean.shape == (6,)
    assert ref.group_norm_forward(x, 3, axis=axis)[1].mean.shape == (5, 3)
    assert ref.group_norm_forward(x, 3, axis=axis)[1].rstd.shape == (5, 3)
    assert ref.instance_norm_forward(x, axis=axis)[1].rstd.shape == (5, 6)


@pytest.mark.parametrize(
    ("op", "axis"),
    [("batch_norm", 0)]
    + [(op, axis) for op in ("batch_norm", "group_norm", "instance_norm") for axis in (2, 3, -2)],
)
def test_the_channel_axis_can_be_moved(op, axis, rng):
    x, dy = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(2, 4, 5, 3))
    gamma, beta = rng.normal(size=4), rng.normal(size=4)
    groups = (2,) if op == "group_norm" else ()
    forward, backward = getattr(ref, f"{op}_forward"), getattr(ref, f"{op}_backward")
    y, cache = forward(x, *groups, gamma, beta)
    moved, moved_cache = forward(np.moveaxis(x, 1, axis), *groups, gamma, beta, axis=axis)
    assert_allclose(np.moveaxis(moved, axis, 1), y, **REORDERED)
    dx, dgamma, dbeta = backward(dy, cache)
    moved_dx, *moved_gradients = backward(np.moveaxis(dy, 1, axis), moved_cache)
    assert_allclose(np.moveaxis(moved_dx, axis, 1), dx, **REORDERED)
    assert_allclose(moved_gradients, [dgamma, dbeta], **REORDERED)


def test_relatives(rng):
    """One group is layer norm over all but the samples; a channel per group, instance norm."""
    x, gamma = rng.normal(size=(2, 4, 5)), rng.normal(size=4)
    one = ref.group_norm(x, 1)
    assert_allclose(one, ref.layer_norm(x, axis=(1, 2)), **REORDERED)
    each = ref.group_norm(x, 4, gamma)
    assert_allclose(each, ref.instance_norm(x, gamma), **REORDERED)
    # adjacent channels form a group
    halves = np.concatenate([ref.layer_norm(x[:, s], axis=(1, 2)) for s in np.s_[:2, 2:]], axis=1)
    assert_allclose(ref.group_norm(x, 2), halves, **REORDERED)
    # batch norm of rows is layer norm of columns
    assert_allclose(ref.batch_norm_forward(x[0])[0], ref.layer_norm(x[0], axis=0), **REORDERED)


def test_decay_is_the_weight_of_the_past(rng):
    x = rng.normal(size=(6, 2))
    for decay, kept in [(1.0, [7, 7]), (0.0, x.mean(axis=0))]:
        mean = np.array([7.0, 7.0])
        ref.batch_norm_forward(x, running_mean=mean, decay=decay)
        assert_allclose(mean, kept, **REORDERED)
    mean, var = np.zeros(2), np.ones(2)
    ref.batch_norm_forward(x, running_mean=mean, running_var=var)  # 0.9 and 1 by default
    assert_allclose(mean, 0.1 * x.mean(axis=0), **REORDERED)
    assert_allclose(var, 0.9 + 0.1 * x.var(axis=0, ddof=1), **REORDERED)


def test_one_running_statistic_alone(rng):
    x, mean, var = rng.normal(size=(6, 2)), np.zeros(2), np.ones(2)
    ref.batch_norm_forward(x, running_var=var, decay=0.0)
    assert_allclose(var, x.var(axis=0, ddof=1), **REORDERED)
    ref.batch_norm_forward(x[:1], running_mean=mean, decay=0.0)  # one value has a mean
    assert_allclose(mean, x[0], **REORDERED)


def test_the_biased_variance_normalises(rng):
    x = rng.normal(size=(5, 3))
    for ddof in (0, 1, 2):
        y, _ = ref.batch_norm_forward(x, ddof=ddof, eps=0)
        assert_allclose(y.var(axis=0), np.ones(3), **REORDERED)


def test_frozen_statistics_are_those_of_the_forward_pass(rng):
    """Updating the running statistics between the passes does not change the gradient."""
    x, mean, var = rng.normal(size=(5, 3)), np.zeros(3), np.ones(3)
    gamma, dy = rng.normal(size=3), rng.normal(size=(5, 3))
    _, cache = ref.batch_norm_forward(x, gamma, running_mean=mean, running_var=var, training=False)
    before = ref.batch_norm_backward(dy, cache)
    ref.batch_norm_forward(x, running_mean=mean, running_var=var)
    for a, b in zip(ref.batch_norm_backward(dy, cache)[:2], before[:2], strict=True):
        assert_array_equal(a, b)


def test_eps_by_default():
    x = np.array([[1.0, 2.0], [3.0, 5.0]])
    var = x.var(axis=1, keepdims=True)
    y = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(var + 1e-5)
    assert_allclose(ref.layer_norm(x), y, **REORDERED)
    assert_allclose(ref.group_norm(x, 1), y, **REORDERED)
    assert_allclose(ref.instance_norm(x[None]), y[None], **REORDERED)
    assert_allclose(ref.batch_norm_forward(x.T)[0], y.T, **REORDERED)
    assert_allclose(ref.batch_norm(x.T, x.mean(axis=1), var[:, 0]), y.T, **REORDERED)
    squares = (x**2).mean(axis=1, keepdims=True)
    assert_allclose(ref.rms_norm(x), x / np.sqrt(squares + 1e-6), rtol=1e-15, atol=0)


def test_all_is_what_is_there():
    operations = ("affine", "batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm")
    for op in (*operations, "weight_norm"):
        for name in (op, f"{op}_forward", f"{op}_backward"):
            assert name in ref.__all__
            assert getattr(ref, name).__doc__
    assert "batch_norm_backward_staged" in ref.__all__
    assert {"moments", "merge_moments"} <= set(ref.__all__)
    assert len(ref.__all__) == 24


# ---- Moments -------------------------------------------------------------------------------------


def test_moments_of_1_3_8():
    # mean 4, deviations -3, -1, 4
    count, mean, m2 = ref.moments(np.array([[1.0], [3.0], [8.0]]))
    assert count == 3
    assert_array_equal(mean, [4])
    assert_array_equal(m2, [26])
    assert ref.moments(np.zeros((2, 3, 4), np.float16), axis=-1)[1].dtype == np.float64


def test_merged_moments_of_1_and_3_8():
    # 1 alone: M2 0; 3 and 8: mean 11/2, M2 25/2; delta 9/2: 25/2 + 81/4 * 2/3 = 26
    x = np.array([[1.0], [3.0], [8.0]])
    count, mean, m2 = ref.merge_moments(ref.moments(x[:1]), ref.moments(x[1:]))
    assert count == 3
    assert_allclose(mean, [4], **BY_HAND)
    assert_allclose(m2, [26], **BY_HAND)
    none = ref.moments(x[:0])
    assert_array_equal(ref.merge_moments(none, ref.moments(x), none)[2], [26])


# ---- Degenerate input ----------------------------------------------------------------------------


def test_one_value_per_channel():
    x, beta = np.array([[3.0, -5.0]]), np.array([1.0, 2.0])
    mean, var = np.zeros(2), np.ones(2)
    y, cache = ref.batch_norm_forward(x, [2.0, 2.0], beta, running_mean=mean)
    assert_array_equal(y, [beta])
    assert_array_equal(ref.batch_norm_backward([[1.0, 1.0]], cache)[0], [[0, 0]])
    ref.batch_norm_forward(x, running_var=var, ddof=0, decay=0.5)  # of variance 0
    assert_array_equal(var, [0.5, 0.5])


@pytest.mark.parametrize(("n", "ddof"), [(1, 1), (1, 2), (2, 2)])
def test_too_few_values_for_an_unbiased_variance(n, ddof, rng):
    x, mean, var, out = rng.normal(size=(n, 2)), np.zeros(2), np.ones(2), np.full((n, 2), 7.0)
    with pytest.raises(ValueError, match=f"running_var with ddof={ddof} needs more than {n} value"):
        ref.batch_norm_forward(x, running_mean=mean, running_var=var, ddof=ddof, out=out)
    assert_array_equal(mean, [0, 0])
    assert_array_equal(var, [1, 1])
    assert (out == 7).all()


def test_an_error_leaves_the_running_statistics(rng):
    x, mean, var = rng.normal(size=(4, 2)), np.zeros(2), np.ones(2)
    for wrong in ({"out": np.empty((4, 3))}, {"gamma": np.ones(3)}, {"axis": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ref.batch_norm_forward(x, running_mean=mean, running_var=var, **wrong)
    var.flags.writeable = False
    with pytest.raises(ValueError, match="running_var must be writeable"):
        ref.batch_norm_forward(x, running_mean=mean, running_var=var)
    assert_array_equal(mean, [0, 0])
    # read-only statistics are fine where they are only read
    mean.flags.writeable = False
    ref.batch_norm_forward(x, running_mean=mean, running_var=var, training=False)


@pytest.mark.parametrize(
    "case",
    [
        Case("layer_norm", ((0, 3), (3,), (3,))),
        Case("layer_norm", ((3, 0), (0,), (0,))),
        Case("layer_norm", ((3, 0, 2), (2,), (2,))),
        Case("rms_norm", ((0, 3), (3,))),
        Case("rms_norm", ((3, 0), (0,))),
        Case("group_norm", ((0, 4, 2), 2, (4,), (4,))),
        Case("group_norm", ((3, 4, 0), 2, (4,), (4,))),
        Case("group_norm", ((3, 0, 4), 2, (0,), (0,))),
        Case("instance_norm", ((0, 4, 2), (4,), (4,))),
        Case("instance_norm", ((3, 0, 4), (0,), (0,))),
        Case("batch_norm", ((0, 3), (3,), (3,))),
        Case("batch_norm", ((2, 3, 0), (3,), (3,))),
        Case("batch_norm", ((2, 0), (0,), (0,))),
        Case("batch_norm", ((0, 3), (3,), (3,)), backward="batch_norm_backward_staged"),
        Case("weight_norm", ((0, 3), (0,))),
        Case("weight_norm", ((3, 0), (3,))),
        Case("weight_norm", ((0,), ()), {"axis": None}),
        Case("affine", ((0, 3), (3, 2), (2,))),
        Case("affine", ((2, 0, 3), (3, 2), (2,))),
        Case("affine", ((2, 3), (3, 0), (0,))),
    ],
    ids=_label,
)
def test_empty(case, rng):
    args = case.arrays(rng)
    y, cache = case.run(*args)
    assert y.size == 0
    gradients = case.back(np.empty(y.shape), cache)
    for d, a in zip(gradients, [a for a in args if isinstance(a, np.ndarray)], strict=True):
        assert d.shape == a.shape
        assert not d.any()


def test_statistics_of_no_values():
    _, layer = ref.layer_norm_forward(np.empty((3, 0)), eps=0.25)
    _, batch = ref.batch_norm_forward(np.empty((0, 3)), eps=0.25)
    for cache in (layer, batch):
        assert_array_equal(cache.mean.ravel(), [0, 0, 0])
        assert_array_equal(cache.rstd.ravel(), [2, 2, 2])


def test_empty_batches_leave_the_running_statistics():
    for shape in [(0, 2), (3, 2, 0)]:
        mean, var = np.array([1.0, 2.0]), np.array([3.0, 4.0])
        ref.batch_norm_forward(np.empty(shape), running_mean=mean, running_var=var)
        assert mean.tolist() == [1, 2]
        assert var.tolist() == [3, 4]


def test_affine_over_an_empty_axis():
    y, _ = ref.affine_forward(np.empty((2, 0)), np.empty((0, 3)), np.array([1.0, 2.0, 3.0]))
    assert_array_equal(y, [[1, 2, 3], [1, 2, 3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_stay_in_their_rows_and_channels(bad, rng):
    x, dy = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    clean = x.copy()
    x[1, 2] = bad
    rows, columns = [0, 2], [0, 1, 3]

    y, cache = ref.layer_norm_forward(x, np.ones(4))
    dx, _, _ = ref.layer_norm_backward(dy, cache)
    assert np.isnan(y[1]).all()
    assert np.isnan(dx[1]).all()
    _, clean_cache = ref.layer_norm_forward(clean, np.ones(4))
    assert_array_equal(y[rows], ref.layer_norm(clean)[rows])
    assert_array_equal(dx[rows], ref.layer_norm_backward(dy, clean_cache)[0][rows])

    mean, var = np.zeros(4), np.ones(4)
    y, cache = ref.batch_norm_forward(x, running_mean=mean, running_var=var)
    assert np.isnan(y[:, 2]).all()
    for backward in (ref.batch_norm_backward, ref.batch_norm_backward_staged):
        dx = backward(dy, cache)[0]
        assert np.isnan(dx[:, 2]).all()
        assert np.isfinite(dx[:, columns]).all()
    for a in (y[:, columns], mean[columns], var[columns]):
        assert np.isfinite(a).all()
    assert not np.isfinite(mean[2])

    w, cache = ref.weight_norm_forward(x, np.ones(3))
    dv, dg = ref.weight_norm_backward(dy, cache)
    for a in (w, dv, dg):
        assert np.isfinite(a[rows]).all()
        assert np.isnan(a[1]).any()
    assert np.isnan(w[1]).all() or np.isinf(bad)  # finite values over an infinite norm are 0

    y = ref.affine(x, np.ones((4, 2)))
    assert np.isfinite(y[rows]).all()
    assert not np.isfinite(y[1]).any()


def test_a_result_too_large_for_float16_is_infinite():
    y = ref.layer_norm(
        np.array([1, 3], np.float16), np.array([60000, 60000], np.float32), [0.0, 1e4]
    )
    assert y.tolist() == [-60000, np.inf]


# ---- Errors that matter for the meaning ----------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: ref.layer_norm(x, np.ones((4, 3)), axis=(0, 1)),
            r"gamma must have shape \(3, 4",
        ),
        (lambda x: ref.layer_norm(x, np.ones(1)), r"gamma must have shape \(4,\), got \(1,\)"),
        (lambda x: ref.layer_norm(x, None, np.ones(3)), r"beta must have shape \(4,\), got \(3,\)"),
        (lambda x: ref.rms_norm(x, np.ones((1, 4))), r"gamma must have shape \(4,\)"),
        (lambda x: ref.layer_norm(x, axis=2), "axis 2 is out of bounds"),
        (lambda x: ref.layer_norm(x, axis=(1, -1)), "repeated axis"),
        (lambda x: ref.layer_norm(x, axis=()), "at least one axis"),
        (lambda x: ref.layer_norm(1.0), "axis -1 is out of bounds"),
        (lambda x: ref.group_norm(x, 3), "num_groups must divide the 4 channels, got 3"),
        (lambda x: ref.group_norm(x, 0), "num_groups must divide the 4 channels, got 0"),
        (lambda x: ref.group_norm(x, 1, axis=0), "axis 0 holds the samples"),
        (lambda x: ref.instance_norm(x, axis=-2), "axis 0 holds the samples"),
        (lambda x: ref.instance_norm(x, np.ones(3)), r"gamma must have shape \(4,\)"),
        (lambda x: ref.batch_norm_forward(x[0]), "2 dimensions or more"),
        (lambda x: ref.batch_norm(x, np.ones(3), np.ones(4)), r"mean must have shape \(4,\)"),
        (lambda x: ref.batch_norm_forward(x, training=False), "needs both running_mean and"),
        (
            lambda x: ref.batch_norm_forward(x, training=False, running_mean=np.ones(4)),
            "needs both running_mean and running_var",
        ),
        (lambda x: ref.weight_norm(x, np.ones(4)), r"g must have shape \(3,\) or \(3, 1\), got"),
        (lambda x: ref.weight_norm(x, np.ones(1), axis=None), r"g must have shape \(\) or \(1, 1"),
        (lambda x: ref.weight_norm(x, np.ones(3), axis=2), "axis 2 is out of bounds"),
        (lambda x: ref.affine(x, np.ones((3, 4))), r"weight must have shape"),
        (lambda x: ref.affine(x, np.ones(4)), r"weight must have shape \(in, out\)"),
        (lambda x: ref.affine(x, np.ones((4, 2)), np.ones(1)), r"bias must have shape \(2,\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((3, 4)))


@pytest.mark.parametrize(
    "wrong", [[0.0, 0.0], np.zeros(2, np.int64), np.zeros(2, np.float16)], ids=["list", "int", "16"]
)
def test_running_statistics_that_cannot_be_updated(wrong):
    with pytest.raises(TypeError, match="running_mean must be a float32 or float64 array"):
        ref.batch_norm_forward(np.ones((3, 2)), running_mean=wrong)


@one_of_each
def test_shape_of_dy(case, rng):
    y, cache = case.run(*case.arrays(rng))
    with pytest.raises(ValueError, match="dy must have shape"):
        case.back(rng.normal(size=y.shape[::-1]), cache)
    with pytest.raises(ValueError, match="dy must have shape"):
        case.back(1.0, cache)


# ---- PyTorch, where it is installed --------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def _compare(torch, case, function, rng):
    """Output and gradients of an operation and of PyTorch's function of the same arrays."""
    args = case.arrays(rng)
    y, cache = case.run(*args)
    tensors = [torch.tensor(a, requires_grad=True) for a in args if isinstance(a, np.ndarray)]
    arrays = iter(tensors)
    their_y = function(*(next(arrays) if isinstance(a, np.ndarray) else a for a in args))
    assert_allclose(y, their_y.detach().numpy(), **REORDERED)
    dy = rng.normal(size=y.shape)
    their_y.backward(torch.tensor(dy))
    gradients = [d for d in case.back(dy, cache) if d is not None]
    for d, tensor in zip(gradients, tensors, strict=True):
        assert_allclose(d, tensor.grad.numpy(), **REORDERED)
    return cache


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("parameters", [True, False])
def test_torch_layer_and_rms_norm(axes, parameters, torch, rng):
    shape = (5, 3, 7)
    normalized = shape[-axes:]
    p = normalized if parameters else None
    axis = tuple(range(-axes, 0))
    functional = torch.nn.functional

    cache = _compare(
        torch,
        Case("layer_norm", (shape, p, p), {"axis": axis, "eps": 1e-3}),
        lambda x, gamma, beta: functional.layer_norm(x, normalized, gamma, beta, 1e-3),
        rng,
    )
    _, mean, rstd = torch.native_layer_norm(torch.tensor(cache.x), normalized, None, None, 1e-3)
    assert_allclose(cache.mean, mean.numpy(), **REORDERED)
    assert_allclose(cache.rstd, rstd.numpy(), **REORDERED)

    _compare(
        torch,
        Case("rms_norm", (shape, p), {"axis": axis, "eps": 1e-3}),
        lambda x, gamma: functional.rms_norm(x, normalized, gamma, 1e-3),
        rng,
    )


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (2, 6, 4, 3)])
@pytest.mark.parametrize("parameters", [True, False])
def test_torch_group_and_instance_norm(shape, parameters, torch, rng):
    c = (6,) if parameters else None
    _compare(
        torch,
        Case("group_norm", (shape, 3, c, c), {"eps": 1e-3}),
        lambda x, groups, gamma, beta: torch.nn.functional.group_norm(x, groups, gamma, beta, 1e-3),
        rng,
    )
    if len(shape) > 2:
        _compare(
            torch,
            Case("instance_norm", (shape, c, c), {"eps": 1e-3}),
            lambda x, gamma, beta: torch.nn.functional.instance_norm(
                x, weight=gamma, bias=beta, eps=1e-3
            ),
            rng,
        )


@pytest.mark.parametrize("shape", [(7, 4), (5, 4, 3), (3, 4, 2, 5)])
@pytest.mark.parametrize("parameters", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_torch_batch_norm(shape, parameters, training, torch, rng):
    c = (4,) if parameters else None
    mean, var = rng.normal(size=4), rng.uniform(0.5, 2, size=4)
    their_mean, their_var = torch.tensor(mean), torch.tensor(var)
    options = {"running_mean": mean, "running_var": var, "training": training, "eps": 1e-3}
    for backward in ("batch_norm_backward", "batch_norm_backward_staged"):
        case = Case("batch_norm", (shape, c, c), {**options, "decay": 0.7}, backward)
        _compare(
            torch,
            case,
            lambda x, gamma, beta: torch.nn.functional.batch_norm(
                x, their_mean.clone(), their_var.clone(), gamma, beta, training, 0.3, 1e-3
            ),
            rng,
        )

    # twice, so that the past counts; PyTorch's momentum is 1 - decay, its variance unbiased
    for _ in range(2):
        x = rng.normal(2, 3, size=shape)
        ref.batch_norm_forward(x, **options, decay=0.7)
        torch.nn.functional.batch_norm(
            torch.tensor(x), their_mean, their_var, None, None, training, 0.3, 1e-3
        )
    assert_allclose(mean, their_mean.numpy(), **REORDERED)
    assert_allclose(var, their_var.numpy(), **REORDERED)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_torch_weight_norm(axis, torch, rng):
    g = () if axis is None else [(5, 1, 1), (1, 4, 1)][axis]

    def weight_norm(v, g):
        module = torch.nn.Conv1d(4, 5, 3, bias=False, dtype=torch.float64)
        module = torch.nn.utils.parametrizations.weight_norm(module, dim=axis)
        (parametrization,) = module.parametrizations.weight
        return parametrization(g, v)

    _compare(torch, Case("weight_norm", ((5, 4, 3), g), {"axis": axis}), weight_norm, rng)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_torch_linear(shape, bias, torch, rng):
    _compare(
        torch,
        Case("affine", (shape, (4, 6), (6,) if bias else None)),
        lambda x, weight, bias: torch.nn.functional.linear(x, weight.T, bias),
        rng,
    )
