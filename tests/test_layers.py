"""The layers: gradients, agreement with the functions, buffers, state, training and inference."""

import copy
import doctest
import pickle
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import fastnorm as fn
from fastnorm._registry import DTYPES
from fastnorm.layers import (
    Affine,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    ReLU,
    RMSNorm,
    WeightNormAffine,
)
from fastnorm.testing import numerical_gradient

# How each layer is made, given further options, and the shape of its input.
LAYERS = {
    "affine": (lambda **o: Affine(5, 4, rng=0, **o), (3, 5)),
    "affine-3d": (lambda **o: Affine(5, 4, rng=0, **o), (2, 3, 5)),
    "affine-no-bias": (lambda **o: Affine(5, 4, rng=0, bias=False, **o), (3, 5)),
    "weight-norm": (lambda **o: WeightNormAffine(5, 4, rng=0, **o), (3, 5)),
    "weight-norm-no-bias": (lambda **o: WeightNormAffine(5, 4, rng=0, bias=False, **o), (3, 5)),
    "layer-norm": (lambda **o: LayerNorm(5, **o), (3, 5)),
    "layer-norm-2d": (lambda **o: LayerNorm((4, 3), **o), (2, 4, 3)),
    "layer-norm-axis": (lambda **o: LayerNorm(4, axis=1, **o), (2, 4, 3)),
    "layer-norm-no-bias": (lambda **o: LayerNorm(5, bias=False, **o), (3, 5)),
    "layer-norm-no-affine": (lambda **o: LayerNorm(5, affine=False, **o), (3, 5)),
    "rms-norm": (lambda **o: RMSNorm(5, **o), (3, 5)),
    "rms-norm-2d": (lambda **o: RMSNorm((4, 3), **o), (2, 4, 3)),
    "rms-norm-no-affine": (lambda **o: RMSNorm(5, affine=False, **o), (3, 5)),
    "batch-norm": (lambda **o: BatchNorm(5, **o), (6, 5)),
    "batch-norm-4d": (lambda **o: BatchNorm(3, **o), (2, 3, 2, 2)),
    "batch-norm-axis": (lambda **o: BatchNorm(3, axis=-1, **o), (2, 2, 3)),
    "batch-norm-no-bias": (lambda **o: BatchNorm(5, bias=False, **o), (6, 5)),
    "batch-norm-no-affine": (lambda **o: BatchNorm(5, affine=False, **o), (6, 5)),
    "group-norm": (lambda **o: GroupNorm(2, 4, **o), (3, 4, 5)),
    "group-norm-2d": (lambda **o: GroupNorm(2, 6, **o), (3, 6)),
    "group-norm-axis": (lambda **o: GroupNorm(2, 4, axis=-1, **o), (2, 3, 2, 4)),
    "group-norm-no-bias": (lambda **o: GroupNorm(2, 4, bias=False, **o), (3, 4, 5)),
    "group-norm-no-affine": (lambda **o: GroupNorm(2, 4, affine=False, **o), (3, 4, 5)),
    "instance-norm": (lambda **o: InstanceNorm(4, **o), (3, 4, 5)),
    "instance-norm-axis": (lambda **o: InstanceNorm(4, axis=-1, **o), (2, 3, 2, 4)),
    "instance-norm-no-affine": (lambda **o: InstanceNorm(4, affine=False, **o), (3, 4, 5)),
    "relu": (lambda **o: ReLU(), (3, 5)),
}

# Central differences in float64 with a step of 6e-6 are good to about 1e-10 where values are of
# order 1; the second derivatives of a normalisation over five values add two digits.
DIFFERENCES = {"rtol": 1e-7, "atol": 1e-8}

# Four normalisations over four to seven values, one after another, multiply what they add.
NETWORK_DIFFERENCES = {"rtol": 1e-6, "atol": 1e-7}

KINDS = pytest.mark.parametrize(
    "kind", [Affine, WeightNormAffine, LayerNorm, RMSNorm, BatchNorm, ReLU]
)


