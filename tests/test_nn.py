"""What the studies train with: bench/studies/nn.py and training.py."""

import math

import nn
import numpy as np
import pytest
from training import Trainer

import fastnorm as fn
from fastnorm.testing import check_gradients, numerical_gradient


def test_softmax_cross_entropy(rng):
    scores, labels = rng.normal(size=(5, 4)), np.array([0, 1, 2, 3, 0])
    loss, dscores = nn.softmax_cross_entropy(scores, labels)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[range(5), labels]).mean(), rel=1e-12)
    expected = numerical_gradient(lambda s: nn.softmax_cross_entropy(s, labels)[0], scores)
    np.testing.assert_allclose(dscores, expected, rtol=1e-7, atol=1e-9)
    # far apart and far from zero: no overflow, and the gradient keeps its dtype
    loss, dscores = nn.softmax_cross_entropy(np.array([[1e4, -1e4]], np.float32), np.array([1]))
    assert loss == 2e4
    np.testing.assert_array_equal(dscores, np.array([[1, -1]], np.float32), strict=True)


def test_sgd():
    layer = fn.layers.LayerNorm(1, dtype=np.float64)
    optimiser = nn.SGD([layer], momentum=0.5)
    layer.grads.update(gamma=np.array([2.0]), beta=np.array([0.0]))
    gamma = layer.params["gamma"]
    for expected in (0.8, 0.5, 0.15):  # velocities -0.2, -0.3, -0.35
        optimiser.step(0.1)
        np.testing.assert_allclose(gamma, [expected], rtol=1e-12)
    assert layer.params["gamma"] is gamma


@pytest.mark.parametrize("norm", nn.NORMS)
def test_network(norm, rng):
    sizes = [12, 8, 8, 10]
    network = nn.Sequential(nn.normalised_network(norm, sizes, 0))
    kinds = [type(layer).__name__ for layer in network.layers]
    affine = "WeightNormAffine" if norm == "weight" else "Affine"
    between = {"batch": ["BatchNorm"], "layer": ["LayerNorm"], "group": ["GroupNorm"]}.get(norm, [])
    assert kinds == [affine, *between, "ReLU"] * 2 + [affine]
    x, labels = rng.normal(size=(6, 12)).astype(np.float32), np.arange(6)
    scores = network.forward(x)
    loss, dscores = nn.softmax_cross_entropy(scores, labels)
    assert loss == pytest.approx(math.log(10), abs=0.1)
    assert network.backward(dscores).shape == x.shape
    assert f"{len(kinds) - 1}.bias" in network.state_dict()


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm must be"):
        nn.normalised_network("spectral", [4, 3, 2], 0)


def test_accuracy_is_that_of_inference(rng):
    x, labels = rng.normal(size=(50, 784)).astype(np.float32), rng.integers(0, 10, 50)
    trainer = Trainer(nn.normalised_network("batch", [784, 16, 10], 0))
    for _ in range(20):
        trainer.step(x, labels, 0.05)
    before = trainer.network.state_dict()
    accuracy = trainer.accuracy(x, labels)
    assert 0.5 < accuracy <= 1
    assert accuracy == trainer.accuracy(x, labels, batch_size=7)
    for key, value in trainer.network.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


# ---- Convolution and pooling ---------------------------------------------------------------------


def passes(layer):
    """A layer's two passes in the form that check_gradients takes."""

    def forward(x):
        return layer.forward(x).copy(), None

    return forward, lambda dy, _: layer.backward(dy)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolution(rng, size, channels):
    """Im2col and affine are a convolution, by its definition, and their gradients are right."""
    x = rng.normal(size=(2, 5, 4, channels))
    affine = fn.layers.Affine(size**2 * channels, 2, dtype=np.float64, rng=0)
    network = nn.Sequential([nn.Im2col(size), affine])
    y = network.forward(x)
    filters = affine.params["weight"].reshape(size, size, channels, 2)
    border = size // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    for h, w in np.ndindex(5, 4):
        patch = padded[:, h : h + size, w : w + size]
        np.testing.assert_allclose(y[:, h, w], np.tensordot(patch, filters, 3), rtol=1e-12)

    check_gradients(*passes(network), x)
    dy = rng.normal(size=y.shape)
    network.forward(x)
    network.backward(dy)

    def y_of(weight):
        affine.params["weight"] = weight
        return network.forward(x, training=False)

    expected = numerical_gradient(y_of, affine.params["weight"], dy)
    np.testing.assert_allclose(affine.grads["weight"], expected, rtol=1e-7, atol=1e-8)


