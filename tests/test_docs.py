"""Every example runs: those of the docstrings, and the code of the pages."""

import ast
import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import overview
import pytest

import fastnorm as fn
from fastnorm import compat

MODULES = [name for _, name, package in pkgutil.iter_modules(fn.__path__) if not package]
MODULES += [f"compat.{name}" for _, name, _ in pkgutil.iter_modules(compat.__path__)]
ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# What examples may import and nobody needs to have. A block that does so stands for itself: others
# run without it.
OPTIONAL = {"dask", "h5py", "keras", "ml_dtypes", "onnx", "threadpoolctl", "torch", "zarr"}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"fastnorm.{name}")
    if name in OPTIONAL:
        pytest.importorskip(name)
    assert doctest.testmod(module).failed == 0


def test_every_function_has_an_example():
    functions = [getattr(fn, name) for name in fn.__all__ if callable(getattr(fn, name))]
    without = [f.__name__ for f in functions if ">>>" not in f.__doc__]
    assert not without


# A program that several processes run: `test_distributed.py` starts these.
LAUNCHED = re.compile(r"# \w+\.py: ")


def blocks_of(page):
    """The Python blocks of a page, but for programs, and the lines that they begin at."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if not LAUNCHED.match(match[1]):
            yield match[1], text.count("\n", 0, match.start()) + 2


def missing_modules(tree):
    """Optional modules that a block imports and that are not installed."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    return {name for name in imported & OPTIONAL if importlib.util.find_spec(name) is None}


def run_page(page):
    """Run the blocks of a page, one after another; returns the modules that some went without."""
    names, missing = {"__name__": "__main__"}, set()
    for block, line in blocks_of(page):
        # With the lines of the page, so that a traceback shows them.
        tree = ast.parse("\n" * (line - 1) + block, str(page))
        lacking = missing_modules(tree)
        missing |= lacking
        if not lacking:
            exec(compile(tree, str(page), "exec"), names)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page, tmp_path, monkeypatch):
    if not any(blocks_of(page)):
        return
    monkeypatch.chdir(tmp_path)  # examples write files
    missing = run_page(page)
    if missing:
        pytest.skip(f"all but the examples that need {', '.join(sorted(missing))}")


def test_only_code_that_runs():
    """No other fence hides Python from the test above."""
    for page in PAGES:
        fences = re.findall(r"^ *```+(\S.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        other = {f for f in fences if not f.startswith("{")} - {"python", "sh", "text", "console"}
        assert not other, page


def test_picture():
    """The start page's is that of the numbers in docs/performance.md."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    picture = (ROOT / "docs/plots/overview.svg").read_text(encoding="utf-8")
    assert picture == overview.draw(overview.times(page)), "run bench/overview.py"