@pytest.fixture(params=LAYERS)
def make(request):
    """A function that makes a layer, the same at each call, with parameters away from 0 and 1."""

    def make(**options):
        rng = np.random.default_rng(1)
        layer = LAYERS[request.param][0](**options)
        for p in [*layer.params.values(), *layer.stats.values()]:
            p += rng.uniform(0.1, 0.5, p.shape).astype(p.dtype)
        return layer

    make.shape = LAYERS[request.param][1]
    return make


def normal(seed, shape, dtype=np.float32):
    x = np.random.default_rng(seed).standard_normal(shape)
    return (x + np.copysign(0.1, x)).astype(dtype)  # away from ReLU's corner


def small(kind):
    """A layer of this kind for x of shape (n, 3)."""
    return kind(*{Affine: (3, 3), WeightNormAffine: (3, 3), ReLU: ()}.get(kind, (3,)))


def step(layer, seed, shape, dtype=np.float32):
    """Copies of the output, the gradient of x and those of the parameters, in one dict."""
    y = layer.forward(normal(seed, shape, dtype)).copy()
    dx = layer.backward(normal(seed + 100, y.shape, dtype)).copy()
    return {"y": y, "dx": dx} | {k: v.copy() for k, v in layer.grads.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key, strict=True)


# ---- Gradients -----------------------------------------------------------------------------------


def check_layer(layer, shape):
    x = normal(2, shape, np.float64)
    y = layer.forward(x)
    dy = normal(3, y.shape, np.float64)
    dx = layer.backward(dy).copy()
    grads = {k: v.copy() for k, v in layer.grads.items()}
    assert grads.keys() == layer.params.keys()
    expected = numerical_gradient(lambda x: layer.forward(x).copy(), x, dy)
    np.testing.assert_allclose(dx, expected, **DIFFERENCES)
    for key, p in layer.params.items():
        expected = gradient_of_parameter(p, lambda: layer.forward(x).copy(), dy)
        np.testing.assert_allclose(grads[key], expected, **DIFFERENCES, err_msg=key)


def gradient_of_parameter(p, forward, dy):
    before = p.copy()

    def output(value):
        p[...] = value
        return forward()

    try:
        return numerical_gradient(output, before, dy)
    finally:
        p[...] = before


def test_gradients(make):
    check_layer(make(dtype=np.float64), make.shape)


def test_gradients_of_frozen_batch_norm():
    layer = BatchNorm(3, dtype=np.float64)
    layer.frozen = True
    layer.stats["running_mean"] += 0.5
    layer.stats["running_var"] += 2.0
    before = layer.state_dict()
    check_layer(layer, (4, 3))
    for key in layer.stats:
        np.testing.assert_array_equal(layer.stats[key], before[key])
    x = normal(0, (4, 3), np.float64)
    inference = layer.forward(x, training=False).copy()
    np.testing.assert_allclose(layer.forward(x), inference, rtol=1e-14)


def test_gradients_through_a_network():
    # Two layers of a kind: what they keep must be their own.
    layers = [
        *(Affine(6, 5, rng=1, dtype=np.float64), BatchNorm(5, dtype=np.float64), ReLU()),
        *(Affine(5, 5, rng=2, dtype=np.float64), BatchNorm(5, dtype=np.float64), ReLU()),
        *(WeightNormAffine(5, 4, rng=3, dtype=np.float64), LayerNorm(4, dtype=np.float64)),
        *(WeightNormAffine(4, 4, rng=4, dtype=np.float64), LayerNorm(4, dtype=np.float64)),
    ]

    def forward(x):
        for layer in layers:
            x = layer.forward(x)
        return x.copy()

    x, dy = normal(5, (7, 6), np.float64), normal(6, (7, 4), np.float64)
    forward(x)
    dx = dy
    for layer in reversed(layers):
        dx = layer.backward(dx)
    dx = dx.copy()
    grads = [{k: v.copy() for k, v in layer.grads.items()} for layer in layers]
    np.testing.assert_allclose(dx, numerical_gradient(forward, x, dy), **NETWORK_DIFFERENCES)
    for layer, grad in zip(layers, grads, strict=True):
        for key, p in layer.params.items():
            expected = gradient_of_parameter(p, lambda: forward(x), dy)
            np.testing.assert_allclose(grad[key], expected, **NETWORK_DIFFERENCES, err_msg=key)


