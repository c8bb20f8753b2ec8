"""threadpoolctl sees the pool and limits it; joblib shares the cores between processes."""

import pytest

import fastnorm as fn

threadpoolctl = pytest.importorskip("threadpoolctl")


def pools():
    return [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "fastnorm"]


def test_threadpoolctl_sees_the_pool():
    (pool,) = pools()
    assert pool["num_threads"] == fn.get_num_threads()
    assert pool["version"] == fn.__version__


def test_threadpoolctl_limits_the_pool():
    default = fn.get_num_threads()
    with threadpoolctl.threadpool_limits(default + 2):
        assert fn.get_num_threads() == default + 2
        with threadpoolctl.threadpool_limits(1, user_api="fastnorm"):
            assert fn.get_num_threads() == pools()[0]["num_threads"] == 1
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            assert fn.get_num_threads() == default + 2
        assert fn.get_num_threads() == default + 2
    assert fn.get_num_threads() == default


def test_a_limit_beside_that_of_a_thread():
    """`num_threads` goes before it and is not taken for the process's."""
    default = fn.get_num_threads()
    with fn.num_threads(default + 1), threadpoolctl.threadpool_limits(1):
        assert fn.get_num_threads() == default + 1
    assert fn.get_num_threads() == default


@pytest.mark.parametrize("first", ["fastnorm", "threadpoolctl"])
def test_any_order_of_imports(run_python, first):
    second = {"fastnorm": "threadpoolctl", "threadpoolctl": "fastnorm"}[first]
    code = f"import {first}; import {second}; from threadpoolctl import threadpool_info"
    run_python(code + "; assert 'fastnorm' in {pool['user_api'] for pool in threadpool_info()}")


JOBLIB = """
import numpy as np
from joblib import Parallel, delayed
import fastnorm as fn

x = np.random.default_rng(0).standard_normal((2000, 768)).astype(np.float32)

def work(i):
    return fn.get_num_threads(), fn.layer_norm(x).tobytes() == expected

def work_alone(i):
    import fastnorm as fn

    return fn.get_num_threads(), fn.layer_norm(x).tobytes() == expected

expected = fn.layer_norm(x).tobytes()
default = fn.get_num_threads()
for n, same in Parallel(2, backend="threading")(delayed(work)(i) for i in range(8)):
    assert n == default and same
for n, same in Parallel(2, backend="loky")(delayed(work_alone)(i) for i in range(8)):
    assert n == max(default // 2, 1) and same, (n, same)
"""


def test_joblib(run_python):
    """Its threads compute the same; its processes share the cores, as joblib tells OpenMP."""
    pytest.importorskip("joblib")
    run_python("-W", "ignore", "-c", JOBLIB, timeout=120)
