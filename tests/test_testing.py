"""The checker of gradients: known derivatives, and backward passes that are subtly wrong."""

import doctest

import numpy as np
import pytest

import fastnorm.reference as ref
import fastnorm.testing
from fastnorm.testing import check_gradients, numerical_gradient

# Central differences with the default step h = 6e-6: h^2 = 4e-11 is cut off, eps / h = 4e-11 is
# rounding; an order of magnitude for the functions' own constants.
DIFFERENCES = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def rng():
    return np.random.default_rng(20)


# ---- numerical_gradient --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "derivative"),
    [
        (np.square, lambda x: 2 * x),
        (np.sin, np.cos),
        (np.exp, np.exp),
        (lambda x: 1 / x, lambda x: -1 / x**2),
        (lambda x: x, np.ones_like),
    ],
    ids=["square", "sin", "exp", "reciprocal", "identity"],
)
def test_known_derivatives(f, derivative, rng):
    x = rng.uniform(1, 2, size=(2, 3))
    dy = rng.normal(size=(2, 3))
    np.testing.assert_allclose(numerical_gradient(f, x), derivative(x), **DIFFERENCES)
    np.testing.assert_allclose(numerical_gradient(f, x, dy), derivative(x) * dy, **DIFFERENCES)


def test_linear_map_of_another_shape(rng):
    a, x, dy = rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=4)
    np.testing.assert_allclose(numerical_gradient(lambda x: a @ x, x, dy), a.T @ dy, **DIFFERENCES)


def test_scalars_and_lists():
    gradient = numerical_gradient(lambda x: x**3, 2.0)
    assert gradient.shape == ()
    assert gradient == pytest.approx(12, rel=1e-9)
    np.testing.assert_allclose(numerical_gradient(np.square, [1, 2]), [2, 4], **DIFFERENCES)


def test_large_values_are_moved_by_more():
    # moved by 6e-6, 1e12 would not change at all
    assert numerical_gradient(np.square, 1e12) == pytest.approx(2e12, rel=1e-9)


def test_step(rng):
    x = np.array([1.0])
    # (f(x + h) - f(x - h)) / 2h of x^3 is 3 x^2 + h^2, exactly
    assert numerical_gradient(lambda x: x**3, x, step=0.5)[0] == 3.25


def test_float32_is_differentiated_in_float64():
    seen = []
    gradient = numerical_gradient(lambda x: seen.append(x.dtype) or x, np.ones(1, np.float32))
    assert gradient.dtype == np.float64
    assert set(seen) == {np.dtype(np.float64)}


def test_x_is_not_written_even_if_f_writes():
    def f(x):
        x *= 3
        return x

    x = np.array([1.0, 2.0])
    np.testing.assert_allclose(numerical_gradient(f, x), [3, 3], **DIFFERENCES)
    assert x.tolist() == [1.0, 2.0]


def test_one_buffer_for_every_result():
    """As with out=: the result of one call is overwritten by the next."""
    buffer = np.empty(2)
    gradient = numerical_gradient(lambda x: np.multiply(x, 3, out=buffer), np.array([1.0, 2.0]))
    np.testing.assert_allclose(gradient, [3, 3], **DIFFERENCES)


def test_empty():
    assert numerical_gradient(np.square, np.empty((0, 3))).shape == (0, 3)


def test_shape_of_dy():
    with pytest.raises(ValueError, match=r"dy must have shape \(3,\), got \(1,\)"):
        numerical_gradient(np.square, np.ones(3), np.ones(1))


# ---- check_gradients: what is right --------------------------------------------------------------


def test_errors_are_returned_by_name(rng):
    x, gamma, beta = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=4)
    errors = check_gradients(
        ref.layer_norm_forward, ref.layer_norm_backward, x, gamma, beta, axis=-1
    )
    assert list(errors) == ["x", "gamma", "beta"]
    assert all(type(e) is float and 0 <= e < 1e-6 for e in errors.values())


def test_none_and_options_among_the_positional_arguments(rng):
    x, beta = rng.normal(size=(2, 4, 3)), rng.normal(size=4)
    errors = check_gradients(ref.group_norm_forward, ref.group_norm_backward, x, 2, None, beta)
    assert list(errors) == ["x", "beta"]
    # parameters left out are None as well
    groups = np.int64(2)
    errors = check_gradients(ref.group_norm_forward, ref.group_norm_backward, x, groups)
    assert list(errors) == ["x"]


@pytest.mark.parametrize("g", [2.0, np.float32(2), np.array(2.0)], ids=["float", "float32", "0-d"])
def test_numbers_are_differentiated(g, rng):
    v = rng.normal(size=(2, 3))
    errors = check_gradients(ref.weight_norm_forward, ref.weight_norm_backward, v, g, axis=None)
    assert list(errors) == ["v", "g"]


