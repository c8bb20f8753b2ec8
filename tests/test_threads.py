"""Threads: of Python, of the pool, and how many there are."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from math import inf
from random import Random

import numpy as np
import pytest
from checks import SMALL, assert_same

import fastnorm as fn
from fastnorm import _pool, _threads
from fastnorm._registry import OPERATIONS, PASSES


def cores():
    return _threads._affinity()


# ---- threads of Python ---------------------------------------------------------------------------


def test_different_operations_at_once():
    """Every pass of every operation, from four threads, in any order, on shared inputs."""
    calls = []
    for operation, case in SMALL:
        arrays = operation.draw(case, np.float32)
        for pass_ in PASSES:
            calls.append((operation, pass_, case, arrays))
    expected = [operation.run(fn, pass_, case, arrays) for operation, pass_, case, arrays in calls]

    def work(seed):
        order = list(range(len(calls)))
        Random(seed).shuffle(order)
        with fn.num_threads(1 + seed % 3):
            for i in order:
                operation, pass_, case, arrays = calls[i]
                assert_same(operation.run(fn, pass_, case, arrays), expected[i], f"{operation}")

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result(timeout=120)


def least_time(call, rounds=3):
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_serial_kernels_run_side_by_side():
    """The GIL is released: two threads take little more than half the time of one after the other.

    A machine that is busy with something else gets a minute.
    """
    # Rows so short that a core computes for longer than it waits for memory, which the two have in
    # common, and so many that a call takes half a millisecond: who waits for the GIL between two
    # calls takes 20 us to wake.
    x = np.ones((65536, 8), np.float32)
    outs = np.empty_like(x), np.empty_like(x)

    def work(out):
        with fn.num_threads(1):
            for _ in range(40):
                fn.layer_norm(x, out=out)

    def side_by_side():
        threads = [threading.Thread(target=work, args=(out,)) for out in outs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    speedups = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        after_another = least_time(lambda: (work(outs[0]), work(outs[1])))
        speedups.append(after_another / least_time(side_by_side))
        if speedups[-1] >= 1.7:
            return
        time.sleep(1)
    pytest.fail(f"two threads are {max(speedups):.2f} times as fast as one, at best")


def test_num_threads_does_not_leak():
    """Into another thread, or into what the same thread does next in a pool."""
    default = fn.get_num_threads()
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with fn.num_threads(default + 3):
            inside.set()
            leave.wait(10)
        return fn.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        assert inside.wait(10)
        assert fn.get_num_threads() == default
        leave.set()
        assert future.result(10) == default
        assert pool.submit(fn.get_num_threads).result(10) == default


WORKERS = """
import os, signal
import numpy as np
import fastnorm as fn

