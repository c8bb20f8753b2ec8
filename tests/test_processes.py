"""Processes: a forked child computes at once and with its own threads, pools of processes work."""

import multiprocessing
import os
import time

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
# A process with threads that forks is what is tested; newer Pythons warn of it.
FORKING = ("-W", "ignore::DeprecationWarning", "-c")

USE_THREADS = """
import os, sys, threading, time
import numpy as np
import fastnorm as fn
from fastnorm import _pool

fn.set_num_threads(4)
x = np.random.default_rng(0).standard_normal((2048, 1024)).astype(np.float32)
gamma = np.ones(1024, np.float32)
weight = np.ones((1024, 64), np.float32)

def results():
    y, cache = fn.layer_norm_forward(x, gamma)
    return b"".join(a.tobytes() for a in (
        y, *fn.layer_norm_backward(x, cache)[:2],
        fn.batch_norm_forward(x)[0], fn.weight_norm(x, x[:, 0]), fn.affine(x, weight)))

expected = results()

def is_same(_):
    return results() == expected

def is_right_in_child():
    if fn.get_num_threads() != 4 or _pool.workers() != 0:
        return False
    started = time.monotonic()
    if not is_same(0) or _pool.workers() == 0:
        return False
    return time.monotonic() - started < 1

def run_in_child(check):
    child = os.fork()
    if child == 0:
        status = 4
        try:
            status = 0 if check() else 3
        finally:
            os._exit(status)
    deadline = time.monotonic() + 20
    pid = 0
    while not pid and time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    if not pid:
        os.kill(child, 9)
        sys.exit("the child hangs")
    if status:
        sys.exit(f"the child ended with status {status}")
"""


@needs_fork
def test_fork(run_python):
    """A child of a process that has used threads computes with threads of its own, in a second."""
    code = """
for _ in range(5):
    run_in_child(is_right_in_child)
    if not is_same(0):
        sys.exit("after the fork the parent computes something else")
"""
    run_python(*FORKING, USE_THREADS + code)


@needs_fork
def test_fork_of_a_child(run_python):
    code = """
def has_children():
    run_in_child(is_right_in_child)
    return is_same(0)

run_in_child(has_children)
"""
    run_python(*FORKING, USE_THREADS + code)


@needs_fork
@pytest.mark.parametrize(
    "call",
    ["fn.layer_norm(x, gamma)", "fn.batch_norm_forward(x)", "fn.affine(x, weight)", "is_same(0)"],
)
def test_fork_while_another_thread_is_inside(run_python, call):
    """In a kernel, or in between: nothing that it holds is held in the child."""
    code = f"""
stop = False

def work():
    while not stop:
        {call}

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(40):
    run_in_child(is_right_in_child)
    time.sleep(0.003)
stop = True
for thread in threads:
    thread.join()
if not is_same(0):
    sys.exit("after the forks the parent computes something else")
"""
    run_python(*FORKING, USE_THREADS + code, timeout=120)


BLAS = (
    USE_THREADS
    + """
from fastnorm import _blas

if not _blas.can_be_single_threaded():
    sys.exit(0)
_blas._set(3)
inside, leave = threading.Event(), threading.Event()

def stay():
    with _blas.single_threaded:
        inside.set()
        leave.wait()

def has_threads():
    return _blas._get() == 3 and is_same(0) and _blas._get() == 3

def check_threads():
    if not has_threads():
        sys.exit("the parent's BLAS has lost its threads")

def fork_while_another_is_inside(check, seconds):
    thread = threading.Thread(target=stay)
    timer = threading.Timer(seconds, leave.set)
    thread.start()
    inside.wait()
    timer.start()
    run_in_child(check)
    timer.cancel()
    leave.set()
    thread.join()
    check_threads()
"""
)


@needs_fork
def test_fork_waits_until_nobody_is_in_blas(run_python):
    """Who is inside may hold a lock of BLAS, which the child would wait for."""
    code = """
fork_while_another_is_inside(lambda: leave.is_set() and has_threads(), 0.2)
"""
    run_python(*FORKING, BLAS + code)


@needs_fork
def test_fork_waits_for_some_time(run_python):
    """BLAS is set to one thread while affine runs: not for good in a child forked meanwhile."""
    code = """
_blas._PATIENCE = 0.05
fork_while_another_is_inside(lambda: not leave.is_set() and has_threads(), 20)
"""
    run_python(*FORKING, BLAS + code)


@needs_fork
def test_fork_by_who_is_inside(run_python):
    """As a signal handler may."""
    code = """
with _blas.single_threaded:
    run_in_child(lambda: _blas._get() == 1 and is_same(0) and _blas._get() == 1)
check_threads()
"""
    run_python(*FORKING, BLAS + code)


# What a child of another kind imports.
MODULE = (
    USE_THREADS
    + """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

if __name__ == "__main__":
    method = sys.argv[1]
    if sys.argv[2] == "Pool":
        with get_context(method).Pool(2) as pool:
            assert all(pool.map_async(is_same, range(4)).get(timeout=60))
    else:
        with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
            assert all(pool.map(is_same, range(4), timeout=60))
    assert is_same(0)
"""
)


@pytest.mark.parametrize("pool", ["Pool", "ProcessPoolExecutor"])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_pools_of_processes(run_python, tmp_path, method, pool):
    (tmp_path / "work.py").write_text(MODULE)
    run_python("-W", "ignore::DeprecationWarning", "work.py", method, pool, timeout=120)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_a_data_loader(run_python, tmp_path, method):
    """PyTorch's, which normalise what they load."""
    pytest.importorskip("torch", exc_type=ImportError)
    code = """
import torch
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        return fn.layer_norm(x[32 * i : 32 * i + 32], gamma)

if __name__ == "__main__":
    loader = DataLoader(Rows(), 8, num_workers=2, multiprocessing_context=sys.argv[1], timeout=60)
    y = np.concatenate([batch.numpy().reshape(-1, 1024) for batch in loader])
    assert np.array_equal(y, fn.layer_norm(x, gamma))
"""
    (tmp_path / "work.py").write_text(USE_THREADS + code)
    run_python("-W", "ignore", "work.py", method, timeout=120)


def test_interpreter_exits_promptly(run_python):
    """Threads that sleep do not hold the process up."""
    done = run_python(USE_THREADS + "print(time.time())")
    assert time.time() - float(done.stdout) < 2
