"""fastnorm.compat.cs231n: the conventions of the course, against float64 NumPy written out here."""

import numpy as np
import pytest

import fastnorm as fn
from fastnorm.compat import cs231n

TIGHT = {"rtol": 1e-10, "atol": 1e-12}  # float64 kernels and float64 NumPy: rounding alone
GRADIENT = 1e-7  # central differences of step 1e-5 leave about 1e-9


def gradient_in_place(f, a, dout, h=1e-5):
    """The gradient of sum(f() * dout) with respect to a, which f reads: the notebooks' way.

    a is changed in place, so that nothing of an earlier call may be left in a later one.
    """
    gradient = np.empty(a.shape)
    for index in np.ndindex(a.shape):
        value = a[index]
        a[index] = value + h
        above = np.array(f())
        a[index] = value - h
        below = np.array(f())
        a[index] = value
        gradient[index] = np.sum((above - below) * dout) / (2 * h)
    return gradient


def relative_error(a, b):
    assert a.shape == b.shape
    return np.max(np.abs(a - b)) / max(np.max(np.abs(a)), np.max(np.abs(b)))


def normalised(x, axes, eps):
    mean = x.mean(axis=axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    return (x - mean) / np.sqrt(var + eps)


def statistics(x):
    """Mean and biased variance of each channel, axis 1."""
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    return rows.mean(axis=0), ((rows - rows.mean(axis=0)) ** 2).mean(axis=0)


def on_channels(p, x):
    return p.reshape(1, -1, *[1] * (x.ndim - 2))


# ---- What each function computes -----------------------------------------------------------------


@pytest.fixture(params=["batchnorm", "spatial_batchnorm"])
def batchnorm(request):
    """Forward and backward function, and the shape of an input."""
    shape = (6, 3) if request.param == "batchnorm" else (2, 3, 4, 5)
    name = request.param
    return getattr(cs231n, f"{name}_forward"), getattr(cs231n, f"{name}_backward"), shape


def parameters(rng, c, dtype=np.float64):
    return rng.normal(1, 1, c).astype(dtype), rng.normal(size=c).astype(dtype)


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (4, 3, 1, 2)], ids=str)
def test_affine(rng, shape):
    x, w, b = rng.normal(size=shape), rng.normal(size=(6, 5)), rng.normal(size=5)
    out, cache = cs231n.affine_forward(x, w, b)
    rows = np.stack([sample.ravel() for sample in x])
    np.testing.assert_allclose(out, np.einsum("nd,dm->nm", rows, w) + b, **TIGHT)
    assert all(kept is given for kept, given in zip(cache, (x, w, b), strict=True))

    dout = rng.normal(size=(4, 5))
    dx, dw, db = cs231n.affine_backward(dout, (x, w, b))
    np.testing.assert_allclose(dx, np.einsum("nm,dm->nd", dout, w).reshape(shape), **TIGHT)
    np.testing.assert_allclose(dw, np.einsum("nd,nm->dm", rows, dout), **TIGHT)
    np.testing.assert_allclose(db, dout.sum(axis=0), **TIGHT)


def test_relu(rng):
    x = np.array([[-2.0, 0.0, 3.0], [np.inf, -np.inf, 1.0]])
    out, cache = cs231n.relu_forward(x)
    np.testing.assert_array_equal(out, [[0, 0, 3], [np.inf, 0, 1]])
    assert cache is x
    dout = np.array([[5.0, np.inf, 7.0], [8.0, np.nan, -9.0]])
    # what is cut off has no gradient, whatever arrives there
    np.testing.assert_array_equal(cs231n.relu_backward(dout, x), [[0, 0, 7], [8, 0, -9]])
    assert cs231n.relu_backward(dout.astype(np.float32), x).dtype == np.float32