# ---- The functions -------------------------------------------------------------------------------


def by_functions(layer, x, dy):
    """What `step` returns, and inference, without layers."""
    p = layer.params
    norm = {"gamma": p.get("gamma"), "beta": p.get("beta")} | layer.options
    if isinstance(layer, WeightNormAffine):
        w, wcache = fn.weight_norm_forward(p["v"], p["g"], axis=1)
        inference = fn.affine(x, fn.weight_norm(p["v"], p["g"], axis=1), p.get("bias"))
        y, cache = fn.affine_forward(x, w, p.get("bias"))
        dx, dw, dbias = fn.affine_backward(dy, cache)
        dv, dg = fn.weight_norm_backward(dw, wcache)
        grads = {"v": dv, "g": dg, "bias": dbias}
    elif isinstance(layer, Affine):
        inference = fn.affine(x, p["weight"], p.get("bias"))
        y, cache = fn.affine_forward(x, p["weight"], p.get("bias"))
        dx, dweight, dbias = fn.affine_backward(dy, cache)
        grads = {"weight": dweight, "bias": dbias}
    elif isinstance(layer, LayerNorm | GroupNorm | InstanceNorm):
        inference = getattr(fn, layer.op)(x, **norm)
        y, cache = getattr(fn, f"{layer.op}_forward")(x, **norm)
        dx, dgamma, dbeta = getattr(fn, f"{layer.op}_backward")(dy, cache)
        grads = {"gamma": dgamma, "beta": dbeta}
    elif isinstance(layer, RMSNorm):
        del norm["beta"]
        inference = fn.rms_norm(x, **norm)
        y, cache = fn.rms_norm_forward(x, **norm)
        dx, dgamma = fn.rms_norm_backward(dy, cache)
        grads = {"gamma": dgamma}
    elif isinstance(layer, BatchNorm):
        inference = fn.batch_norm(
            x, layer.stats["running_mean"], layer.stats["running_var"], **norm
        )
        y, cache = fn.batch_norm_forward(x, **norm)
        dx, dgamma, dbeta = fn.batch_norm_backward(dy, cache)
        grads = {"gamma": dgamma, "beta": dbeta}
    else:
        zero = np.zeros_like(x)
        inference = y = np.where(x > 0, x, zero)
        dx, grads = np.where(x > 0, dy, zero), {}
    return inference, {"y": y, "dx": dx} | {k: v for k, v in grads.items() if v is not None}


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_same_as_the_functions(make, x_dtype):
    layer = make()
    x = normal(0, make.shape, x_dtype)
    dy = normal(100, layer.forward(x, training=False).shape, x_dtype)
    layer = make()
    inference, training = by_functions(layer, x, dy)
    np.testing.assert_array_equal(layer.forward(x, training=False), inference, strict=True)
    assert_same(step(layer, 0, make.shape, x_dtype), training)
    for key, p in layer.params.items():
        assert p.dtype == np.float32
        assert layer.grads[key].dtype == np.float32
        assert layer.grads[key].shape == p.shape


def test_functions_can_be_exchanged(make):
    layer, other = make(), make()
    other.functions = fn.reference
    ours, numpys = step(layer, 0, make.shape), step(other, 0, make.shape)
    assert ours.keys() == numpys.keys()
    for key in ours:
        # a few float32 roundings, in sums of at most 12 values of order 1
        np.testing.assert_allclose(ours[key], numpys[key], rtol=1e-5, atol=1e-5, err_msg=key)


