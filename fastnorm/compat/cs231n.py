"""The layers of Stanford's course CS231n, by its names and conventions, on fastnorm's kernels.

``from fastnorm.compat.cs231n import *`` at the end of the course's ``cs231n/layers.py`` puts these
functions in the place of those above it; the notebooks, ``layer_utils.py`` and the networks run
on unchanged.

Conventions, where they are not those of `fastnorm`:

- Results have the dtype that NumPy's arithmetic would give them: that of x, gamma and beta
  together; integers become float64. Running statistics are float32 at least.
- ``bn_param``, ``ln_param`` and ``gn_param`` are dicts of options, ``eps`` (1e-5) among them.
  gamma and beta may be scalars.
- ``bn_param["momentum"]`` (0.9) is fastnorm's ``decay``, and the running variance is that of the
  biased variances, ``ddof=0``. Running statistics start at zero, the variance's too. Every call
  stores new arrays in ``bn_param`` and leaves those that it found there as they were.
- The functions make no copies for their caches: what was passed forward must stay as it is until
  the backward pass is done. The caches of `affine_forward` and `relu_forward` are ``(x, w, b)`` and
  ``x``; the others are to be handed back, not looked into.

References
----------
Stanford University, CS231n, Assignment 2, https://cs231n.github.io.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import fastnorm as fn
from fastnorm.affine import AffineCache

Array = NDArray[Any]
Options = dict[str, Any]

__all__ = [
    "affine_backward",
    "affine_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "layernorm_backward",
    "layernorm_forward",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
    "spatial_groupnorm_backward",
    "spatial_groupnorm_forward",
]

EPS = 1e-5
MOMENTUM = 0.9


# ---- Arguments -----------------------------------------------------------------------------------


def _floating(*arrays: Any) -> list[Array]:
    """The arrays in the floating-point dtype of NumPy's arithmetic between them."""
    # Python's numbers take part as they are: 1 does not make float64 of float32.
    dtype = np.result_type(
        *(a if isinstance(a, (int, float)) else np.asanyarray(a) for a in arrays)
    )
    if dtype.kind in "biu":
        dtype = np.dtype(np.float64)
    return [np.asanyarray(a, dtype=dtype) for a in arrays]


def _input(
    function: str, x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, axes: str
) -> tuple[Array, Array, Array]:
    """x, which must have the axes, and gamma and beta of one length, in one dtype."""
    x, gamma, beta = _floating(x, gamma, beta)
    if x.ndim != len(axes):
        shape = ", ".join(axes)
        raise ValueError(f"{function}: x must have shape ({shape}), got {x.shape}")
    gamma, beta = (np.full(x.shape[1], p) if p.ndim == 0 else p for p in (gamma, beta))
    return x, gamma, beta


# ---- Affine layer, ReLU --------------------------------------------------------------------------


def _rows(x: Array) -> Array:
    """x (N, d_1, ..., d_k) as (N, D)."""
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


def affine_forward(x: ArrayLike, w: ArrayLike, b: ArrayLike) -> tuple[Array, Any]:
    """Affine layer, ``out = x @ w + b`` with each sample of x as one row.

    Parameters
    ----------
    x : ndarray (N, d_1, ..., d_k)
        D is ``d_1 * ... * d_k``. No copy is made of it if it is contiguous.
    w : ndarray (D, M)
    b : ndarray (M,)

    Returns
    -------
    out : ndarray (N, M)
    cache : tuple
        ``(x, w, b)``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.compat.cs231n import affine_forward
    >>> out, cache = affine_forward(np.ones((2, 3, 4)), np.ones((12, 1)), np.zeros(1))
    >>> out
    array([[12.],
           [12.]])
    """
    cache = _floating(x, w, b)
    x, w, b = cache
    return fn.affine(_rows(x), w, b), tuple(cache)