def test_affine_relu(rng):
    x, w, b = rng.normal(size=(4, 2, 3)), rng.normal(size=(6, 5)), rng.normal(size=5)
    out, (affine_cache, relu_cache) = cs231n.affine_relu_forward(x, w, b)
    a = x.reshape(4, 6) @ w + b
    np.testing.assert_allclose(relu_cache, a, **TIGHT)
    assert affine_cache[0] is x
    np.testing.assert_allclose(out, np.where(a > 0, a, 0), **TIGHT)
    dout = rng.normal(size=(4, 5))
    da = np.where(a > 0, dout, 0)
    gradients = cs231n.affine_relu_backward(dout, (affine_cache, relu_cache))
    expected = (da @ w.T).reshape(4, 2, 3), x.reshape(4, 6).T @ da, da.sum(axis=0)
    for gradient, value in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, value, **TIGHT)


def test_batchnorm(rng, batchnorm):
    forward, _, shape = batchnorm
    x = 5 * rng.normal(size=shape) + 12
    gamma, beta = parameters(rng, 3)
    out, _ = forward(x, gamma, beta, {"mode": "train", "eps": 0.1})
    axes = tuple(a for a in range(x.ndim) if a != 1)
    expected = on_channels(gamma, x) * normalised(x, axes, 0.1) + on_channels(beta, x)
    np.testing.assert_allclose(out, expected, **TIGHT)


def test_layernorm(rng):
    x = 5 * rng.normal(size=(4, 7)) + 12
    gamma, beta = parameters(rng, 7)
    for ln_param, eps in (({"eps": 0.1}, 0.1), ({}, 1e-5)):
        out, _ = cs231n.layernorm_forward(x, gamma, beta, ln_param)
        np.testing.assert_allclose(out, gamma * normalised(x, 1, eps) + beta, **TIGHT)


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6,)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_spatial_groupnorm(rng, shape, groups):
    x = 5 * rng.normal(size=(2, 6, 4, 5)) + 12
    gamma, beta = rng.normal(size=shape), rng.normal(size=shape)
    for gn_param, eps in (({"eps": 0.1}, 0.1), ({"mode": "train"}, 1e-5)):
        out, _ = cs231n.spatial_groupnorm_forward(x, gamma, beta, groups, gn_param)
        xhat = normalised(x.reshape(2 * groups, -1), 1, eps).reshape(x.shape)
        expected = on_channels(gamma, x) * xhat + on_channels(beta, x)
        np.testing.assert_allclose(out, expected, **TIGHT)


def test_softmax_loss(rng):
    x, y = rng.normal(size=(5, 4)), np.array([0, 1, 2, 3, 0])
    loss, dx = cs231n.softmax_loss(x, y)
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[range(5), y]).mean(), rel=1e-12)
    np.testing.assert_allclose(dx, (p - np.eye(4)[y]) / 5, **TIGHT)
    numerical = gradient_in_place(lambda: cs231n.softmax_loss(x, y)[0], x, 1.0)
    assert relative_error(dx, numerical) < GRADIENT
    # scores of any size, labels of any integer type, and x is left as it was
    x, y = np.array([[1e4, -1e4]], np.float32), np.array([1], np.uint8)
    loss, dx = cs231n.softmax_loss(x, y)
    assert loss == 2e4
    np.testing.assert_array_equal(dx, np.array([[1, -1]], np.float32), strict=True)
    np.testing.assert_array_equal(x, [[1e4, -1e4]])


# ---- Gradients, as the notebooks check them ------------------------------------------------------


