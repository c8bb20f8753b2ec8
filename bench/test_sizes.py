"""Time over size: the normalisations from 2¹² to 2²⁵ elements, in shapes that grow as layers do.

    pytest bench/test_sizes.py --benchmark-json=sizes.json
    python bench/plot.py sizes.json plots

One thread, so that ``copies``, in units of `numpy.copyto`, mean something; fastnorm writes into
``out=``. The JSON's ``params`` say what each row is: `bench/plot.py` draws it. A minute or two;
``-k "layer and not pytorch"`` and the like take some.
"""

import ctypes
import sys
from functools import cache

import pytest
from libraries import LIBRARIES, bind, draw

import fastnorm as fn
from fastnorm._registry import BATCH_NORM, LAYER_NORM, PASSES, WEIGHT_NORM, Case

pytestmark = pytest.mark.benchmark(max_time=0.1, min_rounds=5)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt


@pytest.fixture(scope="module", autouse=True)
def memory_is_kept():
    """Let malloc keep what is freed, so that results without ``out=`` are not fresh memory.

    glibc gives arrays of 32 MB and more back at once, and a new one costs page faults, several
    times the work that is to be timed: warm must be compared with warm.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    yield
    if mallopt:
        mallopt(M_MMAP_MAX, 65536)
        mallopt(M_TRIM_THRESHOLD, 2**17)


def images(k):
    """N, C, H and W of 2ᵏ elements: channels and planes grow alike."""
    height = 2 ** ((k - k // 2) // 2)
    return 32, 2 ** (k // 2 - 5), height, 2 ** (k - k // 2) // height


def channels_first(k):
    return Case(f"2^{k}", images(k))


def channels_last(k):
    n, c, h, w = images(k)
    return Case(f"2^{k}", (n, h, w, c), {"axis": -1})


def rows(k):
    return Case(f"2^{k}", (2 ** (k - 10), 1024))


def weights(k):
    return Case(f"2^{k}", (2 ** (k // 2), 2 ** (k - k // 2)))


VIEWS = {
    "batch norm, channels first": (BATCH_NORM, channels_first),
    "batch norm, channels last": (BATCH_NORM, channels_last),
    "layer norm": (LAYER_NORM, rows),
    "weight norm": (WEIGHT_NORM, weights),
}


@cache  # `draw` keeps the arrays of a case, not of one like it
def case_at(view, log2_elements):
    operation, case_of = VIEWS[view]
    return operation, case_of(log2_elements)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("log2_elements", range(12, 26))
@pytest.mark.parametrize("view", VIEWS)
def test_size(view, log2_elements, pass_, library, measure):
    operation, case = case_at(view, log2_elements)
    arrays = draw(operation, case)
    with fn.num_threads(1):
        measure(
            bind(library, operation, pass_, case, arrays, out=operation.blank(pass_, arrays)),
            library,
            f"{view}, {pass_}, 2^{log2_elements}",
            operation.bytes_moved(pass_, case, arrays),
            copied=arrays[operation.inputs[0]],
        )
