"""Typical uses, for type checkers: `mypy --strict` must find nothing here, and the types asserted.

Nothing runs this file: `mypy`, without arguments, checks it and the package.
"""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastnorm as fn
from fastnorm import layers
from fastnorm.testing import check_gradients, numerical_gradient


def inference(x: NDArray[np.float32], gamma: NDArray[np.float32]) -> NDArray[Any]:
    y = fn.layer_norm(x, gamma, axis=(1, 2), eps=1e-6, out=np.empty_like(x))
    assert_type(y, NDArray[Any])
    y = fn.rms_norm([[1.0, 2.0]], [1.0, 1.0])
    y = fn.batch_norm(x, gamma, gamma, axis=-1)
    y = fn.group_norm(x, 2, gamma)
    y = fn.instance_norm(x, beta=gamma)
    y = fn.weight_norm(x, np.float32(1), axis=None)
    return fn.affine(y, x.T, gamma)


def training_step(x: NDArray[np.float32], weight: NDArray[np.float32]) -> float:
    gamma, bias = np.ones(3, np.float32), np.zeros(3, np.float32)
    h, affine_cache = fn.affine_forward(x, weight, bias)
    y, norm_cache = fn.layer_norm_forward(h, gamma)
    dh, dgamma, dbeta = fn.layer_norm_backward(y, norm_cache)
    assert_type(dh, NDArray[Any])
    gamma -= 0.1 * dgamma  # no proof that there is one: gamma was given
    assert dbeta is None
    _, dweight, dbias = fn.affine_backward(dh, affine_cache, out=np.empty_like(x))
    assert_type(dweight, NDArray[Any])
    weight -= 0.1 * dweight
    bias -= 0.1 * dbias
    return float(norm_cache.mean.sum() + norm_cache.rstd.sum())


def statistics(x: NDArray[np.float64]) -> None:
    running_mean, running_var = np.zeros(3), np.ones(3)
    _, cache = fn.batch_norm_forward(
        x, running_mean=running_mean, running_var=running_var, decay=0.99, ddof=0
    )
    assert_type(cache.mean, NDArray[Any])
    assert_type(cache.gamma, NDArray[Any] | None)
    assert_type(cache.frozen, bool)
    dx, *_ = fn.batch_norm_backward(x, cache)
    _, group_cache = fn.group_norm_forward(x, 1)
    _, instance_cache = fn.instance_norm_forward(x)
    dx, *_ = fn.group_norm_backward(x, group_cache)
    dx, *_ = fn.instance_norm_backward(x, instance_cache)
    assert_type(dx, NDArray[Any])
    _, weight_cache = fn.weight_norm_forward(x, running_var, axis=1)
    assert_type(fn.weight_norm_backward(x, weight_cache), tuple[NDArray[Any], NDArray[Any]])


class Alone:
    """A group, by its method."""

    def allgather(self, array: NDArray[Any], /) -> NDArray[Any]:
        return array[None]


def shared(x: NDArray[np.float32]) -> None:
    group: fn.distributed.Group = fn.distributed.mpi(timeout=60)
    _, cache = fn.batch_norm_forward(x, group=group)
    _, cache = fn.batch_norm_forward(x, group=fn.distributed.torch())
    _, cache = fn.batch_norm_forward(x, group=Alone())
    assert_type(cache.group, fn.distributed.Group | None)
    layers.BatchNorm(3, group=group)
    m = fn.Moments.of(x, axis=-1) + fn.Moments(3).update(x)
    assert_type(fn.Moments.merge([m, fn.Moments.unpack(m.pack())]), fn.Moments)
    assert_type(m.var(ddof=1), NDArray[Any])
    assert_type(m.count, int)


def mistakes(x: NDArray[np.float32]) -> None:
    fn.batch_norm_forward(x, group=3)  # type: ignore[arg-type]
    """Each of these is an error; an ignore that hides none is one, too (warn_unused_ignores)."""
    _, cache = fn.layer_norm_forward(x)
    fn.rms_norm_backward(x, cache)  # type: ignore[arg-type] # the cache of another operation
    fn.layer_norm(x, axis="last")  # type: ignore[arg-type]
    fn.layer_norm(x, None, None, -1)  # type: ignore[call-arg] # axis is named
    fn.batch_norm_forward(x, running_mean=[0.0])  # type: ignore[arg-type] # cannot be updated
    fn.layer_norm(x, out=[0.0])  # type: ignore[arg-type]
    fn.show_config(mode="json")  # type: ignore[call-overload]
    with fn.num_threads("all"):  # type: ignore[arg-type]
        pass


def the_rest(x: NDArray[np.float32]) -> None:
    with fn.num_threads(2):
        assert_type(fn.get_num_threads(), int)
    fn.set_num_threads(np.int64(2))
    assert_type(fn.show_config(mode="dicts"), dict[str, Any])
    assert_type(fn.__version__, str)
    assert_type(fn.reference.layer_norm(x), NDArray[Any])
    errors = check_gradients(fn.layer_norm_forward, fn.layer_norm_backward, x, None, axis=0)
    assert_type(errors, dict[str, float])
    assert_type(numerical_gradient(np.square, x), NDArray[Any])


def network(x: NDArray[np.float32]) -> None:
    model: list[layers.Layer] = [
        layers.Affine(4, 8, rng=0),
        layers.LayerNorm(8),
        layers.BatchNorm(8, decay=0.99),
        layers.GroupNorm(2, 8, dtype=np.float64),
        layers.InstanceNorm(8),
        layers.RMSNorm((8,)),
        layers.ReLU(),
        layers.WeightNormAffine(8, 1, bias=False),
    ]
    y: NDArray[Any] = x
    for layer in model:
        y = layer.forward(y)
    for layer in reversed(model):
        y = layer.backward(y)
        for name, gradient in layer.grads.items():
            layer.params[name] -= 0.1 * gradient
    np.savez("model.npz", allow_pickle=False, **model[0].state_dict())
    with np.load("model.npz") as file:
        model[0].load_state_dict(file)
