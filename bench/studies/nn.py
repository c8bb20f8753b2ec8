"""What a study needs beside the layers of fastnorm: a container, convolution, pooling, a loss,
two optimisers, and the networks that are made of them.

Images are (N, H, W, C), channels last: im2col makes rows of them, and the affine layer's outputs
are channels. A convolution is these two layers one after the other.
"""

from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastnorm.layers import Affine, BatchNorm, GroupNorm, Layer, LayerNorm, ReLU, WeightNormAffine

NORMS = ("none", "batch", "layer", "group", "weight")


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
        """Return the input's gradient. Without it, stop at the first layer with parameters."""
        first = 0
        if not input_gradient:
            first = next(i for i, layer in enumerate(self.layers) if layer.params)
        for i in reversed(range(first, len(self.layers))):
            dy = self.layers[i].backward(dy, input_gradient or i > first)
        return dy

    def state_dict(self):
        """The states of all layers under one set of keys, "0.weight", "0.bias", "1.gamma", …"""
        return {
            f"{i}.{key}": value
            for i, layer in enumerate(self.layers)
            for key, value in layer.state_dict().items()
        }


# ---- Layers of images ----------------------------------------------------------------------------


class Im2col(Layer):
    """The neighbourhood of every pixel as a row: (N, H, W, C) to (N, H, W, size * size * C).

    The affine layer's weight is then the filter (size, size, C, out), its first three axes made
    one. Size is odd; beyond the border there are zeros, so that images keep their size.
    """

    def __init__(self, size=3):
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"Im2col: size must be odd, got {size}")
        self.size = size

    def _output_shape(self, x):
        return (*x.shape[:3], self.size**2 * x.shape[3])

    def _infer(self, x, out):
        size, channels = self.size, x.shape[3]
        padded, inside = self._padded("padded", x.shape, x.dtype)
        inside[...] = x
        windows = sliding_window_view(padded, (size, size), (1, 2))  # (N, H, W, C, size, size)
        rows = np.empty(self._output_shape(x), x.dtype) if out is None else out
        rows.reshape(*x.shape[:3], size, size, channels)[...] = np.moveaxis(windows, 3, 5)
        return rows

    def _forward(self, x, out):
        return self._infer(x, out), x.shape

    def _backward(self, dy, shape, out):
        """Every row gives its gradient back to where it was taken from: col2im."""
        height, width = shape[1:3]
        padded, inside = self._padded("dpadded", shape, dy.dtype)
        padded.fill(0)
        dwindows = dy.reshape(*shape[:3], self.size, self.size, shape[3])
        for i in range(self.size):
            for j in range(self.size):
                padded[:, i : i + height, j : j + width] += dwindows[:, :, :, i, j]
        dx = np.empty(shape, dy.dtype) if out is None else out
        dx[...] = inside
        return (dx,)

    def _padded(self, name, shape, dtype):
        """A buffer with a border of zeros, and its inside."""
        n, height, width, channels = shape
        border = self.size // 2
        full = (n, height + 2 * border, width + 2 * border, channels)
        buffer = self._reuse(name, full, dtype)
        if buffer is None:
            buffer = self._buffers[name] = np.zeros(full, dtype)
        return buffer, buffer[:, border : border + height, border : border + width]


class MaxPool(Layer):
    """The largest of each 2 x 2 pixels: (N, H, W, C) to (N, H / 2, W / 2, C), H and W even.

    The gradient goes to the largest; of several, to the first.
    """

    def _output_shape(self, x):
        n, height, width, channels = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"MaxPool: height and width must be even, got {height} x {width}")
        return n, height // 2, width // 2, channels

    def _infer(self, x, out):
        a, b, c, d = quarters(x)
        y = np.maximum(a, b, out=out)
        np.maximum(y, c, out=y)
        return np.maximum(y, d, out=y)

    def _forward(self, x, out):
        y = self._infer(x, out)
        return y, (x, y)

    def _backward(self, dy, cache, out):
        x, y = cache
        dx = np.empty(x.shape, x.dtype) if out is None else out
        free = np.ones(y.shape, np.bool_)
        for part, dpart in zip(quarters(x), quarters(dx), strict=True):
            largest = np.equal(part, y)
            largest &= free
            free ^= largest
            np.multiply(dy, largest, out=dpart)
        return (dx,)