def test_functions_are_looked_up_where_the_layer_says():
    calls = []

    def layer_norm(x, gamma, beta, *, axis, eps, out):
        calls.append((axis, eps, out))
        return x + 1

    layer = LayerNorm(3, eps=0.5)
    layer.functions = SimpleNamespace(layer_norm=layer_norm)
    x = np.zeros((2, 3))
    y = layer.forward(x, training=False)
    assert layer.forward(x, training=False) is not x
    assert calls[0] == ((-1,), 0.5, None)
    assert calls[1][2] is y  # the first result is the buffer of the second call


def test_other_layers_can_be_built_on_the_base():
    class RMSNorm(fn.layers.Layer):
        op = "rms_norm"
        names = ("gamma",)

        def __init__(self, n):
            super().__init__(axis=-1, eps=1e-6)
            self.params["gamma"] = np.ones(n, np.float32)

    layer = RMSNorm(3)
    layer.functions = fn.reference
    y = layer.forward(np.array([[1.0, 2.0, 2.0]]))
    np.testing.assert_allclose(y, np.array([[1, 2, 2]]) / np.sqrt(3), rtol=1e-6)
    assert layer.backward(y).shape == (1, 3)
    assert layer.grads.keys() == {"gamma"}


# ---- Buffers -------------------------------------------------------------------------------------


def test_results_are_written_into_the_same_arrays(make):
    layer = make()
    y = layer.forward(normal(0, make.shape))
    dx = layer.backward(normal(1, y.shape))
    for training in (True, False, True):
        assert layer.forward(normal(2, make.shape), training) is y
    assert layer.backward(normal(3, y.shape)) is dx
    assert y is not dx


def test_a_step_does_not_depend_on_those_before(make):
    layer, fresh = make(), make()
    larger = (2 * make.shape[0], *make.shape[1:])
    step(layer, 0, make.shape)
    step(layer, 1, make.shape)
    step(layer, 2, larger)
    step(layer, 3, make.shape, np.float64)
    layer.forward(normal(4, make.shape), training=False)
    assert_same(step(layer, 5, make.shape), step(fresh, 5, make.shape))


def test_another_shape_or_dtype_gets_a_new_array(make):
    layer = make()
    y = layer.forward(normal(0, make.shape))
    dx = layer.backward(normal(1, y.shape))
    y_before, dx_before = y.copy(), dx.copy()
    larger = (2 * make.shape[0], *make.shape[1:])
    for shape, x_dtype in ((larger, np.float32), (make.shape, np.float64)):
        other = layer.forward(normal(2, shape, x_dtype))
        assert other.dtype == x_dtype
        assert layer.backward(normal(3, other.shape, x_dtype)).shape == shape
    np.testing.assert_array_equal(y, y_before)
    np.testing.assert_array_equal(dx, dx_before)


@pytest.mark.parametrize("training", [True, False])
@KINDS
def test_a_layer_may_take_its_own_output(kind, training):
    layer = small(kind)
    x = normal(0, (4, 3))
    other = copy.deepcopy(layer)
    once = other.forward(x, training).copy()
    twice = other.forward(once, training).copy()
    np.testing.assert_array_equal(layer.forward(layer.forward(x, training), training), twice)


def test_backward_may_take_its_own_result():
    layer, other = LayerNorm(4), LayerNorm(4)
    x, dy = normal(0, (3, 4)), normal(1, (3, 4))
    layer.forward(x)
    other.forward(x)
    once = other.backward(dy).copy()
    np.testing.assert_array_equal(layer.backward(layer.backward(dy)), other.backward(once))


@pytest.mark.parametrize("functions", [fn, fn.reference], ids=["fastnorm", "reference"])
def test_parameter_gradients_alone(make, functions):
    both, alone = make(dtype=np.float64), make(dtype=np.float64)
    both.functions = alone.functions = functions
    x = normal(0, make.shape, np.float64)
    dy = normal(1, both.forward(x).shape, np.float64)
    both.backward(dy)
    alone.forward(x)
    assert alone.backward(dy, input_gradient=False) is None
    assert alone.grads.keys() == both.grads.keys()
    for key, gradient in both.grads.items():
        assert alone.grads[key].dtype == gradient.dtype
        np.testing.assert_allclose(alone.grads[key], gradient, rtol=1e-13, atol=1e-14)


