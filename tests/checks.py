"""What several files of tests share: cases, and what they assert."""

from math import prod

import numpy as np
import pytest

import fastnorm as fn
from fastnorm._registry import LAYOUTS, OPERATIONS, differing


def over(pairs):
    """Parametrise a test over pairs of operation and case."""
    pairs = list(pairs)
    ids = [f"{operation.name}-{case.label or case.shape}" for operation, case in pairs]
    return pytest.mark.parametrize(("operation", "case"), pairs, ids=ids)


def cases_between(least, most):
    """Of every operation a case of such a size for each number of dimensions and set of options."""
    for operation in OPERATIONS:
        kinds = {}
        for case in operation.cases:
            plain = not case.without and case.layout == "contiguous"
            if plain and least <= prod(case.shape) <= most:
                kind = (len(case.shape), str(case.options), str(case.forward_options))
                kinds.setdefault(kind, case)
        yield from ((operation, case) for case in kinds.values())


SMALL = tuple(cases_between(100, 5000))
SEVERAL_TILES = tuple(cases_between(30_000, 300_000))


def stepped(array):
    """Every third element of every axis, the axes in reversed order in memory."""
    memory = np.zeros([3 * n for n in array.shape[::-1]], array.dtype).T
    view = memory[tuple(np.s_[1::3] for _ in array.shape)]
    view[...] = array
    return view


def one_reversed(array):
    """The first axis backwards, the others as they are."""
    return array[::-1].copy()[::-1]


def one_number(array):
    """All strides are zero."""
    return np.broadcast_to(array[(0,) * array.ndim], array.shape)


def rolled(array):
    """The axes in another order, neither that of C nor that of Fortran."""
    return np.moveaxis(np.moveaxis(array, -1, 0).copy(), 0, -1)


ANY_LAYOUT = LAYOUTS | {
    "stepped": stepped,
    "one axis reversed": one_reversed,
    "one number": one_number,
    "rolled": rolled,
}
OUT_LAYOUTS = {
    name: lay_out for name, lay_out in ANY_LAYOUT.items() if name not in ("broadcast", "one number")
}


def read_only(arrays, state=()):
    """The same arrays, which must not be written to; but `state` is to be updated."""
    for name, array in arrays.items():
        if array is not None and name not in state:
            array.flags.writeable = False
    return arrays


def assert_right(operation, pass_, case, arrays, results, allowed=1):
    """Every result is within its tolerance of what the reference makes of the same values."""
    for name, error in operation.judge(pass_, case, arrays, results).items():
        tolerance = operation.tolerances[name]
        assert error <= allowed, f"{name} is off by {error:.3g} times its {tolerance}"


def assert_dtypes(operation, arrays, results):
    """A gradient has its argument's dtype, state keeps its own, y has x's."""
    for name, result in results.items():
        if result is not None and name not in operation.statistics:
            owner = name.removeprefix("d") if name in operation.gradients else name
            wanted = arrays[operation.inputs[0] if owner == "y" else owner].dtype
            assert result.dtype == wanted, f"{name} of {owner} has {result.dtype}, not {wanted}"


def assert_same(results, expected, what=""):
    """All results have the same bits, shapes and dtypes."""
    assert not differing(results, expected), f"{what}: {differing(results, expected)} differ"


def run_blank(operation, pass_, case, arrays):
    """Do a pass into an array of NaN, where a block that nobody computed shows."""
    out = operation.blank(pass_, arrays)
    return operation.run(fn, pass_, case, arrays, out=out)


def assert_raises(error, message, operation, pass_, case, arrays, **more):
    """The pass raises the error, with a message that begins so, and leaves all arrays unchanged.

    Arguments of backward's forward are right, so that only `dy` and `out` can be wrong there.
    """
    involved = [a for a in (*arrays.values(), *more.values()) if isinstance(a, np.ndarray)]
    call = operation.bind(fn, pass_, case, arrays, **more)
    before = [a.tobytes() for a in involved]
    with pytest.raises(error, match=f"^{operation.function(pass_)}: {message}"):
        call()
    assert [a.tobytes() for a in involved] == before
