"""Hostile arguments: what fuzz.py does, for a few thousand calls."""

import warnings

import fuzz
import pytest


@pytest.fixture(autouse=True)
def no_warnings():
    """NaN and infinities are among the arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("start", range(0, 5000, 1000))
def test_hostile_arguments(start):
    assert fuzz.run(start, 1000) == []


# A number of groups above 2^63 of no channels; an `out` in the memory of a strided parameter.
@pytest.mark.parametrize("seed", [599086, 982830])
def test_found_before(seed):
    assert fuzz.run(seed, 1) == []