def test_inputs_are_left_as_they_are(make):
    layer = make()
    x = normal(0, make.shape)
    x.flags.writeable = False
    y = layer.forward(x)
    dy = normal(1, y.shape)
    dy.flags.writeable = False
    layer.backward(dy)
    layer.forward(x, training=False)
    np.testing.assert_array_equal(x, normal(0, make.shape))
    np.testing.assert_array_equal(dy, normal(1, y.shape))


def test_steps_allocate_nothing_of_the_size_of_x():
    layers = [LayerNorm(512), BatchNorm(512), ReLU()]
    x, dy = normal(0, (256, 512)), normal(1, (256, 512))

    def run():
        for layer in layers:
            layer.forward(x)
            layer.backward(dy)
            layer.forward(x, training=False)

    run()
    tracemalloc.start()
    try:
        run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 2


# ---- Training, inference, errors -----------------------------------------------------------------


def test_backward_needs_a_training_pass(make):
    layer = make()
    dy = np.ones(layer.forward(normal(0, make.shape), training=False).shape, np.float32)
    for prepare in (
        lambda: None,
        lambda: (layer.forward(normal(0, make.shape)), layer.forward(normal(0, make.shape), False)),
        lambda: (layer.forward(normal(0, make.shape)), layer.load_state_dict(layer.state_dict())),
    ):
        prepare()
        with pytest.raises(RuntimeError, match=f"{type(layer).__name__}.backward needs a forward"):
            layer.backward(dy)
    assert not layer.grads


def test_what_is_kept(make):
    layer = make()
    x = normal(0, make.shape)
    kept = weakref.ref(x)
    y = layer.forward(x)
    del x
    assert kept() is not None  # training keeps x itself, no copy
    x = normal(1, make.shape)
    dropped = weakref.ref(x)
    assert layer.forward(x, training=False) is y
    del x
    assert kept() is None
    assert dropped() is None