def test_lists_and_float32(rng):
    x = rng.normal(size=(2, 2)).astype(np.float32)
    errors = check_gradients(ref.affine_forward, ref.affine_backward, x, [[1.0, 2.0], [3.0, 4.0]])
    assert list(errors) == ["x", "weight"]


def test_bfloat16(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16)
    assert "x" in check_gradients(ref.rms_norm_forward, ref.rms_norm_backward, x)


def test_empty_arrays():
    errors = check_gradients(
        ref.layer_norm_forward, ref.layer_norm_backward, np.empty((0, 2)), np.ones(2)
    )
    assert errors == {"x": 0.0, "gamma": 0.0}


def test_strides_reach_the_functions(rng):
    seen = []

    def forward(x):
        seen.append(x.strides)
        return 2 * x, None

    x = rng.normal(size=(4, 6))[::-2, ::3]
    check_gradients(forward, lambda dy, cache: 2 * dy, x)
    assert seen[0] == x.strides


def test_a_gradient_of_zero(rng):
    """Rounding in the differences must not look like an error of 100 %."""
    x = rng.uniform(1, 2, size=(8, 1))  # y is the sign of x
    check_gradients(ref.rms_norm_forward, ref.rms_norm_backward, x, eps=0.0)
    check_gradients(ref.layer_norm_forward, ref.layer_norm_backward, 1e-3 * x, np.ones(1))


def test_running_statistics_are_not_disturbed(rng):
    x, mean, var = rng.normal(size=(5, 3)), np.zeros(3), np.ones(3)
    for training in (True, False):
        check_gradients(
            ref.batch_norm_forward,
            ref.batch_norm_backward,
            x,
            running_mean=mean,
            running_var=var,
            training=training,
        )
    assert mean.tolist() == [0, 0, 0]
    assert var.tolist() == [1, 1, 1]


def test_arguments_are_not_written(rng):
    x, gamma, dy = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=(3, 4))
    before = [a.copy() for a in (x, gamma, dy)]
    check_gradients(ref.layer_norm_forward, ref.layer_norm_backward, x, gamma, dy=dy)
    for a, b in zip((x, gamma, dy), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_same_result_every_time(rng):
    def check():
        return check_gradients(ref.layer_norm_forward, ref.layer_norm_backward, x)

    x = rng.normal(size=(3, 4))
    assert check() == check()


# ---- check_gradients: what is wrong --------------------------------------------------------------


def _layer_norm_backward(mean_term=True, variance_term=True, gamma_in_dx=True, ddof=0):
    """Layer norm's dx as students write it, with its well-known mistakes."""

    def backward(dy, cache):
        _, dgamma, dbeta = ref.layer_norm_backward(dy, cache)
        n = dy.shape[-1]
        xhat = (cache.x - cache.mean) * cache.rstd
        dxhat = dy * cache.gamma if gamma_in_dx else dy
        dx = dxhat.copy()
        if mean_term:
            dx -= dxhat.sum(axis=-1, keepdims=True) / n
        if variance_term:
            dx -= xhat * (dxhat * xhat).sum(axis=-1, keepdims=True) / (n - ddof)
        return cache.rstd * dx, dgamma, dbeta

    return backward


@pytest.fixture
def arrays(rng):
    return rng.normal(size=(3, 6)), rng.normal(size=6), rng.normal(size=6)


def test_the_students_version_is_right(arrays):
    check_gradients(ref.layer_norm_forward, _layer_norm_backward(), *arrays)


@pytest.mark.parametrize(
    "mistake",
    [{"mean_term": False}, {"variance_term": False}, {"gamma_in_dx": False}, {"ddof": 1}],
    ids=lambda mistake: next(iter(mistake)),
)
def test_missing_terms_and_factors(mistake, arrays):
    with pytest.raises(AssertionError, match=r"layer_norm_forward: gradient of x: .* error \d"):
        check_gradients(ref.layer_norm_forward, _layer_norm_backward(**mistake), *arrays)


def test_n_minus_one_is_seen_with_many_values(rng):
    """The subtle one: a relative error of 1 / n in one term, 1e-3 and less of dx."""
    x, gamma = rng.normal(size=(1, 300)), np.ones(300)
    with pytest.raises(AssertionError, match="gradient of x"):
        check_gradients(ref.layer_norm_forward, _layer_norm_backward(ddof=1), x, gamma, None)


def _changed(position, change):
    def backward(dy, cache):
        gradients = list(ref.layer_norm_backward(dy, cache))
        gradients[position] = change(gradients[position])
        return gradients

    return backward


@pytest.mark.parametrize(("position", "name"), list(enumerate(["x", "gamma", "beta"])))
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: -d, "largest relative error 2"),
        (lambda d: d * (1 + 1e-5), r"largest relative error 1\.00e-05 \(allowed: 1e-06\)"),
        (lambda d: d + np.where(d == d.max(), np.nan, 0), "nan instead of"),
        (lambda d: d + np.where(d == d.max(), np.inf, 0), "inf instead of"),
        (lambda d: d[..., :-1], "shape"),
        (lambda d: d[None], "shape"),
        (lambda d: None, "missing"),
    ],
    ids=["sign", "1e-5", "nan", "inf", "short", "broadcast", "None"],
)
def test_each_gradient_is_looked_at(position, name, change, complaint, arrays):
    with pytest.raises(AssertionError, match=f"gradient of {name}: .*{complaint}") as error:
        check_gradients(ref.layer_norm_forward, _changed(position, change), *arrays)
    assert str(error.value).count("gradient of") == 1  # of no other argument


