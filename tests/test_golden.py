"""The bits of results are those of golden.json, on every machine and instruction set.

The arguments are small multiples of 1/128, so that no platform's logarithm has a part in them.
Affine is not here: its sums are BLAS's. A change that is meant to change bits writes the file anew:

    FASTNORM_WRITE_GOLDEN=1 pytest tests/test_golden.py
"""

import hashlib
import json
import os
import zlib
from math import prod
from pathlib import Path

import numpy as np
import pytest

import fastnorm as fn
from fastnorm._registry import AFFINE, DTYPES, OPERATIONS, PASSES

GOLDEN = Path(__file__).with_name("golden.json")
NORMS = [operation for operation in OPERATIONS if operation is not AFFINE]


class Exact:
    """In place of a generator of normal numbers."""

    def __init__(self, name):
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def standard_normal(self, shape):
        return self.rng.integers(-384, 385, shape) / 128


def digest(operation, dtype):
    total = hashlib.sha256()
    for case in operation.cases:
        if prod(case.shape) > 100_000:
            continue
        arrays = operation.draw(case, dtype, Exact(f"{operation} {case.label}"))
        for pass_ in PASSES:
            for result in operation.run(fn, pass_, case, arrays).values():
                total.update(b"" if result is None else result.tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("operation", NORMS, ids=repr)
def test_golden(operation, dtype):
    with np.errstate(all="ignore"):
        got = digest(operation, dtype)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if "FASTNORM_WRITE_GOLDEN" in os.environ:
        golden.setdefault(operation.name, {})[str(dtype)] = got
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    assert golden[operation.name][str(dtype)] == got


def test_nothing_is_missing():
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == {operation.name for operation in NORMS}
    assert all(set(hashes) >= {str(dtype) for dtype in DTYPES} for hashes in golden.values())
