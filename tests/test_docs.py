"""Every example runs: those of the docstrings, and the code of the pages."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastnorm as fn
from fastnorm import compat

MODULES = [name for _, name, package in pkgutil.iter_modules(fn.__path__) if not package]
MODULES += [f"compat.{name}" for _, name, _ in pkgutil.iter_modules(compat.__path__)]
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"fastnorm.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_function_has_an_example():
    functions = [getattr(fn, name) for name in fn.__all__ if callable(getattr(fn, name))]
    without = [f.__name__ for f in functions if ">>>" not in f.__doc__]
    assert not without


PAGES = ["README.md", "docs/arrays.md", "docs/cs231n.md", "docs/reliability.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pages(page):
    """The blocks of a page, one after another."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)
