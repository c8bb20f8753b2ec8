"""A member of a group of processes, as `test_distributed.py` starts them.

``python members.py ENGINE WHAT [FILE]``: ENGINE is mpi, mpi-timeout, comm or torch, FILE where
torch's processes find one another. What it finds is in RANK.said, where it was started.
"""

import hashlib
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np

import fastnorm as fn
from fastnorm import reference

SECONDS = 3  # until a member that does not come is an error


def start(engine):
    """The group, this member's number, and how many there are."""
    if engine == "torch":
        import torch.distributed as members

        members.init_process_group(
            "gloo",
            init_method=f"file://{sys.argv[3]}",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(seconds=SECONDS if what == "stops" else 30),
        )
        return fn.distributed.torch(), members.get_rank(), members.get_world_size()
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    group = {
        "comm": lambda: comm,
        "mpi": fn.distributed.mpi,
        "mpi-timeout": lambda: fn.distributed.mpi(timeout=SECONDS if what == "stops" else 30),
    }[engine]()
    return group, comm.Get_rank(), comm.Get_size()


def whole():
    """Parts of different sizes, one of them empty: as the whole batch, same bits in all members."""
    rng = np.random.default_rng(0)
    bits = hashlib.sha256()
    for shape, axis in (((40, 5), 1), ((24, 6, 12, 12), 1), ((24, 7, 7, 33), -1)):
        for dtype, close in ((np.float32, 1e-5), (np.float64, 1e-12)):
            x, dy = (3 + rng.standard_normal((2, *shape))).astype(dtype)
            gamma, beta = rng.standard_normal((2, shape[axis])).astype(dtype)
            running = rng.standard_normal((2, shape[axis]))
            expected = running.copy()
            y, cache = reference.batch_norm_forward(
                x.astype(np.float64), gamma, beta, axis=axis,
                running_mean=expected[0], running_var=expected[1],
            )  # fmt: skip
            dx, dgamma, dbeta = reference.batch_norm_backward(dy.astype(np.float64), cache)
            # The last member has nothing, where there are three or more.
            cuts = [0, *(np.arange(1, size) * 7 % 23 + np.arange(1, size)), shape[0]]
            cuts = sorted(min(c, shape[0]) for c in cuts)
            if size > 2:
                cuts[-2] = shape[0]
            part = slice(cuts[rank], cuts[rank + 1])
            mine, my_cache = fn.batch_norm_forward(
                x[part], gamma, beta, axis=axis,
                running_mean=running[0], running_var=running[1], group=group,
            )  # fmt: skip
            my_dx, *sums = fn.batch_norm_backward(dy[part], my_cache)
            assert np.allclose(mine, y[part], rtol=close, atol=close)
            assert np.allclose(my_dx, dx[part], rtol=close, atol=close)
            assert np.allclose(running, expected, rtol=1e-12, atol=1e-12)
            total = np.asarray(group.allgather(np.concatenate(sums).astype(np.float64))).sum(axis=0)
            scale = np.abs(dy.astype(np.float64)).sum()
            assert np.allclose(total, [*dgamma, *dbeta], rtol=0, atol=close * scale)
            for array in (my_cache.mean, my_cache.rstd, running):
                bits.update(array.tobytes())
            moments = fn.Moments.of(x[part], axis).pack()
            together = fn.Moments.merge(map(fn.Moments.unpack, group.allgather(moments)))
            bits.update(together.pack().tobytes())
            assert np.allclose(together.mean, reference.moments(x, axis)[1], rtol=1e-12)
    say(bits.hexdigest())


def untouched(error_type, x):
    """A call with the group raises this, and leaves every array as it was."""
    out, running = np.full_like(x, 7), np.full((2, x.shape[1]), 7.0)
    begin = time.monotonic()
    try:
        fn.batch_norm_forward(
            x, running_mean=running[0], running_var=running[1], out=out, group=group
        )
    except error_type as error:
        assert (out == 7).all()
        assert (running == 7).all()
        assert time.monotonic() - begin < 5 * SECONDS
        say(type(error).__name__, str(error).replace("\n", " ")[:100])
        if error_type is Exception:  # the group is broken
            time.sleep(1)  # mpiexec may end the others once one has left: they are to speak first
            leave()
    else:
        say("no error")


def several_lengths():
    untouched(ValueError, np.ones((4, 3 + rank % 2)))


def several_options():
    untouched(ValueError, np.ones((4, 3), (np.float32, np.float64)[rank % 2]))


def raises():
    """One member fails in its own way; the others wait for it."""
    if rank == 1:
        raise KeyError("mine")
    untouched(Exception, np.ones((4, 3)))


def exits():
    if rank == 1:
        leave(3)
    untouched(Exception, np.ones((4, 3)))


def stops():
    """One member lives, but does not come."""
    if rank == 1:
        time.sleep(3 * SECONDS)
        leave()
    untouched(Exception, np.ones((4, 3)))


def say(*words):
    Path(f"{rank}.said").write_text(" ".join(words))


def leave(code=0):
    """Without the engine's farewell, for which a group that is broken would wait."""
    os._exit(code)


if __name__ == "__main__":
    what = sys.argv[2]
    group, rank, size = start(sys.argv[1])
    globals()[what]()
    if sys.argv[1] == "torch":
        import torch.distributed

        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