def affine_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients ``dx, dw, db`` of `affine_forward`, in the shapes of x, w and b.

    ``dx = dout @ w.T``, ``dw = x.T @ dout``, ``db = sum(dout)``.
    """
    x, w, b = _floating(*cache)
    (dout,) = _floating(dout)
    dx, dw, db = fn.affine_backward(dout, AffineCache(_rows(x), w, b))
    return dx.reshape(x.shape), dw, db


def relu_forward(x: ArrayLike) -> tuple[Array, ArrayLike]:
    """Rectifier, ``out = max(x, 0)`` of an array of any shape; the cache is x."""
    return np.maximum(x, 0), x


def relu_backward(dout: ArrayLike, cache: ArrayLike) -> Array:
    """The gradient of `relu_forward`: dout where x > 0, and 0 elsewhere."""
    return np.where(np.asarray(cache) > 0, dout, 0)


def affine_relu_forward(x: ArrayLike, w: ArrayLike, b: ArrayLike) -> tuple[Array, Any]:
    """`affine_forward` and `relu_forward` after it; the cache is that of both."""
    a, affine_cache = affine_forward(x, w, b)
    out, relu_cache = relu_forward(a)
    return out, (affine_cache, relu_cache)


def affine_relu_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients ``dx, dw, db`` of `affine_relu_forward`."""
    affine_cache, relu_cache = cache
    return affine_backward(relu_backward(dout, relu_cache), affine_cache)


# ---- Batch normalisation -------------------------------------------------------------------------


def _batchnorm_forward(
    function: str,
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    bn_param: Options,
    axes: str,
) -> tuple[Array, Any]:
    mode = bn_param["mode"]
    if mode not in ("train", "test"):
        raise ValueError(f'{function}: bn_param["mode"] must be "train" or "test", got {mode!r}')
    x, gamma, beta = _input(function, x, gamma, beta, axes)
    # Copies: who kept an array of an earlier call keeps its values. 16 bits would not do for sums.
    dtype = np.promote_types(x.dtype, np.float32)
    running = {}
    for name in ("running_mean", "running_var"):
        found = np.asarray(bn_param.get(name, np.zeros(x.shape[1], dtype)))
        running[name] = found.astype(np.promote_types(found.dtype, dtype))
    out, cache = fn.batch_norm_forward(
        x,
        gamma,
        beta,
        running_mean=running["running_mean"],
        running_var=running["running_var"],
        decay=bn_param.get("momentum", MOMENTUM),
        ddof=0,
        training=mode == "train",
        eps=bn_param.get("eps", EPS),
    )
    bn_param.update(running)
    return out, cache


def batchnorm_forward(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, bn_param: Options
) -> tuple[Array, Any]:
    """Batch normalisation of each column of x; see `fastnorm.batch_norm_forward`.

    Parameters
    ----------
    x : ndarray (N, D)
    gamma, beta : ndarray (D,)
        Scale and shift.
    bn_param : dict
        ``mode`` is required: "train" normalises with the mean and the biased variance of the batch
        and updates the running ones, "test" normalises with the running ones. Optional are ``eps``
        (1e-5), ``momentum`` (0.9), ``running_mean`` and ``running_var`` (zeros). The call stores
        ``running_mean`` and ``running_var``::

            running = momentum * running + (1 - momentum) * that of the batch

    Returns
    -------
    out : ndarray (N, D)
    cache : BatchNormCache
        What `batchnorm_backward` needs. After "test" the statistics are constants to it.

    Raises
    ------
    KeyError
        If there is no mode.
    ValueError
        For another mode or a wrong shape. `bn_param` is then as it was.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.compat.cs231n import batchnorm_forward
    >>> bn_param = {"mode": "train", "eps": 0.0}
    >>> out, cache = batchnorm_forward(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), bn_param)
    >>> out
    array([[-1.],
           [ 1.]])
    >>> bn_param["running_mean"], bn_param["running_var"]
    (array([0.2]), array([0.1]))
    """
    return _batchnorm_forward("batchnorm_forward", x, gamma, beta, bn_param, "ND")


def batchnorm_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients ``dx, dgamma, dbeta`` of `batchnorm_forward`, of shape (N, D), (D,) and (D,).

    By the kernel of `fastnorm.batch_norm_backward`. The course wants this function to walk through
    the graph step by step: `fastnorm.reference.batch_norm_backward_staged` does.
    """
    return fn.batch_norm_backward(_floating(dout)[0], cache)


def batchnorm_backward_alt(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """The same as `batchnorm_backward`: the closed form, by the same kernel."""
    return batchnorm_backward(dout, cache)


def spatial_batchnorm_forward(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, bn_param: Options
) -> tuple[Array, Any]:
    """Batch normalisation of each channel of x (N, C, H, W), over N, H and W.

    All else is as in `batchnorm_forward`, with C for D.
    """
    return _batchnorm_forward("spatial_batchnorm_forward", x, gamma, beta, bn_param, "NCHW")


def spatial_batchnorm_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients of `spatial_batchnorm_forward`: dx (N, C, H, W), dgamma and dbeta (C,)."""
    return batchnorm_backward(dout, cache)


