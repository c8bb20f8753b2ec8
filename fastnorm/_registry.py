"""The registry of operations: the one place that says what to test, check, time and document.

An `Operation` names its arguments and gradients, draws arrays for a `Case`, and knows the magnitude
that the error analysis of each of its results refers to. The test suite, ``fastnorm check``,
``fastnorm bench`` and the benchmark suite iterate `OPERATIONS`; a new operation takes part in all
of them by an entry here.

Every function takes the module that computes as an argument: `fastnorm` or `fastnorm.reference`.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from fastnorm import reference
from fastnorm._typing import Array, Axes

try:
    from ml_dtypes import bfloat16, finfo  # np.finfo does not know bfloat16
except ImportError:  # which nobody needs to have
    bfloat16, finfo = None, np.finfo

Arrays = dict[str, Any]

WIDE_DTYPES: tuple[np.dtype[Any], ...] = (np.dtype(np.float32), np.dtype(np.float64))
HALF_DTYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(half) for half in (np.float16, bfloat16) if half is not None
)
DTYPES: tuple[np.dtype[Any], ...] = WIDE_DTYPES + HALF_DTYPES
PASSES = ("inference", "forward", "backward")

# Around the widths of vectors (4 to 16), of the kernels' lanes (32, 64), of chunks and of blocks.
SIZES = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 257, 1000, 4097)


# ---- tolerances ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far a result may be off: `epsilons` times the type's epsilon times a magnitude.

    The type is the one that x is computed in (`working`). The magnitude comes from the operation
    (`Operation.magnitude`): what the terms of the formula amount to, without the cancellation
    between them. In units of a tolerance, errors up to 1 are allowed. A result narrower than the
    type it is computed in may be off by half an ulp of its own on top of that: it is rounded once,
    at the end, and a second rounding on the way would show.
    """

    name: str
    epsilons: float
    reason: str

    def __str__(self) -> str:
        return f"{self.name} tolerance ({self.epsilons} epsilons)"


ELEMENT = Tolerance(
    "element", 4, "centring, scale, product and shift round once each; rstd adds two epsilons"
)
STATISTIC = Tolerance(
    "statistic", 4, "a sum in lanes, a quotient and a root, and one rounding at the end"
)
GRADIENT = Tolerance(
    "gradient", 8, "three terms, two of them with a mean over a row; six roundings"
)
REDUCTION = Tolerance(
    "reduction", 8, "sums in short lanes and blocks, so that their length does not matter"
)
PRODUCT = Tolerance(
    "product", 8, "BLAS sums in blocks as well, far below the bound of n epsilons for a chain"
)


def working(dtype: Any) -> np.dtype[Any]:
    """The type that x of `dtype` is computed in."""
    return np.dtype(np.float32) if dtype in HALF_DTYPES else np.dtype(dtype)


def rounding(values: Array, dtype: Any) -> Array:
    """What `values` lose at most when they are rounded to `dtype`: half an ulp."""
    limits = finfo(dtype)
    exponents = np.frexp(values)[1] - 1
    ulp = np.ldexp(float(limits.eps), exponents)
    loss: Array = np.maximum(ulp, float(limits.smallest_subnormal)) / 2
    return loss


