"""What a study needs beside the layers: a container, a loss, an optimiser."""

from itertools import pairwise

import numpy as np

from fastnorm.layers import Affine, BatchNorm, LayerNorm, ReLU, WeightNormAffine


class Sequential:
    """Layers in a row, each of which takes the output of the one before.

    functions is where the layers find their functions, by default `fastnorm`; see
    `fastnorm.layers`.
    """

    def __init__(self, layers, functions=None):
        self.layers = layers
        if functions is not None:
            for layer in layers:
                layer.functions = functions

    def forward(self, x, training=True):
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy, input_gradient=True):
        for layer in reversed(self.layers):
            dy = layer.backward(dy, input_gradient or layer is not self.layers[0])
        return dy

    def state_dict(self):
        """The states of all layers under one set of keys, "0.weight", "0.bias", "1.gamma", …"""
        return {
            f"{i}.{key}": value
            for i, layer in enumerate(self.layers)
            for key, value in layer.state_dict().items()
        }


def normalised_network(norm, sizes, rng):
    """{affine, norm, ReLU} between all sizes but the last two, and an affine layer at the end.

    norm is "batch", "layer", "weight" or "none". The bias before batch norm is left out: the mean
    that is subtracted takes it along. The last layer starts small, so that the first
    predictions are all but uniform and the first loss is log(classes).
    """
    rng = np.random.default_rng(rng)
    layers = []
    for n_in, n_out in pairwise(sizes[:-1]):
        if norm == "weight":
            layers += [WeightNormAffine(n_in, n_out, rng=rng)]
        elif norm == "batch":
            layers += [Affine(n_in, n_out, bias=False, rng=rng), BatchNorm(n_out)]
        elif norm == "layer":
            layers += [Affine(n_in, n_out, rng=rng), LayerNorm(n_out)]
        elif norm == "none":
            layers += [Affine(n_in, n_out, rng=rng)]
        else:
            raise ValueError(f"norm must be batch, layer, weight or none, got {norm!r}")
        layers += [ReLU()]
    last = WeightNormAffine if norm == "weight" else Affine
    return [*layers, last(*sizes[-2:], weight_scale=0.01, rng=rng)]


def softmax_cross_entropy(scores, labels):
    """The mean loss, -log softmax(scores)[label], and its gradient with respect to the scores.

    Parameters
    ----------
    scores : ndarray (N, classes)
    labels : integer ndarray (N,)

    Returns
    -------
    loss : float
    dscores : ndarray (N, classes)
        (softmax(scores) - onehot(labels)) / N
    """
    n = len(labels)
    rows = np.arange(n)
    shifted = scores - scores.max(axis=1, keepdims=True)  # the largest exponential is 1
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, labels])
    exp /= total
    exp[rows, labels] -= 1
    exp /= n
    return float(loss), exp


class SGD:
    """Gradient descent with momentum: ``velocity = momentum * velocity - lr * grad``."""

    def __init__(self, layers, momentum=0.9):
        self.layers = layers
        self.momentum = momentum
        self.velocity = [{k: np.zeros_like(p) for k, p in a.params.items()} for a in layers]

    def step(self, lr):
        for layer, velocity in zip(self.layers, self.velocity, strict=True):
            for key, v in velocity.items():
                v *= self.momentum
                v -= lr * layer.grads[key]
                layer.params[key] += v
