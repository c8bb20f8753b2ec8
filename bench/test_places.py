"""Where results begin must not matter.

Rows that are whole pages apart, x and dy at the same place in their pages, as NumPy's large arrays
are, and the result so many bytes further on in its own: after that of half a page, where nothing of
one is in the way of the other.
"""

import pytest
from libraries import bind, draw

import fastnorm as fn
from fastnorm._registry import (
    BATCH_NORM,
    LAYER_NORM,
    PAGE,
    PASSES,
    RMS_NORM,
    WEIGHT_NORM,
    Case,
    in_page,
)

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=3)

FIRST = 16  # bytes after a page, where NumPy's large arrays begin
DISTANCES = (PAGE // 2, 0, 16, 32, 64, 80, 128, -16, -64)
ROWS = Case("256x1024", (256, 1024))
CASES = [
    (LAYER_NORM, ROWS),
    (RMS_NORM, ROWS),
    (WEIGHT_NORM, ROWS),
    (WEIGHT_NORM, Case("256x1024, axis -1", ROWS.shape, {"axis": -1})),
    (BATCH_NORM, ROWS),
]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    ("operation", "case"),
    [pytest.param(*case, id=f"{case[0].name}-{case[1].label}") for case in CASES],
)
def test_places(operation, case, pass_, distance, measure):
    arrays = dict(draw(operation, case))
    for name in (operation.inputs[0], "dy"):
        arrays[name] = in_page(arrays[name], FIRST)
    out = in_page(operation.blank(pass_, arrays), FIRST + distance)
    with fn.num_threads(1):
        measure(
            bind("fastnorm", operation, pass_, case, arrays, out=out),
            f"{distance} bytes",
            f"{operation.name} {pass_} {case.label}",
            operation.bytes_moved(pass_, case, arrays),
            baseline=f"{PAGE // 2} bytes",
        )