# ---- Layer and group normalisation ---------------------------------------------------------------


def layernorm_forward(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, ln_param: Options
) -> tuple[Array, Any]:
    """Layer normalisation of each row of x; see `fastnorm.layer_norm`.

    Parameters
    ----------
    x : ndarray (N, D)
    gamma, beta : ndarray (D,)
        Scale and shift.
    ln_param : dict
        ``eps`` (1e-5), optional.

    Returns
    -------
    out : ndarray (N, D)
    cache : LayerNormCache
        What `layernorm_backward` needs.
    """
    x, gamma, beta = _input("layernorm_forward", x, gamma, beta, "ND")
    return fn.layer_norm_forward(x, gamma, beta, eps=ln_param.get("eps", EPS))


def layernorm_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients ``dx, dgamma, dbeta`` of `layernorm_forward`, of shape (N, D), (D,) and (D,)."""
    return fn.layer_norm_backward(_floating(dout)[0], cache)


def _channels(p: Array, c: int) -> Array:
    """A parameter of shape (C,) or (1, C, 1, 1) as (C,)."""
    return p.reshape(c) if p.shape == (1, c, 1, 1) else p


def spatial_groupnorm_forward(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, G: int, gn_param: Options
) -> tuple[Array, Any]:
    """Group normalisation of x; see `fastnorm.group_norm`.

    Parameters
    ----------
    x : ndarray (N, C, H, W)
    gamma, beta : ndarray (1, C, 1, 1) or (C,)
        Scale and shift: the course's later editions have the one shape, the earlier the other.
    G : int
        The number of groups of adjacent channels, a divisor of C.
    gn_param : dict
        ``eps`` (1e-5), optional.

    Returns
    -------
    out : ndarray (N, C, H, W)
    cache : tuple
        What `spatial_groupnorm_backward` needs.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.compat.cs231n import spatial_groupnorm_backward, spatial_groupnorm_forward
    >>> x = np.arange(8.0).reshape(1, 4, 1, 2)
    >>> gamma, beta = np.ones((1, 4, 1, 1)), np.zeros((1, 4, 1, 1))
    >>> out, cache = spatial_groupnorm_forward(x, gamma, beta, 2, {})
    >>> dx, dgamma, dbeta = spatial_groupnorm_backward(np.ones_like(out), cache)
    >>> dbeta.shape
    (1, 4, 1, 1)
    """
    x, gamma, beta = _input("spatial_groupnorm_forward", x, gamma, beta, "NCHW")
    c = x.shape[1]
    out, cache = fn.group_norm_forward(
        x, G, _channels(gamma, c), _channels(beta, c), eps=gn_param.get("eps", EPS)
    )
    return out, (cache, gamma.shape, beta.shape)


def spatial_groupnorm_backward(dout: ArrayLike, cache: Any) -> tuple[Array, Array, Array]:
    """Gradients ``dx, dgamma, dbeta`` of `spatial_groupnorm_forward`, in the shapes given there."""
    cache, gamma_shape, beta_shape = cache
    dx, dgamma, dbeta = fn.group_norm_backward(_floating(dout)[0], cache)
    return dx, dgamma.reshape(gamma_shape), dbeta.reshape(beta_shape)


# ---- Loss ----------------------------------------------------------------------------------------


def softmax_loss(x: ArrayLike, y: ArrayLike) -> tuple[float, Array]:
    """Mean cross-entropy of the softmax of scores, and its gradient.

    Parameters
    ----------
    x : ndarray (N, C)
        Scores of any size: they are shifted before they are exponentiated.
    y : integer ndarray (N,)
        Labels, 0 to C - 1.

    Returns
    -------
    loss : float
        ``mean(-log softmax(x)[n, y[n]])``
    dx : ndarray (N, C)
        ``(softmax(x) - onehot(y)) / N``

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.compat.cs231n import softmax_loss
    >>> loss, dx = softmax_loss(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 4), dx
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    (x,), y = _floating(x), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(
            f"softmax_loss: x must have shape (N, C) and y (N,), got {x.shape} and {y.shape}"
        )
    rows = np.arange(len(x))
    shifted = x - x.max(axis=1, keepdims=True)
    dx = np.exp(shifted)
    total = dx.sum(axis=1, keepdims=True)
    losses = np.log(total[:, 0]) - shifted[rows, y]
    dx /= total
    dx[rows, y] -= 1
    dx /= len(x)
    return float(losses.mean(dtype=np.float64)), dx
