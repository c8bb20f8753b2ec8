"""The operations as different libraries compute them, behind one interface of NumPy arrays.

An engine has four methods. Each takes float32 arrays and the gradient that arrives at the result,
dy, and returns the result and every gradient::

    batch_norm(x, gamma, beta, dy, axis, eps)     y, dx, dgamma, dbeta     axis: the channels'
    layer_norm(x, gamma, beta, dy, axes, eps)     y, dx, dgamma, dbeta     axes: normalised over
    weight_norm(v, g, dw, axis)                   w, dv, dg                g: a number per slice
    affine(x, weight, bias, dy)                   y, dx, dweight, dbias    weight: (in, out)
"""

import importlib.util
import os

import numpy as np

import fastnorm as fn


class Functions:
    """An engine over functions of fastnorm's signatures, in the given dtype."""

    def __init__(self, functions, dtype, version):
        self.functions, self.dtype, self.version = functions, dtype, version

    def _both(self, name, arrays, dy, *args, **options):
        arrays = [a.astype(self.dtype, copy=False) for a in arrays]
        forward, backward = (
            getattr(self.functions, f"{name}_{p}") for p in ("forward", "backward")
        )
        y, cache = forward(*arrays, *args, **options)
        return y, *backward(dy.astype(self.dtype, copy=False), cache)

    def batch_norm(self, x, gamma, beta, dy, axis, eps):
        return self._both("batch_norm", (x, gamma, beta), dy, axis=axis, eps=eps)

    def layer_norm(self, x, gamma, beta, dy, axes, eps):
        return self._both("layer_norm", (x, gamma, beta), dy, axis=axes, eps=eps)

    def weight_norm(self, v, g, dw, axis):
        return self._both("weight_norm", (v, g), dw, axis=axis)

    def affine(self, x, weight, bias, dy):
        return self._both("affine", (x, weight, bias), dy)


def fastnorm():
    return Functions(fn, np.float32, fn.__version__)


def truth():
    """The specification in plain NumPy, in float64, on the same float32 numbers."""
    return Functions(fn.reference, np.float64, np.__version__)


class TensorFlow:
    """Keras' own layers, differentiated by GradientTape; weight norm from operations."""

    def __init__(self):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow

        self.tf, self.version = tensorflow, tensorflow.__version__

    def _layer(self, layer, x, variables, dy):
        """variables: what the layer's weights of these names are set to."""
        x = self.tf.constant(x)
        layer.build(x.shape)
        for name, value in variables.items():
            getattr(layer, name).assign(value)
        with self.tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        weights = [getattr(layer, name).value for name in variables]
        gradients = tape.gradient(y, [x, *weights], output_gradients=self.tf.constant(dy))
        return tuple(a.numpy() for a in (y, *gradients))

    def batch_norm(self, x, gamma, beta, dy, axis, eps):
        layer = self.tf.keras.layers.BatchNormalization(axis=axis, epsilon=eps)
        return self._layer(layer, x, {"gamma": gamma, "beta": beta}, dy)

    def layer_norm(self, x, gamma, beta, dy, axes, eps):
        layer = self.tf.keras.layers.LayerNormalization(axis=list(axes), epsilon=eps)
        return self._layer(layer, x, {"gamma": gamma, "beta": beta}, dy)

    def weight_norm(self, v, g, dw, axis):
        v, g = self.tf.constant(v), self.tf.constant(g)
        others = [a for a in range(v.ndim) if a != axis]
        with self.tf.GradientTape() as tape:
            tape.watch([v, g])
            kept = self.tf.reshape(g, [-1 if a == axis else 1 for a in range(v.ndim)])
            w = kept * self.tf.nn.l2_normalize(v, others)
        gradients = tape.gradient(w, [v, g], output_gradients=self.tf.constant(dw))
        return tuple(a.numpy() for a in (w, *gradients))

    def affine(self, x, weight, bias, dy):
        layer = self.tf.keras.layers.Dense(len(bias))
        return self._layer(layer, x, {"kernel": weight, "bias": bias}, dy)


class PyTorch:
    """torch.nn.functional, and weight norm by its parametrization; differentiated by autograd."""

    def __init__(self):
        import torch

        self.torch, self.version = torch, torch.__version__

    def _run(self, function, arrays, dy, move=lambda x: x, back=lambda x: x):
        """move and back bring x into the order of axes that function wants, as views."""
        leaves = [self.torch.tensor(a, requires_grad=True) for a in arrays]
        y = back(function(move(leaves[0]), *leaves[1:]))
        y.backward(self.torch.tensor(dy))
        return tuple(a.detach().numpy() for a in (y, *(leaf.grad for leaf in leaves)))

    def batch_norm(self, x, gamma, beta, dy, axis, eps):
        def function(x, gamma, beta):
            return self.torch.nn.functional.batch_norm(
                x, None, None, gamma, beta, training=True, eps=eps
            )

        def move(x):
            return x.movedim(axis, 1)

        def back(x):
            return x.movedim(1, axis)

        return self._run(function, (x, gamma, beta), dy, move, back)

    def layer_norm(self, x, gamma, beta, dy, axes, eps):
        last = tuple(range(-len(axes), 0))

        def function(x, gamma, beta):
            return self.torch.nn.functional.layer_norm(x, gamma.shape, gamma, beta, eps)

        def move(x):
            return x.movedim(axes, last)

        def back(x):
            return x.movedim(last, axes)

        return self._run(function, (x, gamma, beta), dy, move, back)

    def weight_norm(self, v, g, dw, axis):
        module = self.torch.nn.Module()
        module.weight = self.torch.nn.Parameter(self.torch.tensor(v))
        self.torch.nn.utils.parametrizations.weight_norm(module, dim=axis)
        length, direction = module.parametrizations.weight.parameters()
        with self.torch.no_grad():
            length.copy_(self.torch.tensor(g).reshape(length.shape))
        w = module.weight
        w.backward(self.torch.tensor(dw))
        return w.detach().numpy(), direction.grad.numpy(), length.grad.numpy().reshape(g.shape)

    def affine(self, x, weight, bias, dy):
        return self._run(lambda x, w, b: x @ w + b, (x, weight, bias), dy)


def installed(package):
    return importlib.util.find_spec(package) is not None


def available(say):
    """fastnorm and whichever frameworks are installed; `say` is told of those that are not."""
    engines = {"fastnorm": fastnorm()}
    for engine, package in ((TensorFlow, "tensorflow"), (PyTorch, "torch")):
        name = engine.__name__
        if installed(package):
            engines[name] = engine()
        else:
            say(f"{name}: left out, it is not installed (pip install {package})")
    return engines