def gradient_cases():
    """Name: forward function of (x, gamma, beta), backward function, shapes of x and gamma."""

    def with_options(forward, *options):
        return lambda x, gamma, beta: forward(x, gamma, beta, *options)

    cs = cs231n
    train = {"mode": "train"}
    batch = with_options(cs.batchnorm_forward, train)
    spatial = with_options(cs.spatial_batchnorm_forward, train)
    groups = with_options(cs.spatial_groupnorm_forward, 2, {})
    layer = with_options(cs.layernorm_forward, {})
    return {
        "affine": (cs.affine_forward, cs.affine_backward, (3, 2, 4), (8, 5), (5,)),
        "affine_relu": (cs.affine_relu_forward, cs.affine_relu_backward, (3, 2, 4), (8, 5), (5,)),
        "batchnorm": (batch, cs.batchnorm_backward, (4, 5), (5,), (5,)),
        "batchnorm_alt": (batch, cs.batchnorm_backward_alt, (4, 5), (5,), (5,)),
        "spatial_batchnorm": (spatial, cs.spatial_batchnorm_backward, (2, 3, 4, 2), (3,), (3,)),
        "layernorm": (layer, cs.layernorm_backward, (4, 5), (5,), (5,)),
        "spatial_groupnorm": (
            groups, cs.spatial_groupnorm_backward, (2, 6, 2, 3), (1, 6, 1, 1), (1, 6, 1, 1),
        ),
        "spatial_groupnorm, (C,)": (
            groups, cs.spatial_groupnorm_backward, (2, 6, 2, 3), (6,), (6,),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", gradient_cases())
def test_gradients(rng, name):
    forward, backward, *shapes = gradient_cases()[name]
    arguments = [rng.normal(size=shape) for shape in shapes]
    arguments[0] = 5 * arguments[0] + 12
    if "relu" in name:
        arguments[0] -= 12  # zeros among the outputs
    out, cache = forward(*arguments)
    dout = rng.normal(size=out.shape)
    gradients = backward(dout, cache)
    for argument, gradient in zip(arguments, gradients, strict=True):
        numerical = gradient_in_place(lambda: forward(*arguments)[0], argument, dout)
        assert relative_error(gradient, numerical) < GRADIENT


def test_gradients_in_test_mode(rng, batchnorm):
    """The running statistics are constants."""
    forward, backward, shape = batchnorm
    x, (gamma, beta), dout = rng.normal(size=shape), parameters(rng, 3), rng.normal(size=shape)
    mean, var = rng.normal(size=3), rng.uniform(1, 2, 3)
    bn_param = {"mode": "test", "running_mean": mean, "running_var": var}
    _, cache = forward(x, gamma, beta, bn_param)
    dx, dgamma, dbeta = backward(dout, cache)
    scale = on_channels(1 / np.sqrt(var + 1e-5), x)
    xhat, axes = (x - on_channels(mean, x)) * scale, (0, 2, 3)[: x.ndim - 1]
    np.testing.assert_allclose(dx, dout * on_channels(gamma, x) * scale, **TIGHT)
    np.testing.assert_allclose(dgamma, (dout * xhat).sum(axis=axes), **TIGHT)
    np.testing.assert_allclose(dbeta, dout.sum(axis=axes), **TIGHT)


# ---- bn_param ------------------------------------------------------------------------------------


def test_running_statistics(rng, batchnorm):
    """They start at zero, decay by the momentum, and the variance is the biased one."""
    forward, _, shape = batchnorm
    for options, momentum in (({}, 0.9), ({"momentum": 0.25}, 0.25)):
        bn_param = {"mode": "train", **options}
        running_mean, running_var = np.zeros(3), np.zeros(3)
        for _ in range(3):
            x = 5 * rng.normal(size=shape) + 12
            forward(x, np.ones(3), np.zeros(3), bn_param)
            mean, var = statistics(x)
            running_mean = momentum * running_mean + (1 - momentum) * mean
            running_var = momentum * running_var + (1 - momentum) * var
            np.testing.assert_allclose(bn_param["running_mean"], running_mean, **TIGHT)
            np.testing.assert_allclose(bn_param["running_var"], running_var, **TIGHT)
        assert bn_param.keys() == {"mode", "running_mean", "running_var", *options}


def test_earlier_statistics_stay(rng, batchnorm):
    """Whoever kept, or gave, an array of statistics finds it unchanged."""
    forward, _, shape = batchnorm
    given = np.ones(3), np.full(3, 2.0)
    given[0].flags.writeable = False
    bn_param = {"mode": "train", "running_mean": given[0], "running_var": given[1]}
    for _ in range(2):
        kept = bn_param["running_mean"], bn_param["running_var"]
        before = [a.copy() for a in kept]
        forward(rng.normal(size=shape), np.ones(3), np.zeros(3), bn_param)
        for a, b in zip(kept, before, strict=True):
            np.testing.assert_array_equal(a, b)
        assert (bn_param["running_mean"] != before[0]).all()


def test_test_mode(rng, batchnorm):
    forward, _, shape = batchnorm
    x, (gamma, beta) = rng.normal(size=shape), parameters(rng, 3)
    mean, var = rng.normal(size=3), rng.uniform(1, 2, 3)
    bn_param = {"mode": "test", "eps": 0.1, "running_mean": mean, "running_var": var}
    out, _ = forward(x, gamma, beta, bn_param)
    scale = on_channels(gamma / np.sqrt(var + 0.1), x)
    expected = (x - on_channels(mean, x)) * scale + on_channels(beta, x)
    np.testing.assert_allclose(out, expected, **TIGHT)
    np.testing.assert_array_equal(bn_param["running_mean"], mean)
    np.testing.assert_array_equal(bn_param["running_var"], var)


def test_test_mode_before_training(rng, batchnorm):
    """Mean and variance are zero then, and are stored."""
    forward, _, shape = batchnorm
    x, bn_param = rng.normal(size=shape), {"mode": "test"}
    out, _ = forward(x, np.ones(3), np.zeros(3), bn_param)
    np.testing.assert_allclose(out, x / np.sqrt(1e-5), **TIGHT)
    for name in ("running_mean", "running_var"):
        np.testing.assert_array_equal(bn_param[name], np.zeros(3))


def test_modes(rng, batchnorm):
    forward, _, shape = batchnorm
    x, bn_param = rng.normal(size=shape), {"mode": "evaluate"}
    with pytest.raises(ValueError, match='must be "train" or "test", got \'evaluate\''):
        forward(x, np.ones(3), np.zeros(3), bn_param)
    assert bn_param == {"mode": "evaluate"}
    with pytest.raises(KeyError, match="mode"):
        forward(x, np.ones(3), np.zeros(3), {})


def test_an_error_leaves_bn_param(rng, batchnorm):
    forward, _, shape = batchnorm
    bn_param = {"mode": "train"}
    with pytest.raises(ValueError, match="gamma must have shape"):
        forward(rng.normal(size=shape), np.ones(4), np.zeros(3), bn_param)
    assert bn_param == {"mode": "train"}


# ---- Shapes, dtypes, strides ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("batchnorm_forward", (2, 3, 4, 5), "(N, D)"),
        ("spatial_batchnorm_forward", (2, 3), "(N, C, H, W)"),
        ("layernorm_forward", (2, 3, 4), "(N, D)"),
    ],
)
def test_wrong_shape(name, shape, wanted):
    with pytest.raises(ValueError, match=name) as caught:
        getattr(cs231n, name)(np.ones(shape), np.ones(3), np.ones(3), {"mode": "train"})
    assert str(caught.value) == f"{name}: x must have shape {wanted}, got {shape}"


