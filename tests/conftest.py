"""What the tests share: parametrisation from the registry, and fresh interpreters.

A test that asks for `operation`, or for `operation` and `case`, runs for each of the registry;
`dtype`, `pass_` and `layout` take all of their values too. What a test parametrises itself is left
alone.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

try:
    import ml_dtypes  # noqa: F401
    import pytest_benchmark  # noqa: F401
    import threadpoolctl  # noqa: F401
    from hypothesis import settings
except ModuleNotFoundError as error:
    raise pytest.UsageError(
        f"{error}; pip install '.[test]' installs what the tests need"
    ) from None

from fastnorm import _cpu
from fastnorm._registry import DTYPES, LAYOUTS, OPERATIONS, PASSES, every_case

# The same examples everywhere and always; others are for those who look for them.
settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=100)
settings.register_profile("explore", deadline=None, database=None, max_examples=10_000)
settings.load_profile("same")


def pytest_generate_tests(metafunc):
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    own = {
        name for names in own for name in (names.split(",") if isinstance(names, str) else names)
    }
    wanted = set(metafunc.fixturenames) - own

    if {"operation", "case"} <= wanted:
        pairs = list(every_case())
        ids = [f"{operation.name}-{case.label}" for operation, case in pairs]
        metafunc.parametrize(("operation", "case"), pairs, ids=ids)
    elif "operation" in wanted:
        metafunc.parametrize("operation", OPERATIONS, ids=repr)
    if "dtype" in wanted:
        metafunc.parametrize("dtype", DTYPES, ids=str)
    if "pass_" in wanted:
        metafunc.parametrize("pass_", PASSES)
    if "layout" in wanted:
        metafunc.parametrize("layout", LAYOUTS)


@pytest.fixture
def rng():
    """A generator of random numbers, the same for every test."""
    return np.random.default_rng(0)


@pytest.fixture
def memory_route():
    """A function that lets calls of any size go "in cache", "through the cache" as those that
    outgrow it, or "past the cache" where the CPU can."""

    def assume(last_cache, streams_well):
        return _cpu.assume_last_cache(last_cache), _cpu.assume_streams_well(streams_well)

    before = assume(0, True)
    assume(*before)
    yield lambda route: assume(1 << 40 if route == "in cache" else 0, route == "past the cache")
    assume(*before)


@pytest.fixture
def square(operation):
    """A case of the operation whose result is as large as its first argument."""
    for case in operation.cases:
        arrays = operation.draw(case, np.float32)
        first = arrays[operation.inputs[0]]
        if arrays["dy"].shape == first.shape and first.size > 500:
            return case
    raise LookupError(f"{operation} has no such case")


def inherited():
    """The environment, without what sets numbers of threads and instruction sets."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("FASTNORM", "OMP"))}


@pytest.fixture
def run_python(tmp_path):
    """A function that runs Python code in a fresh interpreter, away from the checkout."""

    def run(*command, timeout=60, check=True, **environment):
        if len(command) == 1:
            command = ("-W", "error", "-c", *command)
        environment = {key: str(value) for key, value in environment.items()}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=inherited() | environment,
            timeout=timeout,
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def start_python(tmp_path):
    """A function that starts an interpreter, to be talked to through stdin and stdout."""
    started = []

    def start(*command, **environment):
        environment = {key: str(value) for key, value in environment.items()}
        worker = subprocess.Popen(
            [sys.executable, *command],
            cwd=tmp_path,
            env=inherited() | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.communicate()
