"""What the studies train with: bench/studies/nn.py and training.py."""

import math

import nn
import numpy as np
import pytest
from training import Trainer

import fastnorm as fn
from fastnorm.testing import numerical_gradient


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


@pytest.mark.parametrize("norm", ["batch", "layer", "weight", "none"])
def test_network(norm, rng):
    sizes = [12, 8, 8, 10]
    network = nn.Sequential(nn.normalised_network(norm, sizes, 0))
    kinds = [type(layer).__name__ for layer in network.layers]
    affine = "WeightNormAffine" if norm == "weight" else "Affine"
    between = {"batch": ["BatchNorm"], "layer": ["LayerNorm"]}.get(norm, [])
    assert kinds == [affine, *between, "ReLU"] * 2 + [affine]
    x, labels = rng.normal(size=(6, 12)).astype(np.float32), np.arange(6)
    scores = network.forward(x)
    loss, dscores = nn.softmax_cross_entropy(scores, labels)
    assert loss == pytest.approx(math.log(10), abs=0.1)
    assert network.backward(dscores).shape == x.shape
    assert f"{len(kinds) - 1}.bias" in network.state_dict()


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm must be"):
        nn.normalised_network("group", [4, 3, 2], 0)


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
