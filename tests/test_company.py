"""In one process with libraries that have thread pools of their own, imported in any order."""

from importlib.util import find_spec
from itertools import permutations

import pytest

OTHERS = ("torch", "sklearn", "numba")

USE = {
    "fastnorm": "import fastnorm as fn",
    "torch": "import torch",
    "sklearn": "from sklearn.cluster import KMeans",
    "numba": """
import numba

@numba.njit(parallel=True)
def doubled(x):
    y = np.empty_like(x)
    for i in numba.prange(x.size):
        y[i] = 2 * x[i]
    return y
""",
}

# After each of them, fastnorm's results are what they were.
ALTERNATE = {
    "torch": """
    w = torch.nn.functional.layer_norm(torch.from_numpy(x), (512,))
    assert np.allclose(w.numpy() @ b.T, y @ b.T, atol=1e-3)
""",
    "sklearn": """
    KMeans(3, n_init=1, max_iter=3, random_state=0).fit(x)
""",
    "numba": """
    assert (doubled(b[0]) == 2 * b[0]).all()
""",
}


def program(order):
    lines = ["import numpy as np"]
    lines += [USE[name] for name in order]
    lines += [
        "rng = np.random.default_rng(0)",
        "x = rng.standard_normal((1024, 512)).astype(np.float32)",
        "b = rng.standard_normal((64, 512)).astype(np.float32)",
        "fn.set_num_threads(2)",
        "y, cache = fn.layer_norm_forward(x)",
        "dx = fn.layer_norm_backward(x, cache)[0]",
        "z = fn.affine(x, b.T)",
        "for _ in range(5):",
    ]
    lines += [ALTERNATE[name] for name in order if name != "fastnorm"]
    lines += [
        "    assert np.array_equal(fn.layer_norm(x), y)",
        "    assert np.array_equal(fn.layer_norm_backward(x, cache)[0], dx)",
        "    assert np.array_equal(fn.affine(x, b.T), z)",
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("other", OTHERS)
def test_beside(run_python, other, first):
    pytest.importorskip(other, exc_type=ImportError)
    order = ("fastnorm", other) if first else (other, "fastnorm")
    run_python("-W", "ignore", "-c", program(order), timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", list(permutations(("fastnorm", *filter(find_spec, OTHERS)))), ids="-".join
)
def test_every_order(run_python, order):
    """Of all those that are installed."""
    if len(order) == 1:
        pytest.skip("none of the others is installed")
    run_python("-W", "ignore", "-c", program(order), timeout=300)
