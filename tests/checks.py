"""What several files of tests assert."""

import pytest

import fastnorm as fn
from fastnorm._registry import differing


def over(pairs):
    """Parametrise a test over pairs of operation and case."""
    pairs = list(pairs)
    ids = [f"{operation.name}-{case.label or case.shape}" for operation, case in pairs]
    return pytest.mark.parametrize(("operation", "case"), pairs, ids=ids)


def assert_right(operation, pass_, case, arrays, results, allowed=1):
    """Every result is within its tolerance of what the reference makes of the same values."""
    for name, error in operation.judge(pass_, case, arrays, results).items():
        tolerance = operation.tolerances[name]
        assert error <= allowed, f"{name} is off by {error:.3g} times its {tolerance}"


def assert_same(results, expected, what=""):
    """All results have the same bits, shapes and dtypes."""
    assert not differing(results, expected), f"{what}: {differing(results, expected)} differ"


def run_blank(operation, pass_, case, arrays):
    """Do a pass into an array of NaN, where a block that nobody computed shows."""
    out = operation.blank(pass_, arrays)
    return operation.run(fn, pass_, case, arrays, out=out)