def test_wrong_groups_and_labels(rng):
    x = rng.normal(size=(2, 6, 4, 5))
    with pytest.raises(ValueError, match="num_groups"):
        cs231n.spatial_groupnorm_forward(x, np.ones(6), np.zeros(6), 4, {})
    with pytest.raises(ValueError, match="gamma must have shape"):
        cs231n.spatial_groupnorm_forward(x, np.ones((1, 5, 1, 1)), np.zeros(6), 3, {})
    with pytest.raises(ValueError, match=r"softmax_loss: .* got \(2, 3\) and \(2, 1\)"):
        cs231n.softmax_loss(np.ones((2, 3)), np.zeros((2, 1), int))


def run_all(shape_of, dtype, parameter_dtype):
    """Results of every pair of functions, under names; shape_of lays out each array."""
    rng = np.random.default_rng(1)

    def draw(*shape, dtype=dtype):
        return shape_of(rng.normal(size=shape).astype(dtype))

    p = parameter_dtype
    results = {}
    for name, shape, sizes, options in (
        ("affine", (4, 2, 3), ((6, 5), (5,)), ()),
        ("affine_relu", (4, 2, 3), ((6, 5), (5,)), ()),
        ("batchnorm", (6, 3), ((3,), (3,)), ({"mode": "train"},)),
        ("spatial_batchnorm", (2, 3, 4, 5), ((3,), (3,)), ({"mode": "train"},)),
        ("layernorm", (6, 3), ((3,), (3,)), ({},)),
        ("spatial_groupnorm", (2, 6, 4, 5), ((1, 6, 1, 1), (1, 6, 1, 1)), (3, {})),
    ):
        arguments = [draw(*shape), *(draw(*size, dtype=p) for size in sizes)]
        out, cache = getattr(cs231n, f"{name}_forward")(*arguments, *options)
        dout = draw(*out.shape)
        gradients = getattr(cs231n, f"{name}_backward")(dout, cache)
        results[name] = [out, *gradients]
        for gradient, argument in zip(gradients, arguments, strict=True):
            assert gradient.shape == argument.shape, name
        if name.endswith("batchnorm"):
            results[f"{name}, running"] = [options[0]["running_mean"], options[0]["running_var"]]
    loss, dx = cs231n.softmax_loss(draw(4, 3), np.array([0, 2, 1, 1]))
    return results | {"softmax_loss": [np.asarray(loss), dx]}


