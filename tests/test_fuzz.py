"""Hostile arguments: what fuzz.py does, for a few thousand calls, and the seeds that found bugs."""

import warnings

import fuzz
import pytest

# Seeds of calls that went wrong once.
FOUND = []


@pytest.fixture(autouse=True)
def no_warnings():
    """NaN and infinities are among the arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("start", range(0, 5000, 1000))
def test_hostile_arguments(start):
    assert fuzz.run(start, 1000) == []


@pytest.mark.parametrize("seed", FOUND)
def test_found_before(seed):
    assert fuzz.run(seed, 1) == []
