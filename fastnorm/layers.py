"""Layers: small stateful objects over the functions of fastnorm.

A layer holds what the functions leave to their caller: parameters, gradients, running
statistics, the cache between the two passes, and output arrays that are used again.

``params``
    Dict of the parameters. Update them in place, ``layer.params[k] -= lr * layer.grads[k]``;
    `Layer.load_state_dict` writes in place too, so that a reference to a parameter stays good.
``grads``
    Dict of their gradients under the same keys, empty before the first `Layer.backward`. Every
    `Layer.backward` replaces them; nothing is accumulated.
``stats``
    Dict of the arrays that are state but not parameters: the running statistics of `BatchNorm`.
``functions``
    Where the layer looks its functions up: the module `fastnorm`. Assign `fastnorm.reference` to
    a layer, or to ``Layer.functions`` for all of them, to run it on plain NumPy.

The arrays that `Layer.forward` and `Layer.backward` return, and the gradients, belong to the
layer: they are valid until the next call of that method, which writes into them if shape and
dtype are still the same. Copy what must live longer. For the same reason a layer has one place in
a network and serves one thread at a time; the functions have neither limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

import fastnorm
from fastnorm._typing import Array, ArrayLike, Axes, Group, MaybeArray
from fastnorm.affine import parameter_gradients

__all__ = [
    "Affine",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "RMSNorm",
    "ReLU",
    "WeightNormAffine",
]


class Layer:
    """Base class: buffers, cache and state around one operation.

    A subclass gives its name, ``op``, and the names of its parameters, in the order in which the
    function takes them and returns their gradients; its other arguments are in ``options``. What
    is more than one operation overrides ``_infer``, ``_forward`` and ``_backward``.
    """

    functions: ModuleType = fastnorm
    op: ClassVar[str]
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}
        self.stats: dict[str, Array] = {}
        self._buffers: dict[str, Array] = {}
        self._kept: tuple[Array, Any] | None = None  # x and the cache, from forward to backward

    def forward(self, x: ArrayLike, training: bool = True) -> Array:
        """Return the output for x.

        A training pass keeps x, without a copy: leave it unchanged until `backward` is done.
        Inference, ``training=False``, keeps nothing, and may overwrite the output of the last
        training pass, so that `backward` then needs a new one.
        """
        x = np.asanyarray(x)
        self._kept = None
        out = self._reuse("y", self._output_shape(x), x.dtype, x)
        y: Array
        y, cache = self._forward(x, out) if training else (self._infer(x, out), None)
        self._buffers["y"] = y
        self._kept = (x, cache) if training else None
        return y

    def backward(self, dy: ArrayLike, input_gradient: bool = True) -> MaybeArray:
        """Return the gradient of x, given that of the output, and put the others into ``grads``.

        A network's first layer need not compute the gradient of its input: with
        ``input_gradient=False`` the result is None, and `Affine` does a third of the work less.

        A RuntimeError if the last call of `forward` was inference or an error, or there was none.
        """
        if self._kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward pass for training")
        x, cache = self._kept
        dy = np.asanyarray(dy)
        if input_gradient:
            dx, *grads = self._backward(dy, cache, self._reuse("dx", x.shape, x.dtype, x, dy))
            self._buffers["dx"] = dx
        else:
            dx, grads = None, self._parameter_gradients(x, dy, cache)
        self.grads.update((k, d) for k, d in zip(self.names, grads, strict=True) if d is not None)
        return dx

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of parameters and statistics, ready for ``np.savez(file, **state)``."""
        return {k: v.copy() for k, v in (self.params | self.stats).items()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Load, in place, what `state_dict` returned or what ``np.load`` opened.

        A ValueError for missing or unexpected keys and for other shapes, a TypeError for dtypes
        that do not cast to the layer's; the layer is then as it was.
        """
        own, name = self.params | self.stats, f"{type(self).__name__}.load_state_dict"
        missing, unexpected = sorted(own.keys() - set(state)), sorted(set(state) - own.keys())
        if missing or unexpected:
            raise ValueError(f"{name}: missing keys {missing}, unexpected keys {unexpected}")
        new = {}
        for key, array in own.items():
            value = np.asarray(state[key])
            if array.dtype.kind == "V" and value.dtype.kind == "V":  # np.save forgets bfloat16
                value = value.view(array.dtype)
            if value.shape != array.shape:
                raise ValueError(f"{name}: {key} must have shape {array.shape}, got {value.shape}")
            if not np.can_cast(value.dtype, array.dtype, "same_kind"):
                raise TypeError(f"{name}: {key} must be of {array.dtype}, got {value.dtype}")
            new[key] = value.astype(array.dtype)
        for key, array in own.items():
            array[...] = new[key]
        self._kept = None

    def _infer(self, x: Array, out: Array | None) -> Any:
        return self._call("", x, **self.params, **self.options, out=out)

    def _forward(self, x: Array, out: Array | None) -> Any:
        return self._call("_forward", x, **self.params, **self.options, out=out)

    def _backward(self, dy: Array, cache: Any, out: Array | None) -> Any:
        return self._call("_backward", dy, cache, out=out)

    def _parameter_gradients(self, x: Array, dy: Array, cache: Any) -> Any:
        return self._backward(dy, cache, None)[1:]

    def _call(self, suffix: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.functions, self.op + suffix)(*args, **kwargs)

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return x.shape

    def _reuse(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, *inputs: Array
    ) -> Array | None:
        """Return the buffer of this name, or None if it does not fit or is one of the inputs."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape or buffer.dtype != dtype:
            return None
        return None if any(np.may_share_memory(buffer, a) for a in inputs) else buffer

    def __getstate__(self) -> dict[str, Any]:
        # pickle and copy.deepcopy leave buffers and cache behind
        return vars(self) | {"grads": {}, "_buffers": {}, "_kept": None}


class Affine(Layer):
    """Affine layer, ``x @ weight + bias``; see `fastnorm.affine`.

    ``weight`` has shape (in_features, out_features). It is drawn, by ``default_rng(rng)``, from a
    normal distribution with standard deviation ``weight_scale``, by default that of He et al.
    (2015) for ReLU networks, ``sqrt(2 / in_features)``. ``bias``, if there is one, starts at zero.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.layers import Affine
    >>> layer = Affine(4, 3, rng=0)
    >>> y = layer.forward(np.ones((2, 4), np.float32))
    >>> dx = layer.backward(np.ones_like(y))
    >>> layer.grads["bias"]
    array([2., 2., 2.], dtype=float32)
    """

    op = "affine"
    names: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        weight_scale: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__()
        scale = math.sqrt(2 / max(in_features, 1)) if weight_scale is None else weight_scale
        weight = scale * np.random.default_rng(rng).standard_normal((in_features, out_features))
        self._set_weight(weight.astype(dtype))
        if bias:
            self.params["bias"] = np.zeros(out_features, dtype)

    def _set_weight(self, weight: Array) -> None:
        self.params["weight"] = weight

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        return (*x.shape[:-1], self.params[self.names[0]].shape[1])

    def _parameter_gradients(self, x: Array, dy: Array, cache: Any) -> Any:
        if self.functions is fastnorm:
            return parameter_gradients(dy, cache)
        rows, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        weight, bias = self.params[self.names[0]], self.params.get("bias")
        dweight = self.functions.affine(rows.T, dy).astype(weight.dtype, copy=False)
        if bias is None:
            return dweight, None
        return dweight, dy.sum(axis=0, dtype=np.float64).astype(bias.dtype)


class WeightNormAffine(Affine):
    """Affine layer with normalised weights, ``x @ (g * v / ‖v‖) + bias``; see `weight_norm`.

    The direction and the length of each output's weights are parameters of their own (Salimans
    and Kingma, 2016): ``v`` has shape (in_features, out_features), ``g`` (out_features,), and the
    norm is that of v's columns. v starts as the weight of `Affine` does, and g as its norm.
    """

    names = ("v", "g", "bias")

    def _set_weight(self, weight: Array) -> None:
        norm = np.linalg.norm(weight.astype(np.float64), axis=0)
        self.params.update(v=weight, g=norm.astype(weight.dtype))

    def _infer(self, x: Array, out: Array | None) -> Any:
        v, g, bias = self.params["v"], self.params["g"], self.params.get("bias")
        buffer = self._reuse("weight", v.shape, v.dtype)
        weight = self._buffers["weight"] = self.functions.weight_norm(v, g, axis=1, out=buffer)
        return self._call("", x, weight, bias, out=out)

    def _forward(self, x: Array, out: Array | None) -> Any:
        v, g, bias = self.params["v"], self.params["g"], self.params.get("bias")
        buffer = self._reuse("weight", v.shape, v.dtype)
        weight, norm_cache = self.functions.weight_norm_forward(v, g, axis=1, out=buffer)
        self._buffers["weight"] = weight
        y, cache = self._call("_forward", x, weight, bias, out=out)
        return y, (norm_cache, cache)

    def _backward(self, dy: Array, cache: Any, out: Array | None) -> Any:
        norm_cache, cache = cache
        dx, dweight, dbias = self._call("_backward", dy, cache, out=out)
        return dx, *self._norm_gradients(dweight, norm_cache), dbias

    def _parameter_gradients(self, x: Array, dy: Array, cache: Any) -> Any:
        norm_cache, cache = cache
        dweight, dbias = super()._parameter_gradients(x, dy, cache)
        return *self._norm_gradients(dweight, norm_cache), dbias

    def _norm_gradients(self, dweight: Array, norm_cache: Any) -> tuple[Array, Array]:
        buffer = self._reuse("dv", dweight.shape, dweight.dtype)
        dv, dg = self.functions.weight_norm_backward(dweight, norm_cache, out=buffer)
        self._buffers["dv"] = dv
        return dv, dg


def _last_axes(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """As many as `shape` has."""
    return tuple(range(-len(shape), 0)) if isinstance(shape, Sized) else (-1,)


class _Normalization(Layer):
    """What the normalisations share: gamma, which starts at one, and beta, which starts at zero."""

    names: ClassVar[tuple[str, ...]] = ("gamma", "beta")

    def __init__(
        self,
        shape: int | tuple[int, ...],
        affine: bool,
        bias: bool,
        dtype: DTypeLike,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if affine:
            self.params["gamma"] = np.ones(shape, dtype)
        if affine and bias:
            self.params["beta"] = np.zeros(shape, dtype)


class LayerNorm(_Normalization):
    """Layer normalisation; see `fastnorm.layer_norm`.

    ``shape``, an int or a tuple, is that of x at the normalised axes, and of ``gamma`` and
    ``beta``. ``axis`` gives these axes, by default the last ones, as many as ``shape`` has.
    Without ``affine`` there are no parameters, without ``bias`` there is no beta.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.layers import LayerNorm
    >>> LayerNorm(2, eps=0.0).forward(np.array([[1.0, 3.0], [5.0, 1.0]]))
    array([[-1.,  1.],
           [ 1., -1.]])
    """

    op = "layer_norm"

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        axis: Axes | None = None,
        affine: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: DTypeLike = np.float32,
    ) -> None:
        axis = _last_axes(shape) if axis is None else axis
        super().__init__(shape, affine, bias, dtype, axis=axis, eps=eps)


class RMSNorm(_Normalization):
    """RMS normalisation; see `fastnorm.rms_norm`. The arguments are those of `LayerNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.layers import RMSNorm
    >>> RMSNorm(2, eps=0.0).forward(np.array([[1.0, 7.0], [2.0, -2.0]]))
    array([[ 0.2,  1.4],
           [ 1. , -1. ]])
    """

    op = "rms_norm"
    names = ("gamma",)

    def __init__(
        self,
        shape: int | tuple[int, ...],
        *,
        axis: Axes | None = None,
        affine: bool = True,
        eps: float = 1e-6,
        dtype: DTypeLike = np.float32,
    ) -> None:
        axis = _last_axes(shape) if axis is None else axis
        super().__init__(shape, affine, False, dtype, axis=axis, eps=eps)


class BatchNorm(_Normalization):
    """Batch normalisation of ``num_features`` channels; see `fastnorm.batch_norm_forward`.

    Training normalises with the statistics of the batch and updates the running ones,
    ``stats["running_mean"]`` and ``stats["running_var"]``, with ``decay`` and ``ddof``. Inference
    normalises with these; so does training with ``layer.frozen = True``, which does not update.
    With a ``group``, such as `fastnorm.distributed.mpi` returns, the batch is that of all members.
    The other arguments are those of `LayerNorm`; the statistics are float32, or wider as dtype is.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.layers import BatchNorm
    >>> layer = BatchNorm(2)
    >>> y = layer.forward(np.array([[1.0, 3.0], [5.0, 1.0]]))
    >>> layer.stats["running_mean"]
    array([0.3, 0.2], dtype=float32)
    """

    op = "batch_norm"
    frozen = False

    def __init__(
        self,
        num_features: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        decay: float = 0.9,
        ddof: int = 1,
        group: Group | None = None,
        affine: bool = True,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_features, affine, bias, dtype, axis=axis, eps=eps)
        self.decay, self.ddof, self.group = decay, ddof, group
        mean = np.zeros(num_features, np.promote_types(np.float32, dtype))
        self.stats.update(running_mean=mean, running_var=np.ones_like(mean))

    def _infer(self, x: Array, out: Array | None) -> Any:
        mean, var = self.stats.values()
        return self._call("", x, mean, var, **self.params, **self.options, out=out)

    def _forward(self, x: Array, out: Array | None) -> Any:
        options = self.stats | self.options | {"decay": self.decay, "ddof": self.ddof}
        options |= {"group": self.group, "training": not self.frozen}
        return self._call("_forward", x, **self.params, **options, out=out)


class GroupNorm(_Normalization):
    """Group normalisation, ``num_channels`` in ``num_groups``; see `fastnorm.group_norm`.

    It has no running statistics: training and inference compute the same. The other arguments are
    those of `LayerNorm`; ``axis`` is the channel axis.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.layers import GroupNorm
    >>> GroupNorm(2, 4, eps=0.0).forward(np.array([[1.0, 3.0, 10.0, 30.0]]))
    array([[-1.,  1., -1.,  1.]])
    """

    op = "group_norm"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        *,
        axis: int = 1,
        affine: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: DTypeLike = np.float32,
    ) -> None:
        options = {"num_groups": num_groups, "axis": axis, "eps": eps}
        super().__init__(num_channels, affine, bias, dtype, **options)


class InstanceNorm(_Normalization):
    """Instance normalisation of ``num_channels`` channels; see `fastnorm.instance_norm`.

    The other arguments are those of `GroupNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.layers import InstanceNorm
    >>> InstanceNorm(2, eps=0.0).forward(np.array([[[1.0, 3.0], [10.0, 30.0]]]))
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """

    op = "instance_norm"

    def __init__(
        self,
        num_channels: int,
        *,
        axis: int = 1,
        affine: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(num_channels, affine, bias, dtype, axis=axis, eps=eps)


class ReLU(Layer):
    """Rectifier, ``max(x, 0)``; the gradient is that of the output where y > 0, and 0 elsewhere."""

    def _infer(self, x: Array, out: Array | None) -> Any:
        return np.maximum(x, 0, out=out)

    def _forward(self, x: Array, out: Array | None) -> Any:
        y = self._infer(x, out)
        return y, y

    def _backward(self, dy: Array, y: Array, out: Array | None) -> Any:
        if dy.shape != y.shape:
            raise ValueError(f"ReLU.backward: dy must have shape {y.shape}, got {dy.shape}")
        buffer = self._reuse("mask", y.shape, np.bool_)
        mask = self._buffers["mask"] = np.greater(y, 0, out=buffer)
        return (np.multiply(dy, mask, out=out, dtype=y.dtype, casting="unsafe"),)  # where= is slow
