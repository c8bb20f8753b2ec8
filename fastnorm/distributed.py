"""Groups of processes that share a batch: what ``batch_norm_forward(..., group=...)`` takes.

fastnorm has no transport of its own. A group is anything with a method ``allgather(array)`` that
returns the arrays of all members, one member a row: `Group`. Here are those of two engines, each
an optional extra that is imported when it is asked for:

======================  =============================  ============================
engine                  function                       extra
======================  =============================  ============================
mpi4py                  `mpi`                          ``fastnorm-kernels[mpi]``
torch.distributed       `torch`                        ``fastnorm-kernels[torch]``
======================  =============================  ============================

A member that fails does so for all: the engine's own error comes through in the others, and a call
that raises has written nothing. What the engine does about a member that is gone is said with each.
"""

from __future__ import annotations

import os
import time
from typing import Any, NoReturn

import numpy as np

from ._typing import Array, Group

__all__ = ["Group", "mpi", "torch"]

_SPIN, _NAP = 0.01, 1e-4  # seconds of asking again at once, and between questions after that
# Others may need this core to come. time.sleep(0) takes 50 µs on Linux.
_step_back = getattr(os, "sched_yield", lambda: time.sleep(0))


def _missing(function: str, module: str, extra: str) -> NoReturn:
    raise ImportError(
        f"{function} needs {module}: pip install 'fastnorm-kernels[{extra}]'", name=module
    ) from None


def _agreed(lengths: Array) -> None:
    if (lengths != lengths[0]).any():
        raise ValueError(
            f"the members' arrays must be of one length, got {', '.join(map(str, lengths))} "
            f"numbers; have all members as many channels, and are they in the same pass?"
        )


class _Mpi:
    """The processes of a communicator of mpi4py."""

    def __init__(self, comm: Any, timeout: float | None) -> None:
        self._comm, self._timeout = comm, timeout
        self._pending: Any = None  # what MPI may still write to after a time-out

    def __repr__(self) -> str:
        return f"<member {self._comm.Get_rank()} of {self._comm.Get_size()}, MPI>"

    def allgather(self, array: Array, /) -> Array:
        # The lengths first: what MPI makes of buffers of several lengths is undefined.
        _agreed(self._gather(np.array([array.size])).ravel())
        return self._gather(np.ascontiguousarray(array))

    def _gather(self, array: Array) -> Array:
        gathered = np.empty((self._comm.Get_size(), *array.shape), array.dtype)
        if self._timeout is None:
            self._comm.Allgather(array, gathered)
        else:
            self._wait(self._comm.Iallgather(array, gathered), array, gathered, self._timeout)
        return gathered

    def _wait(self, request: Any, array: Array, gathered: Array, timeout: float) -> None:
        begin = time.monotonic()
        while not request.Test():
            passed = time.monotonic() - begin
            if passed > timeout:
                self._pending = request, array, gathered
                raise TimeoutError(
                    f"allgather: not all {len(gathered)} members came within {timeout:g} s"
                )
            if passed < _SPIN:
                _step_back()
            else:
                time.sleep(_NAP)


def mpi(comm: Any = None, *, timeout: float | None = None) -> Group:
    """The processes of an MPI communicator, by mpi4py.

    Start programs with ``mpiexec -n 4 python -m mpi4py program.py``. With ``-m mpi4py``, an
    exception that a process does not catch ends all of them; without it, that process waits at its
    exit for the others, and they for it, for ever.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Whose processes are the members. Default: ``MPI.COMM_WORLD``.
    timeout : float, optional
        Seconds after which a member that does not come is a TimeoutError in the others, after
        which the communicator is of no more use. Default: MPI waits for ever.

    Returns
    -------
    Group

    Raises
    ------
    ImportError
        Where mpi4py is not installed.

    Examples
    --------
    In ``program.py``, where each process has its part x of the batch::

        group = fastnorm.distributed.mpi()
        y, cache = fastnorm.batch_norm_forward(x, gamma, beta, group=group)
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"mpi: timeout must be more than 0 seconds, got {timeout}")
    if comm is None:
        try:
            from mpi4py import MPI
        except ModuleNotFoundError:
            _missing("fastnorm.distributed.mpi", "mpi4py", "mpi")
        comm = MPI.COMM_WORLD
    return _Mpi(comm, timeout)


class _Torch:
    """The processes of a process group of torch.distributed."""

    def __init__(self, torch: Any, process_group: Any) -> None:
        self._torch, self._group = torch, process_group

    def __repr__(self) -> str:
        members = self._torch.distributed
        rank, size = members.get_rank(self._group), members.get_world_size(self._group)
        return f"<member {rank} of {size}, torch.distributed>"

    def allgather(self, array: Array, /) -> Array:
        # The lengths first: what the backends make of tensors of several lengths differs.
        _agreed(self._gather(np.array([array.size])).ravel())
        return self._gather(array)

    def _gather(self, array: Array) -> Array:
        members = self._torch.distributed
        sent = self._torch.from_numpy(np.ascontiguousarray(array))
        gathered = self._torch.empty(members.get_world_size(self._group), *sent.shape).to(sent)
        members.all_gather(list(gathered.unbind()), sent, group=self._group)
        return np.asarray(gathered.numpy())


def torch(process_group: Any = None) -> Group:
    """The processes of a process group of ``torch.distributed``.

    For tensors of the CPU, as gloo's are. A member that is gone is gloo's own error in the others,
    or the time-out that ``init_process_group`` was given (30 minutes if it was not).

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        Whose processes are the members. Default: all of them.

    Returns
    -------
    Group

    Raises
    ------
    ImportError
        Where PyTorch is not installed.
    RuntimeError
        Where ``torch.distributed.init_process_group`` has not been called.

    Examples
    --------
    In a program that ``torchrun`` starts, where each process has its part x of the batch::

        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
        group = fastnorm.distributed.torch()
        y, cache = fastnorm.batch_norm_forward(x, gamma, beta, group=group)
    """
    try:
        import torch as module
        import torch.distributed as members
    except ModuleNotFoundError:
        _missing("fastnorm.distributed.torch", "torch", "torch")
    if not members.is_available() or not members.is_initialized():
        raise RuntimeError(
            "fastnorm.distributed.torch: torch.distributed.init_process_group must be called first"
        )
    return _Torch(module, process_group)