def quarters(x):
    """Views of the pixels of images by their place in the 2 x 2: (0, 0), (0, 1), (1, 0), (1, 1)."""
    return [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


class Flatten(Layer):
    """Images (N, H, W, C) as rows (N, H * W * C)."""

    def _output_shape(self, x):
        return len(x), x[:1].size

    def _infer(self, x, out):
        return x.reshape(self._output_shape(x))

    def _forward(self, x, out):
        return self._infer(x, out), x.shape

    def _backward(self, dy, shape, out):
        return (dy.reshape(shape),)


# ---- Networks ------------------------------------------------------------------------------------


def affine_and_norm(norm, n_in, n_out, rng, weight_scale=None, shape=None):
    """An affine layer with its normalisation: a list of one layer or two.

    norm is one of `NORMS`. The bias before batch norm is left out: the mean that is subtracted
    takes it along. shape is what layer norm normalises over, by default the outputs; group norm
    has four groups.
    """
    options = {"rng": rng, "weight_scale": weight_scale}
    if norm == "weight":
        return [WeightNormAffine(n_in, n_out, **options)]
    if norm == "batch":
        return [Affine(n_in, n_out, bias=False, **options), BatchNorm(n_out, axis=-1)]
    affine = Affine(n_in, n_out, **options)
    if norm == "layer":
        return [affine, LayerNorm(shape or n_out)]
    if norm == "group":
        return [affine, GroupNorm(4, n_out, axis=-1)]
    if norm == "none":
        return [affine]
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


def normalised_network(norm, sizes, rng, weight_scale=None):
    """{affine, norm, ReLU} between all sizes but the last two, and an affine layer at the end.

    weight_scale is the standard deviation of all initial weights. By default it is that of
    `Affine`, but for the last layer, which starts small, so that the first predictions are all but
    uniform and the first loss is log(classes).
    """
    rng = np.random.default_rng(rng)
    layers = []
    for n_in, n_out in pairwise(sizes[:-1]):
        layers += [*affine_and_norm(norm, n_in, n_out, rng, weight_scale), ReLU()]
    return [*layers, *last_layer(norm, *sizes[-2:], rng, weight_scale or 0.01)]


def convolutional_network(norm, rng, shape=(28, 28, 1), channels=(16, 32), classes=10):
    """{3 x 3 convolution, norm, ReLU, 2 x 2 max-pool} for each of the channels, affine.

    Layer norm is over all of an image's values, as Ba et al. (2016) have it for a layer.
    """
    rng = np.random.default_rng(rng)
    height, width, n_in = shape
    layers = []
    for n_out in channels:
        image = (height, width, n_out)
        layers += [Im2col(3), *affine_and_norm(norm, 9 * n_in, n_out, rng, shape=image)]
        layers += [ReLU(), MaxPool()]
        height, width, n_in = height // 2, width // 2, n_out
    return [*layers, Flatten(), *last_layer(norm, height * width * n_in, classes, rng, 0.01)]


def last_layer(norm, n_in, classes, rng, weight_scale):
    """The layer of the scores: without a norm, but weight norm stays."""
    norm = "weight" if norm == "weight" else "none"
    return affine_and_norm(norm, n_in, classes, rng, weight_scale)


# ---- Loss ----------------------------------------------------------------------------------------


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


# ---- Optimisers ----------------------------------------------------------------------------------


class SGD:
    """Gradient descent with momentum: ``velocity = momentum * velocity - lr * grad``."""

    def __init__(self, layers, momentum=0.9):
        self.layers = layers
        self.momentum = momentum
        self.velocity = zeros_like_parameters(layers)

    def step(self, lr):
        for layer, velocity in zip(self.layers, self.velocity, strict=True):
            for key, v in velocity.items():
                v *= self.momentum
                v -= lr * layer.grads[key]
                layer.params[key] += v


class Adam:
    """Gradient descent by running means of the gradients and their squares (Kingma and Ba, 2015).

    ``param -= lr * mean / (sqrt(square) + eps)``, both means corrected for their start at zero.
    """

    def __init__(self, layers, beta1=0.9, beta2=0.999, eps=1e-8):
        self.layers = layers
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.steps = 0
        self.mean, self.square = zeros_like_parameters(layers), zeros_like_parameters(layers)

    def step(self, lr):
        self.steps += 1
        rate = lr / (1 - self.beta1**self.steps)
        scale = (1 - self.beta2**self.steps) ** -0.5
        for layer, means, squares in zip(self.layers, self.mean, self.square, strict=True):
            for key, mean in means.items():
                grad, square = layer.grads[key], squares[key]
                mean += (1 - self.beta1) * (grad - mean)
                square += (1 - self.beta2) * (grad * grad - square)
                layer.params[key] -= rate * mean / (scale * np.sqrt(square) + self.eps)


def zeros_like_parameters(layers):
    return [{key: np.zeros_like(p) for key, p in layer.params.items()} for layer in layers]
