"""Checking of gradients by central differences, for the functions of fastnorm and for your own.

`numerical_gradient` differentiates any function of one array. `check_gradients` compares all the
gradients of a backward pass with it, for any pair of functions ``y, cache = op_forward(...)`` and
``grads = op_backward(dy, cache)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ._typing import Array, ArrayLike

__all__ = ["check_gradients", "numerical_gradient"]

# The step of least error: rounding costs eps / step, cutting the Taylor series costs step^2.
_STEP = float(np.cbrt(np.finfo(np.float64).eps))


def numerical_gradient(
    f: Callable[[Array], ArrayLike],
    x: ArrayLike,
    dy: ArrayLike | None = None,
    *,
    step: float = _STEP,
) -> Array:
    """The gradient of ``sum(f(x) * dy)`` with respect to x, by central differences in float64.

    Parameters
    ----------
    f : callable
        A function of one array. It gets a fresh copy of x at each call, and may write to it.
    x : array_like
        Where to differentiate. f is called twice for each element: keep it small.
    dy : array_like, optional
        The gradient that arrives at the output, of f(x)'s shape; ones by default.
    step : float, optional
        An element v is moved by ``step * max(1, abs(v))`` both ways. The error is of the order of
        ``step**2`` where f is smooth on the scale of 1; for x of a smaller scale choose a smaller
        step. The default is the cube root of float64's epsilon, 6e-6.

    Returns
    -------
    ndarray
        float64, of x's shape.

    Raises
    ------
    ValueError
        If the shape of dy is not that of f(x).

    Examples
    --------
    The sum of x^2 has the gradient 2 x:

    >>> import numpy as np
    >>> from fastnorm.testing import numerical_gradient
    >>> x = np.array([[1.0, -2.0], [0.5, 3.0]])
    >>> np.allclose(numerical_gradient(np.square, x), 2 * x)
    True
    """
    x = np.asarray(x, dtype=np.float64)
    if dy is not None:
        dy = np.asarray(dy, dtype=np.float64)
        shape = np.shape(f(x.copy()))
        if dy.shape != shape:
            raise ValueError(f"numerical_gradient: dy must have shape {shape}, got {dy.shape}")

    gradient = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        h = step * max(1.0, abs(float(x[index])))
        above, below = x.copy(), x.copy()
        above[index] += h
        below[index] -= h
        width = above[index] - below[index]  # 2 h as it was rounded
        rise = np.array(f(above), dtype=np.float64) - np.asarray(f(below), dtype=np.float64)
        gradient[index] = np.sum(rise if dy is None else rise * dy) / width
    return gradient


def check_gradients(
    forward: Callable[..., tuple[ArrayLike, Any]],
    backward: Callable[..., Any],
    *args: Any,
    dy: ArrayLike | None = None,
    step: float = _STEP,
    rtol: float = 1e-6,
    **options: Any,
) -> dict[str, float]:
    """Check a backward pass against central differences of its forward pass, in float64.

    ``y, cache = forward(*args, **options)`` and ``gradients = backward(dy, cache)``, one gradient
    for each array or None among `args`, in their order. Gradients beyond those, of parameters left
    out, must be None.

    Parameters
    ----------
    forward, backward : callables
        Such as ``fastnorm.layer_norm_forward`` and ``fastnorm.layer_norm_backward``.
    *args
        The positional arguments of `forward`. Floating-point arrays (or numbers, or lists of them)
        are differentiated, in float64 whatever their dtype. None is passed on, and its gradient
        must be None. Anything else, such as the number of groups, is passed on and has no gradient.
    dy : array_like, optional
        The gradient that arrives at y; by default normally distributed, the same at every call.
    step : float, optional
        As in `numerical_gradient`.
    rtol : float, optional
        The largest error allowed.
    **options
        The keyword arguments of `forward`. Each call gets copies of the arrays among them, so
        that running statistics are not changed.

    Returns
    -------
    dict of str to float
        The largest error of each gradient, under the name of its argument in the signature of
        `forward`. It is relative to the largest element of the gradient, or for gradients so small
        that central differences cannot resolve them to `rtol` (y's rounding error divided by the
        step is more than that), to what they can.

    Raises
    ------
    AssertionError
        If a gradient is off, is not finite, has not the shape of its argument, or is missing. The
        message names the argument and the largest error.

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm import reference
    >>> from fastnorm.testing import check_gradients
    >>> rng = np.random.default_rng(0)
    >>> x, gamma, beta = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=5)
    >>> errors = check_gradients(
    ...     reference.layer_norm_forward, reference.layer_norm_backward, x, gamma, beta, axis=-1
    ... )
    >>> list(errors), max(errors.values()) < 1e-6
    (['x', 'gamma', 'beta'], True)

    A backward pass that forgets that the mean depends on x:

    >>> def backward(dy, cache):
    ...     dx, dgamma, dbeta = reference.layer_norm_backward(dy, cache)
    ...     through_mean = cache.rstd * np.mean(dy * cache.gamma, axis=-1, keepdims=True)
    ...     return dx + through_mean, dgamma, dbeta
    >>> check_gradients(  # doctest: +ELLIPSIS
    ...     reference.layer_norm_forward, backward, x, gamma, beta
    ... )
    Traceback (most recent call last):
        ...
    AssertionError: layer_norm_forward: gradient of x: largest relative error ...
    """
    args = tuple(_differentiable(arg) for arg in args)

    def evaluate(*arguments: Any) -> tuple[ArrayLike, Any]:
        copies = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in options.items()}
        return forward(*arguments, **copies)

    y, cache = evaluate(*args)
    if dy is None:
        dy = np.random.default_rng(0).normal(size=np.shape(y))
    dy = np.asarray(dy, dtype=np.float64)
    # The least error that central differences can show; y must be taken now, backward may write.
    resolution = np.finfo(np.float64).eps * float(np.sum(np.abs(y * dy))) / step
    gradients = backward(dy, cache)
    if not isinstance(gradients, (tuple, list)):
        gradients = (gradients,)

    slots = [i for i, a in enumerate(args) if a is None or isinstance(a, np.ndarray)]
    title, names = _names(forward, len(args))
    if len(gradients) < len(slots) or any(d is not None for d in gradients[len(slots) :]):
        wanted = ", ".join(names[i] for i in slots)
        raise AssertionError(
            f"{title}: {len(gradients)} gradients for {len(slots)} positional arguments ({wanted})"
        )

    errors: dict[str, float] = {}
    complaints: list[str] = []
    for i, gradient in zip(slots, gradients, strict=False):
        if args[i] is None or gradient is None:
            if args[i] is not gradient:
                verb = "missing" if gradient is None else "given, but the argument is None"
                complaints.append(f"gradient of {names[i]}: {verb}")
            continue
        gradient = np.asarray(gradient, dtype=np.float64)
        if gradient.shape != args[i].shape:
            complaints.append(
                f"gradient of {names[i]}: shape {gradient.shape}, but the argument has "
                f"{args[i].shape}"
            )
            continue

        def y_of(a: Array, i: int = i) -> ArrayLike:
            return evaluate(*args[:i], a, *args[i + 1 :])[0]

        numerical = numerical_gradient(y_of, args[i], dy, step=step)
        errors[names[i]], where = _largest_error(gradient, numerical, resolution / rtol)
        if not errors[names[i]] <= rtol:  # so that NaN fails
            complaints.append(
                f"gradient of {names[i]}: largest relative error {errors[names[i]]:.2e} (allowed: "
                f"{rtol:.0e}) at {where}: {gradient[where]:.9g} instead of {numerical[where]:.9g}"
            )
    if complaints:
        raise AssertionError("\n".join(f"{title}: {complaint}" for complaint in complaints))
    return errors


def _differentiable(arg: Any) -> Any:
    """A floating-point argument as a float64 array (strides kept); any other as it is."""
    array = None if arg is None else np.asarray(arg)
    if array is None or (array.dtype.kind != "f" and array.dtype.name != "bfloat16"):
        return arg
    return array.astype(np.float64, copy=False)


def _names(forward: Callable[..., Any], count: int) -> tuple[str, list[str]]:
    """The function's name, and names for so many positional arguments."""
    parameters: Sequence[inspect.Parameter] = ()
    with suppress(TypeError, ValueError):  # compiled functions may have no signature
        parameters = [*inspect.signature(forward).parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in positional]
    names += [f"argument {i}" for i in range(len(names), count)]
    return getattr(forward, "__name__", repr(forward)), names


def _largest_error(
    gradient: Array, numerical: Array, floor: float
) -> tuple[float, tuple[int, ...]]:
    """The largest difference and its index, relative to the largest element (floor at least)."""
    if gradient.size == 0:
        return 0.0, ()
    with np.errstate(invalid="ignore"):  # Inf - Inf and Inf / Inf are errors like any NaN
        difference = np.abs(gradient - numerical)
        scale = floor + max(np.max(np.abs(gradient)), np.max(np.abs(numerical)))
        worst = np.argmax(difference)  # the first NaN, if any
        where = tuple(int(k) for k in np.unravel_index(worst, difference.shape))
        error = difference[where] / scale if difference[where] else 0.0
    return float(error), where