fn.set_num_threads(3)
x = np.ones((4096, 1024), np.float32)
before = set(os.listdir("/proc/self/task"))  # NumPy's BLAS has threads too
fn.layer_norm(x)
ours = set(os.listdir("/proc/self/task")) - before
assert ours
for thread in ours:
    with open(f"/proc/self/task/{thread}/status") as file:
        (line,) = [line for line in file if line.startswith("SigBlk:")]
    blocked = int(line.split()[1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        assert blocked >> number - 1 & 1, f"signal {number} may come to a worker"
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads Linux's /proc")
def test_workers_block_signals(run_python):
    """They are for the threads of the program."""
    run_python("-c", WORKERS)


# ---- the budget ----------------------------------------------------------------------------------


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A function that lays out control groups: lines of /proc/self/cgroup, files of /sys."""

    def lay_out(lines, files):
        root = tmp_path / "cgroup"
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "cgroup").write_text(lines)
        monkeypatch.setattr(_threads, "_CGROUPS", root)
        return tmp_path

    return lay_out


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        ("0::/a\n", {"a/cpu.max": "max 100000"}, inf),
        ("0::/a\n", {"a/cpu.max": "200000 100000"}, 2),
        ("0::/a\n", {"a/cpu.max": "250000 100000"}, 3),
        ("0::/a\n", {"a/cpu.max": "50000 100000"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "400000 100000"}, 1),
        ("0::/\n", {"cpu.max": "300000 100000"}, 3),
        (
            "3:cpu,cpuacct:/d\n0::/\n",
            {"cpu/d/cpu.cfs_quota_us": "150000", "cpu/d/cpu.cfs_period_us": "100000"},
            2,
        ),
        (
            "3:cpu:/d\n",
            {"cpu/d/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_period_us": "100000"},
            inf,
        ),
        ("0::/gone\n", {"cpu.max": "100000 100000"}, 1),
        ("", {}, inf),
    ],
)
def test_quota(proc, lines, files, quota):
    """Version 2 and 1; what a group above allows counts too."""
    assert _threads._quota(proc(lines, files)) == quota


def test_without_affinity_or_control_groups(monkeypatch, tmp_path):
    """macOS and Windows have neither: all cores, and no quota."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert _threads._affinity() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # not known
    assert _threads._affinity() == 1
    assert _threads._quota(tmp_path / "no-proc") == inf


def test_default_is_the_least(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("FASTNORM_NUM_THREADS", raising=False)
    limits = {"_affinity": 8, "_quota": 8}

    def default():
        for name, n in limits.items():
            monkeypatch.setattr(_threads, name, lambda n=n: n)
        return _threads._default()

    assert default() == 8
    limits["_quota"] = 5
    assert default() == 5
    limits["_affinity"] = 4
    assert default() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert default() == 3
    monkeypatch.setenv("FASTNORM_NUM_THREADS", "2")
    assert default() == 2
    monkeypatch.setenv("FASTNORM_NUM_THREADS", "many")
    assert default() == 3


def test_more_threads_than_there_can_be():
    for n in (_pool.MAX_THREADS + 1, 2**31, 2**100):
        with fn.num_threads(n):
            assert fn.get_num_threads() == _pool.MAX_THREADS


ONE_CPU = """
import os, sys, time
import numpy as np

if sys.argv[1:]:
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
else:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import fastnorm as fn

if fn.get_num_threads() != 1:
    sys.exit(f"{fn.get_num_threads()} threads for one CPU")
x = np.ones((512, 768), np.float32)
out = np.empty_like(x)

def least(n):
    times = []
    with fn.num_threads(n):
        for _ in range(100):
            started = time.perf_counter()
            for _ in range(5):
                fn.layer_norm(x, out=out)
            times.append(time.perf_counter() - started)
    return sum(sorted(times)[:50])

least(1)
ratios = []
for _ in range(5):
    ratios.append(least(8) / least(1))
    if ratios[-1] < 2:
        sys.exit(0)
sys.exit(f"eight threads on one CPU take {min(ratios):.2f} times what one takes")
"""


@pytest.mark.skipif(not hasattr(threading, "get_native_id"), reason="needs an affinity")
def test_many_threads_on_one_cpu(run_python):
    """Nobody waits for a thread that has no core, so nothing collapses."""
    run_python("-c", ONE_CPU)


@pytest.fixture
def one_cpu_group():
    """The file that takes a process into a control group which may use one CPU of several."""
    version_1 = _threads._CGROUPS / "cpu"
    group = (version_1 if version_1.is_dir() else _threads._CGROUPS) / "fastnorm-test"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("may not make a control group")
    try:
        if version_1.is_dir():
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("100000")
        else:
            (group / "cpu.max").write_text("100000 100000")
        yield group / "cgroup.procs"
    except OSError:
        pytest.skip("may not set a quota")
    finally:
        group.rmdir()


def test_many_threads_under_a_quota(run_python, one_cpu_group):
    """Nor where the system stops all threads once they have used up a period's time."""
    run_python("-c", ONE_CPU, str(one_cpu_group))


EIGHT = """
import sys, time
import numpy as np
import fastnorm as fn

x = np.random.default_rng(0).standard_normal((512, 768), np.float32)
out = np.empty_like(x)
fn.layer_norm(x, out=out)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    fn.layer_norm(x, out=out)
print("done", flush=True)
"""


@pytest.mark.slow
def test_eight_processes_at_once(start_python):
    """On all cores together they take at most 1.2 times what eight of one thread each take."""

    def least(**environment):
        workers = [start_python("-c", EIGHT, "1000", **environment) for _ in range(8)]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        started = time.perf_counter()
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        for worker in workers:
            assert worker.stdout.readline() == "done\n"
        return time.perf_counter() - started

    ratios = []
    for _ in range(6):
        ratios.append(least() / least(FASTNORM_NUM_THREADS=1))
        if ratios[-1] <= 1.2:
            return
    pytest.fail(f"eight processes take {min(ratios):.2f} times the time of serial ones")


# ---- completeness -------------------------------------------------------------------------------


def test_every_operation_takes_part():
    assert {operation.name for operation, _ in SMALL} == {o.name for o in OPERATIONS}