@pytest.mark.parametrize(
    ("dtype", "parameter_dtype", "wanted"),
    [
        (np.float64, np.float64, np.float64),
        (np.float32, np.float32, np.float32),
        (np.float16, np.float16, np.float16),
        (np.float32, np.float64, np.float64),
        (np.float64, np.float32, np.float64),
    ],
)
def test_dtypes(dtype, parameter_dtype, wanted):
    """What NumPy's arithmetic gives; statistics are never narrower than float32."""
    for name, arrays in run_all(np.asarray, dtype, parameter_dtype).items():
        if name == "softmax_loss":
            assert arrays[1].dtype == dtype
            continue
        expected = np.promote_types(wanted, np.float32) if "running" in name else wanted
        assert {a.dtype for a in arrays} == {np.dtype(expected)}, name


def test_float32_is_right():
    """Against float64 arithmetic on the same numbers."""
    results = run_all(np.asarray, np.float32, np.float32)
    rounded = run_all(lambda a: a.astype(np.float32).astype(np.float64), np.float64, np.float64)
    for name, arrays in results.items():
        for a, b in zip(arrays, rounded[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6, err_msg=name)


def test_integers_and_numbers(rng):
    """The notebooks give gamma and beta as integers; solutions give them as plain numbers."""
    x = rng.normal(size=(2, 3, 4, 5))
    gamma, beta = np.array([3, 4, 5]), np.array([6, 7, 8])
    out, cache = cs231n.spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"})
    expected = on_channels(gamma, x) * normalised(x, (0, 2, 3), 1e-5) + on_channels(beta, x)
    np.testing.assert_allclose(out, expected, **TIGHT)
    _, dgamma, _ = cs231n.spatial_batchnorm_backward(np.ones(x.shape, int), cache)
    assert (dgamma.shape, dgamma.dtype) == ((3,), np.float64)

    rows = rng.normal(size=(4, 5)).astype(np.float32)
    out, cache = cs231n.layernorm_forward(rows, 1, 0, {})
    assert out.dtype == np.float32
    expected = normalised(rows.astype(np.float64), 1, 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    _, dgamma, dbeta = cs231n.layernorm_backward(np.ones_like(rows), cache)
    assert (dgamma.shape, dbeta.shape) == ((5,), (5,))
    out, _ = cs231n.batchnorm_forward(np.array([[1], [3]]), 1, 0, {"mode": "train", "eps": 0})
    np.testing.assert_array_equal(out, np.array([[-1.0], [1.0]]), strict=True)


def test_masked_arrays_are_refused():
    x = np.ma.masked_equal(np.ones((2, 3)), 0)
    with pytest.raises(TypeError, match="masked"):
        cs231n.layernorm_forward(x, np.ones(3), np.zeros(3), {})


@pytest.mark.parametrize("layout", ["transposed", "stepped", "reversed"])
def test_strides(layout):
    """The bits are those of contiguous arrays; with BLAS in it, rounding may differ."""

    def lay_out(a):
        if layout == "transposed":
            return a.T.copy().T
        if layout == "reversed":
            return a[::-1].copy()[::-1]
        memory = np.zeros([2 * n for n in a.shape], a.dtype)
        view = memory[tuple(np.s_[::2] for _ in a.shape)]
        view[...] = a
        return view

    expected = run_all(np.asarray, np.float64, np.float64)
    for name, arrays in run_all(lay_out, np.float64, np.float64).items():
        for a, b in zip(arrays, expected[name], strict=True):
            if name.startswith("affine"):
                np.testing.assert_allclose(a, b, **TIGHT, err_msg=name)
            else:
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_inputs_are_not_written():
    def locked(a):
        a.flags.writeable = False
        return a

    run_all(locked, np.float32, np.float32)


def test_no_rows():
    out, cache = cs231n.affine_forward(np.ones((0, 2, 3)), np.ones((6, 5)), np.ones(5))
    dx, dw, _ = cs231n.affine_backward(out, cache)
    assert (out.shape, dx.shape) == ((0, 5), (0, 2, 3))
    assert not dw.any()


# ---- Names ---------------------------------------------------------------------------------------


def test_names():
    """A star import gives what the notebooks call, and nothing that would hide other names."""
    names = {}
    exec("from fastnorm.compat.cs231n import *", names)
    assert names.keys() - {"__builtins__"} == set(cs231n.__all__)
    pairs = ("affine", "relu", "affine_relu", "batchnorm", "layernorm")
    pairs += ("spatial_batchnorm", "spatial_groupnorm")
    wanted = {f"{pair}_{pass_}" for pair in pairs for pass_ in ("forward", "backward")}
    assert set(cs231n.__all__) == wanted | {"batchnorm_backward_alt", "softmax_loss"}


def test_import_takes_nothing_along(run_python):
    """`import fastnorm` does not pay for it, and it can be imported first."""
    run_python(
        "import sys, fastnorm\n"
        "assert not [name for name in sys.modules if name.startswith('fastnorm.compat')]"
    )
    run_python("import fastnorm.compat.cs231n as cs; assert cs.softmax_loss")


def test_alternative_is_the_same(rng):
    x, (gamma, beta) = rng.normal(size=(100, 500)), parameters(rng, 500)
    _, cache = cs231n.batchnorm_forward(x, gamma, beta, {"mode": "train"})
    dout = rng.normal(size=x.shape)
    both = cs231n.batchnorm_backward(dout, cache), cs231n.batchnorm_backward_alt(dout, cache)
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a, b)


def test_they_run_on_the_kernels(rng, monkeypatch):
    """Results have the bits of fastnorm's own functions."""
    x = rng.normal(size=(8, 3, 4, 4)).astype(np.float32)
    gamma, beta = parameters(rng, 3, np.float32)
    out, _ = cs231n.spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"})
    np.testing.assert_array_equal(out, fn.batch_norm_forward(x, gamma, beta)[0])