@pytest.mark.parametrize("ddof", [0, 1])
def test_running_statistics(ddof):
    layer = BatchNorm(3, decay=0.75, ddof=ddof)
    mean, var = np.zeros(3), np.ones(3)
    for seed in range(3):
        x = 2 * normal(seed, (8, 3, 5)) + 1
        layer.forward(x)
        mean = 0.75 * mean + 0.25 * x.mean(axis=(0, 2), dtype=np.float64)
        var = 0.75 * var + 0.25 * x.var(axis=(0, 2), ddof=ddof, dtype=np.float64)
        np.testing.assert_allclose(layer.stats["running_mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(layer.stats["running_var"], var, rtol=1e-5)
    before = layer.state_dict()
    y = layer.forward(x, training=False)
    assert_same(layer.state_dict(), before)
    expected = (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_parameter_and_statistic_dtypes(given, expected):
    for layer in (Affine(2, 3, dtype=given), WeightNormAffine(2, 3, dtype=given)):
        assert {p.dtype.name for p in layer.params.values()} == {given}
    layer = BatchNorm(3, dtype=given)
    assert {p.dtype.name for p in layer.params.values()} == {given}
    assert {s.dtype.name for s in layer.stats.values()} == {expected}
    if given in DTYPES:
        layer.forward(normal(0, (4, 3)))
        assert {s.dtype.name for s in layer.stats.values()} == {expected}


def test_parameters_can_be_left_out():
    assert Affine(2, 3, bias=False).params.keys() == {"weight"}
    assert WeightNormAffine(2, 3, bias=False).params.keys() == {"v", "g"}
    for layer in (LayerNorm, BatchNorm):
        assert layer(3).params.keys() == {"gamma", "beta"}
        assert layer(3, bias=False).params.keys() == {"gamma"}
        assert not layer(3, affine=False).params


def test_initial_weights():
    weight = Affine(300, 200, rng=0).params["weight"]
    # the standard deviation of 60,000 draws is within 0.3 % (one sigma) of that drawn from
    assert weight.std() == pytest.approx(np.sqrt(2 / 300), rel=0.01)
    assert abs(weight.mean()) < 5 * np.sqrt(2 / 300) / np.sqrt(weight.size)
    scaled = Affine(300, 200, weight_scale=0.5, rng=0).params["weight"]
    np.testing.assert_allclose(scaled, weight * 0.5 / np.sqrt(2 / 300), rtol=1e-6)
    assert not Affine(300, 200).params["bias"].any()
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(Affine(300, 200, rng=rng).params["weight"], weight)
    assert (Affine(300, 200, rng=rng).params["weight"] != weight).any()


def test_weight_norm_starts_as_the_affine_layer():
    affine, normed = Affine(50, 20, rng=0), WeightNormAffine(50, 20, rng=0)
    np.testing.assert_array_equal(normed.params["v"], affine.params["weight"])
    assert normed.params["g"].shape == (20,)
    x = normal(1, (4, 50))
    np.testing.assert_allclose(normed.forward(x), affine.forward(x), rtol=1e-5, atol=1e-5)


def test_an_optimiser_updates_in_place(make):
    layer = make()
    y = layer.forward(normal(0, make.shape))
    loss = np.square(y).sum()
    layer.backward(2 * y)
    own = dict(layer.params)
    for k in layer.params:
        layer.params[k] -= 1e-3 * layer.grads[k]
    assert all(layer.params[k] is own[k] for k in own)
    assert np.square(layer.forward(normal(0, make.shape))).sum() < loss or not own


def test_relu():
    layer = ReLU()
    x = np.array([-1.0, -0.0, 0.0, 2.0, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(layer.forward(x), [0, 0, 0, 2, np.inf, 0, np.nan])
    np.testing.assert_array_equal(layer.backward(np.full(7, 3.0)), [0, 0, 0, 3, 3, 0, 0])
    with pytest.raises(ValueError, match=r"ReLU.backward: dy must have shape \(7,\), got \(\)"):
        layer.backward(3.0)


def test_relu_in_mixed_dtypes():
    types = (np.float16, np.float32, np.float64, pytest.importorskip("ml_dtypes").bfloat16)
    for x_dtype in types:
        for dy_dtype in types:
            layer = ReLU()
            layer.forward(np.array([-1, 2], x_dtype))
            dx = layer.backward(np.array([3, 3], dy_dtype))
            np.testing.assert_array_equal(dx, np.array([0, 3], x_dtype), strict=True)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Affine(5, 4), (3, 4)),
        (WeightNormAffine(5, 4), (3, 4)),
        (LayerNorm(5), (3, 4)),
        (LayerNorm((2, 5)), (3, 5, 2)),
        (BatchNorm(5), (5, 3)),
        (BatchNorm(5, affine=False), (5, 3)),
        (BatchNorm(5), (1, 5)),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else type(value).__name__,
)
def test_input_errors_leave_the_layer_as_it_was(layer, shape):
    layer.forward(np.ones((3, 2, 5) if len(shape) == 3 else (3, 5), np.float32))
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"must|needs"):
        layer.forward(np.ones(shape, np.float32))
    assert_same(layer.state_dict(), before)
    with pytest.raises(RuntimeError):
        layer.backward(np.ones(shape, np.float32))


@KINDS
def test_wrong_dy_is_an_error(kind):
    layer = small(kind)
    layer.forward(normal(0, (4, 3)))
    with pytest.raises(ValueError, match="dy must have shape"):
        layer.backward(np.ones((4, 2), np.float32))


def test_integers_are_an_error():
    for layer in (Affine(3, 2), LayerNorm(3), BatchNorm(3)):
        with pytest.raises(TypeError):
            layer.forward(np.arange(12).reshape(4, 3))


# ---- State ---------------------------------------------------------------------------------------


def test_state_goes_through_a_file(make, tmp_path):
    layer, other = make(), make()
    step(layer, 0, make.shape)  # running statistics move
    for p in layer.params.values():
        p += 1
    np.savez(tmp_path / "state.npz", **layer.state_dict())
    own = other.params | other.stats
    with np.load(tmp_path / "state.npz") as file:
        other.load_state_dict(file)
    assert_same(other.state_dict(), layer.state_dict())
    for key, array in (other.params | other.stats).items():
        assert array is own[key]  # in place
    x = normal(3, make.shape)
    np.testing.assert_array_equal(other.forward(x, False), layer.forward(x, False))


def test_state_holds_the_running_statistics():
    assert BatchNorm(2).state_dict().keys() == {"gamma", "beta", "running_mean", "running_var"}


def test_state_is_a_copy(make):
    layer = make()
    state = layer.state_dict()
    before = copy.deepcopy(state)
    for p in [*layer.params.values(), *layer.stats.values()]:
        p += 1
    assert_same(state, before)


def test_state_of_another_floating_dtype_is_converted():
    layer = Affine(2, 3)
    state = {k: v.astype(np.float64) + 0.125 for k, v in layer.state_dict().items()}
    layer.load_state_dict(state)
    assert {p.dtype for p in layer.params.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(layer.params["bias"], np.full(3, 0.125))


def test_state_in_bfloat16(tmp_path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    layer, other = BatchNorm(3, dtype=bfloat16), BatchNorm(3, dtype=bfloat16)
    layer.params["gamma"] += np.array([0.5, 1.5, 2.5], bfloat16)
    np.savez(tmp_path / "state.npz", **layer.state_dict())
    with np.load(tmp_path / "state.npz") as file:
        other.load_state_dict(file)
    assert_same(other.state_dict(), layer.state_dict())
    other.load_state_dict(BatchNorm(3).state_dict())  # from float32
    np.testing.assert_array_equal(other.params["gamma"], np.ones(3, bfloat16))
    with pytest.raises(TypeError):
        BatchNorm(3).load_state_dict(other.state_dict() | {"beta": np.zeros(3, "V2")})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("running_var"), ValueError, r"missing keys \['running_var'\]"),
        (lambda s: s.update(weight=np.ones(3)), ValueError, r"unexpected keys \['weight'\]"),
        (
            lambda s: s.update(running_var=np.ones(4)),
            ValueError,
            r"BatchNorm.load_state_dict: running_var must have shape \(3,\), got \(4,\)",
        ),
        (lambda s: s.update(running_var=np.float32(1)), ValueError, r"shape \(3,\), got \(\)"),
        (lambda s: s.update(running_var=np.ones(3, complex)), TypeError, "complex128"),
        (lambda s: s.update(running_var=np.array(["a", "b", "c"])), TypeError, "running_var"),
    ],
    ids=["missing", "unexpected", "shape", "scalar", "complex", "text"],
)
def test_state_errors_leave_the_layer_as_it_was(change, error, message):
    layer = BatchNorm(3)
    before = layer.state_dict()
    state = {k: v + 1 for k, v in before.items()}
    change(state)
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    assert_same(layer.state_dict(), before)


@KINDS
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["copy", "pickle"]
)
def test_layers_can_be_copied_and_pickled(kind, duplicate):
    layer = small(kind)
    step(layer, 0, (4, 3))
    twin = duplicate(layer)
    assert_same(twin.state_dict(), layer.state_dict())
    x = normal(1, (4, 3))
    y = layer.forward(x, training=False)
    kept = y.copy()
    np.testing.assert_array_equal(twin.forward(x, training=False), y)
    step(twin, 2, (4, 3))
    np.testing.assert_array_equal(y, kept)  # no buffers in common


@KINDS
def test_copies_are_without_buffers_and_cache(kind):
    layer = small(kind)
    empty = len(pickle.dumps(layer))
    step(layer, 0, (1000, 3))
    assert len(pickle.dumps(layer)) < empty + 100
    twin = copy.deepcopy(layer)
    assert not twin.grads
    with pytest.raises(RuntimeError):
        twin.backward(np.ones((1000, 3), np.float32))


def test_examples():
    done = doctest.testmod(fn.layers)
    assert done.attempted > 0
    assert done.failed == 0