def test_one_element_is_enough_and_is_named(arrays):
    def change(d):
        d[1, 2] += 0.5
        return d

    with pytest.raises(AssertionError, match=r"at \(1, 2\)"):
        check_gradients(ref.layer_norm_forward, _changed(0, change), *arrays)


def test_all_wrong_gradients_are_named(arrays):
    def backward(dy, cache):
        dx, dgamma, dbeta = ref.layer_norm_backward(dy, cache)
        return dx, dgamma + 1, -dbeta

    with pytest.raises(AssertionError) as error:
        check_gradients(ref.layer_norm_forward, backward, *arrays)
    gamma, beta = str(error.value).splitlines()
    assert "gradient of gamma" in gamma
    assert "gradient of beta" in beta


def test_gradient_of_none(arrays):
    x, gamma, beta = arrays
    with pytest.raises(AssertionError, match=r"gradient of beta: given, but the argument is None"):
        check_gradients(ref.layer_norm_forward, _changed(2, lambda d: beta), x, gamma, None)


def test_number_of_gradients(arrays):
    x, gamma, _ = arrays
    with pytest.raises(AssertionError, match=r"1 gradients for 2 positional .* \(x, gamma\)"):
        check_gradients(
            ref.layer_norm_forward, lambda *args: ref.layer_norm_backward(*args)[:1], x, gamma
        )
    # dgamma arrives, but gamma was not given by position
    with pytest.raises(AssertionError, match=r"3 gradients for 1 positional arguments \(x\)"):
        check_gradients(ref.layer_norm_forward, ref.layer_norm_backward, x, gamma=gamma)


def test_exchanged_gradients(arrays):
    def backward(dy, cache):
        dx, dgamma, dbeta = ref.layer_norm_backward(dy, cache)
        return dx, dbeta, dgamma

    with pytest.raises(AssertionError, match=r"of gamma: .*\n.*of beta: "):
        check_gradients(ref.layer_norm_forward, backward, *arrays)


def test_small_gradients_are_not_excused(rng):
    """dx is 1e-6 of dy here; being off by a tenth must show all the same."""
    x, gamma = 1e3 * rng.normal(size=(2, 5)), np.full(5, 1e-3)
    check_gradients(ref.layer_norm_forward, ref.layer_norm_backward, x, gamma, None)
    wrong = _changed(0, lambda d: 1.1 * d)
    with pytest.raises(AssertionError, match="gradient of x"):
        check_gradients(ref.layer_norm_forward, wrong, x, gamma, None)


def test_frozen_statistics_taken_for_batch_statistics(rng):
    x, mean, var = rng.normal(size=(4, 3)), rng.normal(size=3), rng.uniform(1, 2, size=3)

    def forward(x, **options):
        return ref.batch_norm_forward(x, running_mean=mean, running_var=var, training=False)

    def backward(dy, cache):
        _, trained = ref.batch_norm_forward(cache.x)
        return ref.batch_norm_backward(dy, trained)[0]

    with pytest.raises(AssertionError, match="gradient of x"):
        check_gradients(forward, backward, x)


def test_rtol(arrays):
    wrong = _changed(0, lambda d: d * 1.001)
    assert check_gradients(ref.layer_norm_forward, wrong, *arrays, rtol=0.01)["x"] == (
        pytest.approx(0.001, rel=0.01)
    )


# ---- Names and documentation ---------------------------------------------------------------------


def test_functions_without_names_or_signatures(rng):
    class Scale:
        def __call__(self, *arrays):
            return sum(2 * a for a in arrays), None

    x = rng.normal(size=3)
    errors = check_gradients(Scale(), lambda dy, cache: (2 * dy, 2 * dy), x, x)
    assert list(errors) == ["argument 0", "argument 1"]
    with pytest.raises(AssertionError, match="gradient of argument 1"):
        check_gradients(Scale(), lambda dy, cache: (2 * dy, dy), x, x)


def test_examples():
    result = doctest.testmod(fastnorm.testing)
    assert result.attempted > 0
    assert result.failed == 0
