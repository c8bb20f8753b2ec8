from typing import Any

import numpy as np

from .._typing import Array

MAX_THIN: int
MAX_FEW: int

def matmul(
    a: Array,
    a_transposed: bool,
    b: Array,
    b_transposed: bool,
    bias: Array | None,
    c: Array,
    m: int,
    n: int,
    k: int,
    working: np.dtype[Any],
    num_threads: int,
) -> bool: ...
def sum_rows(
    x: Array,
    rows: int,
    n: int,
    sums: Array,
    working: np.dtype[Any],
    num_threads: int,
) -> bool: ...
def times_thin(
    a: Array,
    weight: Array,
    bias: Array | None,
    c: Array,
    rows: int,
    k: int,
    n: int,
    working: np.dtype[Any],
    num_threads: int,
) -> bool: ...
def thin_gradient(
    a: Array,
    b: Array,
    c: Array,
    rows: int,
    thin: int,
    wide: int,
    working: np.dtype[Any],
    num_threads: int,
) -> bool: ...