# ---- cases and operations ------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Case:
    """A shape with options.

    Parameters
    ----------
    label : str
        Names the case in tests and tables.
    shape : tuple of int
        Of the first argument.
    options : mapping
        Keyword arguments of the operation's inference and forward functions.
    forward_options : mapping
        Keyword arguments of the forward function alone.
    without : tuple of str
        Optional arguments that are not given.
    layout : str
        How arrays lie in memory, a key of `LAYOUTS`.
    data : mapping
        What else the operation's `draw` wants to know, such as the width of an affine layer.
    """

    label: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    forward_options: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    layout: str = "contiguous"
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation: three functions ``name``, ``name_forward`` and ``name_backward``.

    Parameters
    ----------
    name : str
        Of the inference function.
    inputs : tuple of str
        The arguments that have gradients, in the order in which backward returns these.
    fill : callable
        ``fill(case, normal)`` returns the arrays by name; ``normal(shape, mean, std)`` draws one.
    magnitude : callable
        ``magnitude(pass_, case, arrays)`` returns, by result, what its error is relative to.
    tolerances : mapping
        The `Tolerance` of each result.
    cases, bench_cases : tuple of Case
        What is tested, and what is timed.
    given : tuple of str
        Arguments of the inference function alone, after the first.
    state : tuple of str
        Arguments of the forward function that it updates in place.
    statistics : tuple of str
        Attributes of the cache that are part of the contract.
    """

    name: str
    inputs: tuple[str, ...]
    fill: Callable[[Case, Callable[..., Array]], Arrays]
    magnitude: Callable[[str, Case, Arrays], Arrays]
    tolerances: Mapping[str, Tolerance]
    cases: tuple[Case, ...]
    bench_cases: tuple[Case, ...]
    given: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return self.name

    @property
    def gradients(self) -> tuple[str, ...]:
        """Names of what backward returns."""
        return tuple(f"d{name}" for name in self.inputs)

    @property
    def typical(self) -> Case:
        """The first case that has everything: hundreds of values, and no argument missing."""
        return next(c for c in self.cases if prod(c.shape) > 500 and not c.without)

    def function(self, pass_: str) -> str:
        """Name of the function that does a pass."""
        return self.name if pass_ == "inference" else f"{self.name}_{pass_}"

    def draw(self, case: Case, dtype: Any, rng: np.random.Generator | None = None) -> Arrays:
        """Arrays of a case by argument, and `dy`; None for those the case is without.

        `dtype` is that of all of them, but that running statistics of 16 bits are float32; or a
        mapping from each argument to its own. Without `rng` a case has the same values everywhere
        and, but for rounding, in each dtype.
        """
        if rng is None:
            rng = np.random.default_rng(zlib.crc32(f"{self.name} {case.label}".encode()))

        def normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> Array:
            return np.asarray(mean + std * rng.standard_normal(shape))

        def dtype_of(name: str) -> Any:
            if isinstance(dtype, Mapping):
                return dtype[name]
            return working(dtype) if name in self.state else dtype

        arrays: Arrays = {
            name: a.astype(dtype_of(name)) for name, a in self.fill(case, normal).items()
        }
        lay_out = LAYOUTS[case.layout]
        for name, array in arrays.items():
            if name in case.without:
                arrays[name] = None
            elif array.ndim and name not in self.state and case.layout != "contiguous":
                arrays[name] = lay_out(array)
        return arrays

    def widened(self, arrays: Arrays, dtype: Any) -> Arrays:
        """The same values, contiguous, in the type that judges results of `dtype`.

        That is float64, and for float64 itself the widest type of the platform, which has 80 bits
        on x86. State is never wider than float64.
        """
        wide = np.longdouble if np.dtype(dtype) == np.float64 else np.float64
        return {
            name: None
            if array is None
            else np.array(array, np.float64 if name in self.state else wide, order="C")
            for name, array in arrays.items()
        }

    def arguments(self, pass_: str, case: Case, arrays: Arrays) -> dict[str, Any]:
        """Keyword arguments of the inference or forward function."""
        first, *parameters = self.inputs
        if pass_ == "inference":
            names, options = (first, *self.given, *parameters), case.options
        else:
            names, options = (*self.inputs, *self.state), {**case.options, **case.forward_options}
        return {name: arrays[name] for name in names} | dict(options)

    def bind(
        self, module: ModuleType, pass_: str, case: Case, arrays: Arrays, **more: Any
    ) -> Callable[[], Any]:
        """The call that does a pass, as a function without arguments.

        For backward, forward is called here, once.
        """
        function = getattr(module, self.function(pass_))
        if pass_ == "backward":
            _, cache = self.bind(module, "forward", case, arrays)()
            return partial(function, arrays["dy"], cache, **more)
        return partial(function, **self.arguments(pass_, case, arrays), **more)

    def run(
        self, module: ModuleType, pass_: str, case: Case, arrays: Arrays, **more: Any
    ) -> dict[str, Array | None]:
        """Do a pass; its results by name, updated state and the cache's statistics among them.

        `arrays` stay as they are: state is copied first.
        """
        arrays = arrays | {n: arrays[n].copy() for n in self.state if arrays[n] is not None}
        result = self.bind(module, pass_, case, arrays, **more)()
        if pass_ == "inference":
            return {"y": result}
        if pass_ == "backward":
            return dict(zip(self.gradients, result, strict=True))
        y, cache = result
        statistics = {name: getattr(cache, name) for name in self.statistics}
        return {"y": y} | statistics | {name: arrays[name] for name in self.state}

    def errors(
        self, results: Arrays, exact: Arrays, magnitudes: Arrays, dtype: Any
    ) -> dict[str, float]:
        """Largest error of each result in units of its tolerance, by result.

        `dtype` is that of x. What a narrower result loses when it is rounded, once, is no error.
        One that is not there, or of another shape, is an AssertionError.
        """
        limits = finfo(working(dtype))
        errors = {}
        for name, expected in exact.items():
            actual = results[name]
            wanted, got = (None if a is None else np.shape(a) for a in (expected, actual))
            if got != wanted:
                raise AssertionError(f"{name} must have shape {wanted}, got {got}")
            if expected is None:
                errors[name] = 0.0
                continue
            allowed = self.tolerances[name].epsilons * limits.eps * magnitudes[name]
            with np.errstate(invalid="ignore", over="ignore"):
                error = np.abs(np.asarray(actual, expected.dtype) - expected)
                if finfo(actual.dtype).eps > limits.eps:
                    error = np.maximum(error - rounding(expected, actual.dtype), 0)
                ratio = error / (allowed + limits.smallest_subnormal)
            errors[name] = float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0.0))
        return errors

    def judge(self, pass_: str, case: Case, arrays: Arrays, results: Arrays) -> dict[str, float]:
        """Errors of what a pass made of `arrays`, in units of their tolerances, by result.

        The reference says what is right, from the same values in a wider type.
        """
        dtype = arrays[self.inputs[0]].dtype
        wide = self.widened(arrays, dtype)
        exact = self.run(reference, pass_, case, wide)
        return self.errors(results, exact, self.magnitude(pass_, case, wide), dtype)

    def blank(self, pass_: str, arrays: Arrays) -> Array:
        """An array for the first result of a pass, full of NaN: what is not written shows."""
        like = arrays[self.inputs[0]]
        shape = like.shape if pass_ == "backward" else arrays["dy"].shape
        return np.full(shape, np.nan, like.dtype)

    def bytes_moved(self, pass_: str, case: Case, arrays: Arrays) -> int:
        """Bytes that a pass must read and write: each array that it takes or makes, once.

        The result is as large as `dy`, gradients are as large as their inputs, and backward reads
        `dy` and the inputs.
        """
        inputs = sum(nbytes(arrays[name]) for name in self.inputs)
        return nbytes(arrays["dy"]) + (2 * inputs if pass_ == "backward" else inputs)


def differing(results: Arrays, others: Arrays) -> list[str]:
    """Names of the results whose bits, shape or dtype are not the same."""

    def identity(array: Array | None) -> Any:
        return array is not None and (array.dtype, array.shape, array.tobytes())

    return [name for name in results if identity(results[name]) != identity(others[name])]


PAGE = 4096  # bytes


def in_page(array: Array, begin: int) -> Array:
    """A copy that begins so many bytes after a page."""
    memory = np.empty(array.nbytes + PAGE, np.uint8)
    begin = (begin - memory.ctypes.data) % PAGE
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def nbytes(array: Array | None) -> int:
    """Bytes of an array, zero for None."""
    return 0 if array is None else array.nbytes


# ---- layouts -------------------------------------------------------------------------------------


def _view_into(array: Array, shape: tuple[int, ...], index: Any) -> Array:
    view: Array = np.zeros(shape, array.dtype)[index]
    view[...] = array
    return view


def _sliced(array: Array) -> Array:
    return _view_into(array, (*array.shape[:-1], 2 * array.shape[-1]), np.s_[..., ::2])


def _padded(array: Array) -> Array:
    return _view_into(array, (*array.shape[:-1], array.shape[-1] + 3), np.s_[..., :-3])


def _reversed(array: Array) -> Array:
    return np.flip(np.flip(array).copy())


def _transposed(array: Array) -> Array:
    return np.ascontiguousarray(array.swapaxes(0, -1)).swapaxes(0, -1)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "transposed": _transposed,
    "sliced": _sliced,
    "padded": _padded,
    "reversed": _reversed,
    "unaligned": lambda array: in_page(array, 1),
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),  # values of the first row
}


def _label(*words: Any) -> str:
    """Words and shapes as a label, ``channels-first 5x3x7x7``."""
    return " ".join("x".join(map(str, w)) if isinstance(w, tuple) else str(w) for w in words if w)


# ---- layer normalisation -------------------------------------------------------------------------


def _centred_magnitude(
    arrays: Arrays, mean: Array, std: Array, reduced: tuple[int, ...] | None, eps: float
) -> tuple[Array, Array, Array]:
    """Magnitudes of y, of dx and of a term of dgamma, for y = gamma (x - mean) rstd + beta.

    All arrays broadcast against x. The error of x_hat is relative to ``|x_hat| + 1``: one stands
    for the error of the mean, which is relative to the standard deviation, however large the mean.
    But a mean of float64 values has no more digits than they have, so that its size counts there.
    `reduced` are the axes of the statistics; None where these are constants to the gradient.
    """
    rstd = 1 / np.sqrt(std**2 + eps)
    xhat = np.abs(arrays["x"] - mean) * rstd + _condition(mean, rstd)
    gamma, beta = (1 if arrays["gamma"] is None else np.abs(arrays["gamma"])), arrays["beta"]
    y = gamma * xhat + (0 if beta is None else np.abs(beta))
    dy = np.abs(arrays["dy"])
    dx = dy * gamma
    if reduced is not None:
        dx = dx + _mean(dx, reduced) + xhat * _mean(dx * xhat, reduced)
    return y, rstd * dx, dy * xhat


def _condition(mean: Array, rstd: Array) -> Array:
    """What the error of the mean amounts to, in epsilons and units of the standard deviation."""
    judges_float64 = mean.dtype.char == "g"  # longdouble, even where that is float64
    return 1 + np.abs(mean) * rstd if judges_float64 else np.ones_like(mean)


def _mean(array: Array, axes: tuple[int, ...]) -> Array:
    mean: Array = array.mean(axis=axes, keepdims=True)
    return mean


def _axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """Axes in ascending order."""
    return tuple(sorted(a % ndim for a in np.atleast_1d(axis)))


def _fill_layer_norm(case: Case, normal: Callable[..., Array]) -> Arrays:
    axes = _axes(case.options.get("axis", -1), len(case.shape))
    parameter = tuple(case.shape[a] for a in axes)
    return {
        "x": normal(case.shape, case.data.get("mean", 1), 2),
        "gamma": normal(parameter, 1, 0.5),
        "beta": normal(parameter),
        "dy": normal(case.shape),
    }


def _magnitude_layer_norm(pass_: str, case: Case, arrays: Arrays) -> Arrays:
    x = arrays["x"]
    axes = _axes(case.options.get("axis", -1), x.ndim)
    others = tuple(a for a in range(x.ndim) if a not in axes)
    shape = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    broadcast = arrays | {
        name: arrays[name].reshape(shape) for name in ("gamma", "beta") if arrays[name] is not None
    }
    eps = case.options.get("eps", 1e-5)
    mean, std = _mean(x, axes), x.std(axis=axes, keepdims=True)
    rstd = 1 / np.sqrt(std**2 + eps)
    y, dx, term = _centred_magnitude(broadcast, mean, std, axes, eps)
    return {
        "y": y,
        "mean": np.abs(mean) + std,
        "rstd": rstd * _condition(mean, rstd),
        "dx": dx,
        "dgamma": term.sum(axis=others),
        "dbeta": np.abs(arrays["dy"]).sum(axis=others),
    }


def _layer_norm_cases() -> Iterator[Case]:
    shape: tuple[int, ...]
    for n in SIZES:
        yield Case(_label((5, n)), (5, n))
    for m in SIZES[:-1]:
        yield Case(_label("rows", (m, 33)), (m, 33))
    for shape in ((1, 768), (700, 129), (257, 513), (5000, 3), (2, 100_003), (1, 200_003)):
        yield Case(_label(shape), shape)
    yield Case("one row 65", (65,))
    for shape, axis in (
        ((6, 5, 7), (1, 2)),
        ((6, 5, 7), (-1, -3)),
        ((6, 5, 7), (2, 1, 0)),
        ((6, 5, 7), 0),
        ((6, 5, 7), 1),
        ((3, 4, 5, 6), (1, 3)),
        ((2, 17, 7, 7), 1),
        ((4, 64, 28, 28), 1),
        ((8, 64, 16, 16), (1, 2, 3)),
    ):
        yield Case(_label(shape, "axis", axis), shape, {"axis": axis})
    for without in (("gamma",), ("beta",), ("gamma", "beta")):
        yield Case(_label((7, 65), "without", *without), (7, 65), without=without)
    yield Case("eps 0.5", (7, 65), {"eps": 0.5})
    for shape in ((33, 65), (5, 4097)):
        yield Case(_label("large mean", shape), shape, data={"mean": 1e4})
    for layout in LAYOUTS:
        yield Case(_label(layout, (33, 65)), (33, 65), layout=layout)
    yield Case("transposed 6x5x7 axis (0, 1)", (6, 5, 7), {"axis": (0, 1)}, layout="transposed")


LAYER_NORM = Operation(
    name="layer_norm",
    inputs=("x", "gamma", "beta"),
    statistics=("mean", "rstd"),
    fill=_fill_layer_norm,
    magnitude=_magnitude_layer_norm,
    tolerances={
        "y": ELEMENT,
        "mean": STATISTIC,
        "rstd": STATISTIC,
        "dx": GRADIENT,
        "dgamma": REDUCTION,
        "dbeta": REDUCTION,
    },
    cases=tuple(_layer_norm_cases()),
    bench_cases=tuple(
        Case(_label(shape), shape) for shape in ((1, 768), (512, 768), (8192, 768), (65536, 64))
    ),
)


# ---- RMS normalisation ---------------------------------------------------------------------------


def _fill_rms_norm(case: Case, normal: Callable[..., Array]) -> Arrays:
    arrays = _fill_layer_norm(case, normal)
    del arrays["beta"]
    return arrays


def _magnitude_rms_norm(pass_: str, case: Case, arrays: Arrays) -> Arrays:
    x = arrays["x"]
    axes = _axes(case.options.get("axis", -1), x.ndim)
    others = tuple(a for a in range(x.ndim) if a not in axes)
    shape = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    rstd = 1 / np.sqrt(_mean(x**2, axes) + case.options.get("eps", 1e-6))
    xhat, dy = np.abs(x) * rstd, np.abs(arrays["dy"])
    gamma = 1 if arrays["gamma"] is None else np.abs(arrays["gamma"]).reshape(shape)
    return {
        "y": xhat * gamma,
        "rstd": rstd,
        "dx": rstd * (dy * gamma + xhat * _mean(dy * gamma * xhat, axes)),
        "dgamma": (dy * xhat).sum(axis=others),
    }


def _rms_norm_cases() -> Iterator[Case]:
    for case in _layer_norm_cases():
        if "beta" not in case.without:
            yield case


RMS_NORM = Operation(
    name="rms_norm",
    inputs=("x", "gamma"),
    statistics=("rstd",),
    fill=_fill_rms_norm,
    magnitude=_magnitude_rms_norm,
    tolerances={"y": ELEMENT, "rstd": STATISTIC, "dx": GRADIENT, "dgamma": REDUCTION},
    cases=tuple(_rms_norm_cases()),
    bench_cases=tuple(
        Case(_label(shape), shape) for shape in ((1, 4096), (512, 4096), (8192, 1024))
    ),
)


# ---- batch normalisation -------------------------------------------------------------------------


def _fill_batch_norm(case: Case, normal: Callable[..., Array]) -> Arrays:
    channels = (case.shape[case.options.get("axis", 1)],)
    mean = case.data.get("mean", 1)
    return {
        "x": normal(case.shape, mean, 2),
        "mean": normal(channels, mean),
        "var": normal(channels) ** 2 + 1,
        "gamma": normal(channels, 1, 0.5),
        "beta": normal(channels),
        "running_mean": normal(channels, mean),
        "running_var": normal(channels) ** 2 + 1,
        "dy": normal(case.shape),
    }


def _magnitude_batch_norm(pass_: str, case: Case, arrays: Arrays) -> Arrays:
    x = arrays["x"]
    axis = case.options.get("axis", 1) % x.ndim
    others = tuple(a for a in range(x.ndim) if a != axis)
    shape = [n if a == axis else 1 for a, n in enumerate(x.shape)]
    broadcast = {
        name: a if a is None or name in ("x", "dy") else a.reshape(shape)
        for name, a in arrays.items()
    }
    eps = case.options.get("eps", 1e-5)
    reduced = None
    if pass_ == "inference":
        mean, std = broadcast["mean"], np.sqrt(broadcast["var"])
    elif not case.forward_options.get("training", True):
        mean, std = broadcast["running_mean"], np.sqrt(broadcast["running_var"])
    else:
        mean, std, reduced = _mean(x, others), x.std(axis=others, keepdims=True), others
    rstd = 1 / np.sqrt(std**2 + eps)
    condition = _condition(mean, rstd)
    y, dx, term = _centred_magnitude(broadcast, mean, std, reduced, eps)
    magnitudes = {
        "y": y,
        "mean": (np.abs(mean) + std).reshape(-1),
        "rstd": (rstd * condition).reshape(-1),
        "dx": dx,
        "dgamma": term.sum(axis=others),
        "dbeta": np.abs(arrays["dy"]).sum(axis=others),
    }
    if arrays["running_mean"] is not None:
        magnitudes["running_mean"] = np.abs(arrays["running_mean"]) + magnitudes["mean"]
        batch = 2 * std**2 * condition  # twice: ddof=1 doubles the variance of two values
        magnitudes["running_var"] = arrays["running_var"] + batch.reshape(-1)
    return magnitudes


def _batch_norm_cases() -> Iterator[Case]:
    shape: tuple[int, ...]
    no_running = ("running_mean", "running_var")
    frozen = {"training": False}
    for c in SIZES:
        yield Case(_label((33, c)), (33, c))
    for n in SIZES[1:]:
        yield Case(_label("rows", (n, 17)), (n, 17))
    for shape in ((700, 129), (257, 1025), (5000, 3), (100_003, 2), (100_003, 1)):
        yield Case(_label(shape), shape)
    for shape in (
        (33, 3, 1, 1),
        (5, 17, 2, 2),
        (5, 16, 7, 7),
        (3, 17, 14, 14),
        (2, 3, 28, 28),
        (1, 7, 5, 5),
        (3, 5, 65),
        (2, 3, 4, 5, 6),
        (2, 16, 56, 56),
        (7, 100, 14, 14),
        (64, 129, 4, 4),
        (2, 3, 50_021),
    ):
        yield Case(_label("channels-first", shape), shape)
    for c in (1, 3, 16, 17, 64, 100):
        for shape in ((3, 7, 7, c), (2, 40, 40, c)):
            yield Case(_label("channels-last", shape), shape, {"axis": -1})
    for shape, axis in (((5, 33, 7), 0), ((3, 4, 5, 6), 2), ((65, 2000), 0)):
        yield Case(_label(shape, "axis", axis), shape, {"axis": axis})
    for without in (("gamma",), ("beta",), ("gamma", "beta"), no_running):
        yield Case(_label((33, 17), "without", *without), (33, 17), without=without)
    yield Case("one value per channel", (1, 17), without=no_running)
    for shape, axis in (((65, 33), 1), ((5, 3, 20, 20), 1), ((5, 20, 20, 3), -1)):
        yield Case(_label("large mean", shape), shape, {"axis": axis}, data={"mean": 1e4})
    yield Case("eps 0.5", (33, 17), {"eps": 0.5})
    yield Case("decay 0.5 ddof 0", (33, 17), forward_options={"decay": 0.5, "ddof": 0})
    yield Case("frozen 33x17", (33, 17), forward_options=frozen)
    yield Case("frozen without gamma", (33, 17), forward_options=frozen, without=("gamma",))
    yield Case("frozen channels-first", (5, 17, 40, 40), forward_options=frozen)
    yield Case("frozen channels-last", (5, 40, 40, 17), {"axis": -1}, forward_options=frozen)
    for layout in sorted(set(LAYOUTS) - {"broadcast"}):  # of which all channels would be constant
        yield Case(_label(layout, (33, 17)), (33, 17), layout=layout)
        yield Case(_label(layout, (5, 3, 7, 6)), (5, 3, 7, 6), layout=layout)
        yield Case(_label(layout, (5, 7, 6, 3)), (5, 7, 6, 3), {"axis": -1}, layout=layout)


BATCH_NORM = Operation(
    name="batch_norm",
    inputs=("x", "gamma", "beta"),
    given=("mean", "var"),
    state=("running_mean", "running_var"),
    statistics=("mean", "rstd"),
    fill=_fill_batch_norm,
    magnitude=_magnitude_batch_norm,
    tolerances={
        "y": ELEMENT,
        "mean": STATISTIC,
        "rstd": STATISTIC,
        "running_mean": STATISTIC,
        "running_var": STATISTIC,
        "dx": GRADIENT,
        "dgamma": REDUCTION,
        "dbeta": REDUCTION,
    },
    cases=tuple(_batch_norm_cases()),
    bench_cases=(
        Case("channels-first 32x64x56x56", (32, 64, 56, 56)),
        Case("channels-first 128x512x7x7", (128, 512, 7, 7)),
        Case("channels-last 32x56x56x64", (32, 56, 56, 64), {"axis": -1}),
        Case("256x1024", (256, 1024)),
    ),
)


# ---- group and instance normalisation ------------------------------------------------------------


def _fill_group_norm(case: Case, normal: Callable[..., Array]) -> Arrays:
    channels = (case.shape[case.options.get("axis", 1)],)
    return {
        "x": normal(case.shape, case.data.get("mean", 1), 2),
        "gamma": normal(channels, 1, 0.5),
        "beta": normal(channels),
        "dy": normal(case.shape),
    }


def _magnitude_group_norm(pass_: str, case: Case, arrays: Arrays) -> Arrays:
    """Each sample's channels are split in (groups, C / groups); every channel is a group where the
    case does not say how many there are."""
    x = arrays["x"]
    axis = case.options.get("axis", 1) % x.ndim
    channels = x.shape[axis]
    groups = case.options.get("num_groups", channels)
    split = (*x.shape[:axis], groups, channels // groups, *x.shape[axis + 1 :])
    parameter = [n if a in (axis, axis + 1) else 1 for a, n in enumerate(split)]
    reduced = tuple(a for a in range(x.ndim + 1) if a not in (0, axis))
    others = tuple(a for a in range(x.ndim) if a != axis)
    views: Arrays = {
        name: a if a is None else a.reshape(split if name in ("x", "dy") else parameter)
        for name, a in arrays.items()
    }
    eps = case.options.get("eps", 1e-5)
    mean, std = _mean(views["x"], reduced), views["x"].std(axis=reduced, keepdims=True)
    rstd = 1 / np.sqrt(std**2 + eps)
    y, dx, term = _centred_magnitude(views, mean, std, reduced, eps)
    statistic = (x.shape[0], groups)
    return {
        "y": y.reshape(x.shape),
        "mean": (np.abs(mean) + std).reshape(statistic),
        "rstd": (rstd * _condition(mean, rstd)).reshape(statistic),
        "dx": dx.reshape(x.shape),
        "dgamma": term.reshape(x.shape).sum(axis=others),
        "dbeta": np.abs(arrays["dy"]).sum(axis=others),
    }


def _group_case(
    shape: tuple[int, ...], groups: int, *words: str, axis: int = 1, **more: Any
) -> Case:
    options = {"num_groups": groups, "axis": axis} | more.pop("options", {})
    where = () if axis == 1 else ("axis", axis)
    return Case(_label(*words, shape, *where, "in", groups), shape, options, **more)


def _group_norm_cases() -> Iterator[Case]:
    shape: tuple[int, ...]
    for s in SIZES:
        yield _group_case((3, 6, s), 2)
    for d in SIZES[:-2]:
        yield _group_case((2, 2 * d, 9), 2)
        yield _group_case((2, 2 * d), 2)
        yield _group_case((2, 5, 5, 2 * d), 2, axis=-1)
    for n in SIZES[1:]:
        yield _group_case((2, n, 6), 3, axis=-1)
    for shape in ((3, 12, 7, 7), (2, 16, 14, 14), (2, 12, 40, 40), (3, 12, 2, 2)):
        for groups in (1, 3 if shape[1] % 3 == 0 else 4, shape[1]):
            yield _group_case(shape, groups, "channels-first")
    for shape in ((3, 7, 7, 12), (2, 40, 40, 12), (2, 20, 20, 600)):
        for groups in (1, 3, shape[-1]):
            yield _group_case(shape, groups, "channels-last", axis=-1)
    for shape, groups, axis in (
        ((1, 600, 17), 1, 1),
        ((1, 600, 17), 2, 1),
        ((1, 5000, 4), 1, 1),
        ((1, 900, 20), 1, 1),
        ((2, 600, 25), 1, 1),
        ((2, 600, 25), 2, 1),
        ((1, 8, 50_021), 1, 1),
        ((1, 2, 200_003), 2, 1),
        ((1, 16, 150, 150), 4, 1),
        ((1, 40_003, 6), 2, -1),
        ((70, 4, 33), 2, 1),
        ((70, 4, 20), 2, 1),
        ((300, 32), 8, 1),
        ((2, 3, 6, 5), 3, 2),
        ((2, 3, 6, 200), 3, 2),
        ((2, 5, 6, 40, 40), 2, 2),
        ((2, 700, 6, 20), 2, 2),
    ):
        yield _group_case(shape, groups, axis=axis)
    for without in (("gamma",), ("beta",), ("gamma", "beta")):
        yield _group_case((3, 6, 65), 2, "without", *without, without=without)
    for shape, axis in (((5, 6, 20, 20), 1), ((5, 20, 20, 6), -1), ((5, 66), 1)):
        yield _group_case(shape, 2, "large mean", axis=axis, data={"mean": 1e4})
    yield _group_case((3, 6, 65), 2, "eps 0.5", options={"eps": 0.5})
    for layout in LAYOUTS:
        yield _group_case((5, 6, 7, 6), 2, layout, layout=layout)
        yield _group_case((5, 7, 6, 6), 2, layout, axis=-1, layout=layout)


_GROUP_TOLERANCES = {
    "y": ELEMENT,
    "mean": STATISTIC,
    "rstd": STATISTIC,
    "dx": GRADIENT,
    "dgamma": REDUCTION,
    "dbeta": REDUCTION,
}

GROUP_NORM = Operation(
    name="group_norm",
    inputs=("x", "gamma", "beta"),
    statistics=("mean", "rstd"),
    fill=_fill_group_norm,
    magnitude=_magnitude_group_norm,
    tolerances=_GROUP_TOLERANCES,
    cases=tuple(_group_norm_cases()),
    bench_cases=(
        _group_case((16, 64, 56, 56), 32, "channels-first"),
        _group_case((16, 512, 14, 14), 32, "channels-first"),
        _group_case((32, 256, 8, 8), 32, "channels-first"),
        _group_case((16, 56, 56, 64), 32, "channels-last", axis=-1),
        _group_case((256, 1024), 32),
    ),
)


def _instance_case(shape: tuple[int, ...], *words: str, axis: int = 1, **more: Any) -> Case:
    options = {"axis": axis} | more.pop("options", {})
    where = () if axis == 1 else ("axis", axis)
    return Case(_label(*words, shape, *where), shape, options, **more)


def _instance_norm_cases() -> Iterator[Case]:
    shape: tuple[int, ...]
    for s in SIZES:
        yield _instance_case((3, 3, s))
    for n in SIZES[1:]:
        yield _instance_case((2, n, 3), axis=-1)
    for c in SIZES[:-1]:
        yield _instance_case((2, c, 5, 5))
        yield _instance_case((2, 5, 5, c), axis=-1)
    for shape, axis in (
        ((3, 5), 1),
        ((2, 16, 14, 14), 1),
        ((2, 5, 40, 40), 1),
        ((1, 2, 200_003), 1),
        ((2, 40, 40, 17), -1),
        ((1, 40_003, 5), -1),
        ((70, 4, 33), 1),
        ((2, 3, 6, 5), 2),
        ((2, 3, 6, 200), 2),
        ((2, 700, 6, 20), 2),
    ):
        yield _instance_case(shape, axis=axis)
    for without in (("gamma",), ("beta",), ("gamma", "beta")):
        yield _instance_case((3, 5, 65), "without", *without, without=without)
    for shape, axis in (((5, 6, 20, 20), 1), ((5, 20, 20, 6), -1)):
        yield _instance_case(shape, "large mean", axis=axis, data={"mean": 1e4})
    yield _instance_case((3, 5, 65), "eps 0.5", options={"eps": 0.5})
    for layout in LAYOUTS:
        yield _instance_case((5, 6, 7, 6), layout, layout=layout)
        yield _instance_case((5, 7, 6, 6), layout, axis=-1, layout=layout)


INSTANCE_NORM = Operation(
    name="instance_norm",
    inputs=("x", "gamma", "beta"),
    statistics=("mean", "rstd"),
    fill=_fill_group_norm,
    magnitude=_magnitude_group_norm,
    tolerances=_GROUP_TOLERANCES,
    cases=tuple(_instance_norm_cases()),
    bench_cases=(
        _instance_case((16, 64, 56, 56), "channels-first"),
        _instance_case((16, 56, 56, 64), "channels-last", axis=-1),
        _instance_case((16, 32, 28, 28), "channels-first"),
    ),
)


# ---- weight normalisation ------------------------------------------------------------------------


def _fill_weight_norm(case: Case, normal: Callable[..., Array]) -> Arrays:
    axis = case.options.get("axis", 0)
    shape: tuple[int, ...] = () if axis is None else (case.shape[axis],)
    if case.data.get("keepdims"):
        shape = tuple(n if a == axis % len(case.shape) else 1 for a, n in enumerate(case.shape))
    return {"v": normal(case.shape), "g": normal(shape, 1, 0.5), "dy": normal(case.shape)}


def _magnitude_weight_norm(pass_: str, case: Case, arrays: Arrays) -> Arrays:
    v, dy = np.abs(arrays["v"]), np.abs(arrays["dy"])
    axis = case.options.get("axis", 0)
    kept = () if axis is None else (axis % v.ndim,)
    others = tuple(a for a in range(v.ndim) if a not in kept)
    g = np.abs(arrays["g"]).reshape([n if a in kept else 1 for a, n in enumerate(v.shape)])
    norm = np.sqrt((v**2).sum(axis=others, keepdims=True))
    rnorm = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    unit = v * rnorm
    along = (unit * dy).sum(axis=others, keepdims=True)
    return {
        "y": g * unit,
        "dv": g * rnorm * (dy + unit * along),
        "dg": along.reshape(arrays["g"].shape),
    }


def _weight_norm_cases() -> Iterator[Case]:
    shape: tuple[int, ...]
    for n in SIZES:
        yield Case(_label((5, n)), (5, n))
        yield Case(_label((33, n), "axis -1"), (33, n), {"axis": -1})
        yield Case(_label((n, 17), "axis 1"), (n, 17), {"axis": 1})
        yield Case(_label((n,), "axis None"), (n,), {"axis": None})
    for shape, axis in (
        ((65,), 0),
        ((700, 129), 0),
        ((64, 4608), 0),
        ((5000, 3), 0),
        ((2, 100_003), 0),
        ((700, 129), 1),
        ((100_003, 2), -1),
        ((16, 3, 3, 3), 0),
        ((16, 17, 3, 3), 1),
        ((5, 6, 7), 1),
        ((5, 6, 7), -1),
        ((5, 6, 7), None),
        ((300, 400), None),
        ((8, 300, 49), 1),
    ):
        yield Case(_label(shape, "axis", str(axis)), shape, {"axis": axis})
    for shape, axis in (((5, 33), 0), ((5, 6, 7), 1), ((33, 5), -1)):
        label = _label("g keeps dimensions", shape, "axis", str(axis))
        yield Case(label, shape, {"axis": axis}, data={"keepdims": True})
    for layout in LAYOUTS:
        yield Case(_label(layout, (33, 17)), (33, 17), layout=layout)
        yield Case(_label(layout, (33, 17), "axis 1"), (33, 17), {"axis": 1}, layout=layout)


WEIGHT_NORM = Operation(
    name="weight_norm",
    inputs=("v", "g"),
    fill=_fill_weight_norm,
    magnitude=_magnitude_weight_norm,
    tolerances={"y": ELEMENT, "dv": GRADIENT, "dg": REDUCTION},
    cases=tuple(_weight_norm_cases()),
    bench_cases=(
        Case("512x4608", (512, 4608)),
        Case("4096x1024 axis -1", (4096, 1024), {"axis": -1}),
        Case("64x64x3x3", (64, 64, 3, 3)),
    ),
)


# ---- affine --------------------------------------------------------------------------------------


def _fill_affine(case: Case, normal: Callable[..., Array]) -> Arrays:
    inputs, outputs = case.shape[-1], case.data["outputs"]
    weight = normal((inputs, outputs), std=max(inputs, 1) ** -0.5)
    if case.data.get("transposed"):
        weight = np.ascontiguousarray(weight.T).T
    return {
        "x": normal(case.shape),
        "weight": weight,
        "bias": normal((outputs,)),
        "dy": normal((*case.shape[:-1], outputs)),
    }


def _magnitude_affine(pass_: str, case: Case, arrays: Arrays) -> Arrays:
    x, weight, dy = (np.abs(arrays[name]) for name in ("x", "weight", "dy"))
    bias = 0 if arrays["bias"] is None else np.abs(arrays["bias"])
    rows = dy.reshape(-1, dy.shape[-1])
    return {
        "y": x @ weight + bias,
        "dx": dy @ weight.T,
        "dweight": x.reshape(-1, x.shape[-1]).T @ rows,
        "dbias": rows.sum(axis=0),
    }


def _affine_case(shape: tuple[int, ...], outputs: int, *words: str, **more: Any) -> Case:
    data = {"outputs": outputs, "transposed": "transposed weight" in words}
    return Case(_label(*words, shape, "to", outputs), shape, data=data, **more)


def _affine_cases() -> Iterator[Case]:
    shape: tuple[int, ...]
    for n in SIZES:
        yield _affine_case((n, 17), 5)
        yield _affine_case((5, n), 3)
        yield _affine_case((5, 3), n)
    for shape, outputs in (
        ((1, 100), 10),
        ((33, 17), 17),
        ((65, 64), 10),
        ((257, 31), 1),
        ((257, 1), 31),
        ((1, 1), 1),
        ((300, 129), 65),
        ((1000, 784), 10),
        ((4097, 33), 17),
        ((3, 5, 17), 9),
        ((2, 3, 5, 7), 33),
        ((17,), 9),
    ):
        yield _affine_case(shape, outputs)
        yield _affine_case(shape, outputs, "transposed weight")
    for shape in ((33, 17), (17,)):
        yield _affine_case(shape, 7, "without bias", without=("bias",))
    for layout in LAYOUTS:
        yield _affine_case((33, 17), 7, layout, layout=layout)
        yield _affine_case((5, 33, 17), 7, layout, layout=layout)


AFFINE = Operation(
    name="affine",
    inputs=("x", "weight", "bias"),
    fill=_fill_affine,
    magnitude=_magnitude_affine,
    tolerances={"y": PRODUCT, "dx": PRODUCT, "dweight": PRODUCT, "dbias": REDUCTION},
    cases=tuple(_affine_cases()),
    bench_cases=(
        _affine_case((1, 768), 768),
        _affine_case((128, 784), 512),
        _affine_case((2048, 1024), 1024),
    ),
)


# ---- the registry --------------------------------------------------------------------------------

OPERATIONS: tuple[Operation, ...] = (
    BATCH_NORM,
    LAYER_NORM,
    RMS_NORM,
    GROUP_NORM,
    INSTANCE_NORM,
    WEIGHT_NORM,
    AFFINE,
)


def every_case() -> Iterator[tuple[Operation, Case]]:
    """All operations with all of their cases."""
    for operation in OPERATIONS:
        for case in operation.cases:
            yield operation, case