def test_even_filters(rng):
    with pytest.raises(ValueError, match="size must be odd"):
        nn.Im2col(2)


def test_max_pool(rng):
    layer, x = nn.MaxPool(), rng.normal(size=(2, 4, 6, 3))
    expected = x.reshape(2, 2, 2, 3, 2, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(layer.forward(x), expected)
    np.testing.assert_array_equal(layer.forward(x, training=False), expected)
    check_gradients(*passes(layer), x)
    with pytest.raises(ValueError, match="must be even"):
        layer.forward(x[:, 1:])


def test_max_pool_of_equals(rng):
    """One of the largest gets all of the gradient, whatever the buffer held before."""
    layer = nn.MaxPool()
    dy = rng.normal(size=(1, 1, 2, 1))
    for x in (rng.normal(size=(1, 2, 4, 1)), np.zeros((1, 2, 4, 1))):
        layer.forward(x)
        dx = layer.backward(dy)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[dy[0, 0, 0, 0], 0, dy[0, 0, 1, 0], 0], [0] * 4])


def test_flatten(rng):
    layer, x = nn.Flatten(), rng.normal(size=(2, 3, 4, 5))
    np.testing.assert_array_equal(layer.forward(x), x.reshape(2, 60))
    check_gradients(*passes(layer), x)


@pytest.mark.parametrize("norm", nn.NORMS)
def test_convolutional_network(norm, rng):
    """Every parameter's gradient and the input's, through the whole network, in float64."""
    layers = nn.convolutional_network(norm, 0, shape=(4, 4, 2), channels=(4, 8), classes=3)
    network = nn.Sequential(layers)
    for layer in layers:
        layer.params.update({k: p.astype(np.float64) for k, p in layer.params.items()})
        layer.stats.update({k: s.astype(np.float64) for k, s in layer.stats.items()})
    x, labels = rng.normal(size=(3, 4, 4, 2)), np.array([0, 2, 1])
    _, dscores = nn.softmax_cross_entropy(network.forward(x), labels)
    dx = network.backward(dscores).copy()

    def loss(x):
        return nn.softmax_cross_entropy(network.forward(x), labels)[0]

    np.testing.assert_allclose(dx, numerical_gradient(loss, x), rtol=1e-5, atol=1e-9)
    checked = 0
    for layer in layers:
        for key, parameter in layer.params.items():

            def loss_of(value, layer=layer, key=key):
                layer.params[key] = value
                return loss(x)

            expected = numerical_gradient(loss_of, parameter)
            layer.params[key] = parameter
            np.testing.assert_allclose(layer.grads[key], expected, rtol=1e-5, atol=1e-9)
            checked += 1
    assert checked == {"none": 6, "batch": 8, "layer": 10, "group": 10, "weight": 9}[norm]


def test_first_layer_with_parameters(rng):
    """Without the input's gradient, no work is done below the first layer that has parameters."""
    x = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
    network = nn.Sequential(nn.convolutional_network("batch", 0, shape=(8, 8, 1), channels=(4,)))
    dy = np.ones_like(network.forward(x))
    network.backward(dy)
    grads = [{k: g.copy() for k, g in layer.grads.items()} for layer in network.layers]
    network.layers[0]._kept = None  # its backward would raise
    assert network.backward(dy, input_gradient=False) is None
    for layer, expected in zip(network.layers, grads, strict=True):
        for key, grad in expected.items():
            np.testing.assert_allclose(layer.grads[key], grad, rtol=1e-5, atol=1e-6)


# ---- Adam ----------------------------------------------------------------------------------------


def test_adam(rng):
    """The formulae of the paper, step by step."""
    layer = fn.layers.LayerNorm(3, dtype=np.float64)
    gamma = layer.params["gamma"]
    optimiser = nn.Adam([layer], beta1=0.8, beta2=0.95, eps=1e-3)
    theta, m, v = gamma.copy(), np.zeros(3), np.zeros(3)
    for t in range(1, 6):
        grad = rng.normal(size=3)
        layer.grads.update(gamma=grad, beta=np.zeros(3))
        m = 0.8 * m + 0.2 * grad
        v = 0.95 * v + 0.05 * grad**2
        theta -= 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        optimiser.step(0.1)
        np.testing.assert_allclose(gamma, theta, rtol=1e-12)
    assert layer.params["gamma"] is gamma
