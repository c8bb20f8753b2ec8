"""How many threads a call may use."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import SupportsIndex

from ._pool import MAX_THREADS

_CGROUPS = Path("/sys/fs/cgroup")


class _Local(threading.local):
    """What `num_threads` set for this thread."""

    n: int | None = (
        None  # a default of the class is found much faster than the lack of an attribute
    )


_local = _Local()


def _positive_integer(function: str, value: SupportsIndex) -> int:
    try:
        n = index(value)
    except TypeError:
        raise TypeError(f"{function}: n must be an integer, got {type(value).__name__}") from None
    if n < 1:
        raise ValueError(f"{function}: n must be at least 1, got {n}")
    return min(n, MAX_THREADS)


def _from_environment(name: str) -> float:
    """The limit that an environment variable sets; OMP_NUM_THREADS may be a list, one per level."""
    try:
        n = int(os.environ.get(name, "").split(",")[0])
    except ValueError:
        return math.inf
    return n if n >= 1 else math.inf


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cgroup_folders(proc: Path) -> Iterator[Path]:
    """Folders of this process's control groups, the process's own first, then those above it."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            root = _CGROUPS / ("cpu" if controllers else "")
            folder = root / path.lstrip("/")
            yield from (folder, *folder.parents[: len(folder.parents) - len(root.parents)])


def _quota_of(folder: Path) -> float:
    """CPUs that a control group may use, of version 2 (cpu.max) or 1 (cfs_quota)."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    if quota.strip() in ("max", "-1"):
        return math.inf
    return max(1, math.ceil(int(quota) / int(period)))


def _quota(proc: Path = Path("/proc")) -> float:
    return min(map(_quota_of, _cgroup_folders(proc)), default=math.inf)


def _default() -> int:
    limits = (
        _affinity(),
        _quota(),
        _from_environment("OMP_NUM_THREADS"),
        _from_environment("FASTNORM_NUM_THREADS"),
    )
    return int(min(*limits, MAX_THREADS))


_process = _default()


def for_the_process() -> int:
    """What `set_num_threads` has set, or the default."""
    return _process


def get_num_threads() -> int:
    """Number of threads that a call made by this thread may use.

    Returns
    -------
    int
        What `num_threads` set for this thread, else what `set_num_threads` set for the process,
        else the default: the least of the CPU affinity, the control group's CPU quota,
        ``OMP_NUM_THREADS`` and ``FASTNORM_NUM_THREADS``.

    Examples
    --------
    >>> import fastnorm as fn
    >>> with fn.num_threads(1):
    ...     fn.get_num_threads()
    1
    """
    return _local.n or _process


def set_num_threads(n: SupportsIndex) -> None:
    """Set the process's default number of threads.

    Results do not depend on it, bit for bit.

    Parameters
    ----------
    n : int
        At least 1. More threads than CPUs only cost time, and more than 512 are never used.

    Raises
    ------
    TypeError
        If n is not an integer.
    ValueError
        If n is less than 1.

    Examples
    --------
    >>> import fastnorm as fn
    >>> fn.set_num_threads(fn.get_num_threads())
    """
    global _process
    _process = _positive_integer("set_num_threads", n)


@contextmanager
def num_threads(n: SupportsIndex) -> Iterator[None]:
    """Limit the calls of this thread, and of no other, to n threads.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If n is not an integer.
    ValueError
        If n is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> with fn.num_threads(1):
    ...     y = fn.layer_norm(np.ones((2, 3), np.float32))
    """
    n = _positive_integer("num_threads", n)
    previous = _local.n
    _local.n = n
    try:
        yield
    finally:
        _local.n = previous
