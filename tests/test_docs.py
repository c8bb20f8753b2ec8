"""Every example runs: those of the docstrings, and the code of the README."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastnorm as fn

MODULES = [name for _, name, package in pkgutil.iter_modules(fn.__path__) if not package]
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"fastnorm.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_function_has_an_example():
    functions = [getattr(fn, name) for name in fn.__all__ if callable(getattr(fn, name))]
    without = [f.__name__ for f in functions if ">>>" not in f.__doc__]
    assert not without


def test_readme():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
