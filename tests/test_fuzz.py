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
