"""An old processor, as qemu's user mode emulates it: no instruction that it has not."""

import json
import shutil
import subprocess
import sys

import pytest

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
# Nehalem (2008) has what NumPy 2's wheels ask for, SSE4.2, and nothing newer.
OLD = {"Nehalem": ["baseline"], "Haswell": ["baseline", "avx2"]}

CHECK = """
import json, sys
import numpy as np
import fastnorm as fn
from fastnorm import _dispatch
from fastnorm._registry import DTYPES, OPERATIONS, PASSES

assert list(_dispatch.ISAS) == json.loads(sys.argv[1]), _dispatch.ISAS
fn.set_num_threads(2)
for operation in OPERATIONS:
    for case in (operation.typical, max(operation.cases, key=lambda c: np.prod(c.shape) % 100_003)):
        for dtype in DTYPES:
            arrays = operation.draw(case, dtype)
            for pass_ in PASSES:
                results = operation.run(fn, pass_, case, arrays)
                errors = operation.judge(pass_, case, arrays, results)
                assert all(error <= 1 for error in errors.values()), (operation, case, errors)
"""


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64 (Debian: qemu-user)")
@pytest.mark.parametrize("cpu", OLD)
def test_old_processor(cpu, tmp_path):
    command = [QEMU, "-cpu", cpu, sys.executable, "-W", "ignore", "-c", CHECK, json.dumps(OLD[cpu])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
