"""Train the MLP with each batch spread over the processes of mpiexec, for data_parallel.py.

    mpiexec -n 2 python -m mpi4py parallel_worker.py OPTIONS

OPTIONS is JSON, see `train`. Every process takes its rows of every batch, computes the gradients of
its share of the loss, and adds them up over all processes; batch norm is synchronised, or local.
What the first process found is written to the file of the options.
"""

import hashlib
import json
import sys
import time

import dataset
import nn
import numpy as np
from training import Trainer

import fastnorm as fn

SIZES = (784, 256, 256, 256, 256, 10)


class Alone:
    """One process without MPI, as far as is needed here."""

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 1

    def Allreduce(self, array, total):
        total[...] = array

    Allgather = Allreduce


class Timed:
    """A group, and the seconds that its exchanges took."""

    def __init__(self, group):
        self.group, self.seconds = group, 0.0

    def allgather(self, array):
        start = time.perf_counter()
        gathered = self.group.allgather(array)
        self.seconds += time.perf_counter() - start
        return gathered


def widen(layers, dtype):
    for layer in layers:
        for arrays in (layer.params, layer.stats):
            arrays.update((k, a.astype(dtype)) for k, a in arrays.items())


class Tanh(fn.layers.Layer):
    """In ReLU's place: a rounding turns no sign of its gradient."""

    def _infer(self, x, out):
        return np.tanh(x, out=out)

    def _forward(self, x, out):
        y = self._infer(x, out)
        return y, y

    def _backward(self, dy, y, out):
        return (np.multiply(dy, 1 - y * y, out=out),)


def network(seed, dtype, activation):
    layers = nn.normalised_network("batch", SIZES, seed)
    if activation == "tanh":
        layers = [Tanh() if isinstance(layer, nn.ReLU) else layer for layer in layers]
    widen(layers, dtype)
    return layers


class Shared(Trainer):
    """A trainer that has its part of each batch."""

    def __init__(self, layers, comm, group):
        super().__init__(layers)
        self.comm, self.seconds = comm, 0.0
        for layer in layers:
            if isinstance(layer, fn.layers.BatchNorm):
                layer.group = group

    def part(self, count):
        """The rows of a batch of so many that are this process's."""
        rank, size = self.comm.Get_rank(), self.comm.Get_size()
        return slice(rank * count // size, (rank + 1) * count // size)

    def step(self, x, labels, lr):
        part = self.part(len(x))
        scores = self.network.forward(x[part])
        loss, dscores = nn.softmax_cross_entropy(scores, labels[part])
        share = len(dscores) / len(x)
        dscores *= share  # of the mean loss over the whole batch
        self.network.backward(dscores, input_gradient=False)
        loss = self.add_up(loss * share)
        self.optimiser.step(lr)
        return loss

    def add_up(self, loss):
        """The loss and all gradients, over all processes, in one message."""
        grads = [grad for layer in self.network.layers for grad in layer.grads.values()]
        mine = np.concatenate([*(grad.ravel() for grad in grads), [loss]], dtype=grads[0].dtype)
        total = np.empty_like(mine)
        start = time.perf_counter()
        self.comm.Allreduce(mine, total)
        self.seconds += time.perf_counter() - start
        at = 0
        for grad in grads:
            grad[...] = total[at : at + grad.size].reshape(grad.shape)
            at += grad.size
        return float(total[-1])

    def statistics(self):
        """All running statistics, one after another."""
        arrays = [a for layer in self.network.layers for a in layer.stats.values()]
        return np.concatenate(arrays, dtype=np.float64)


def train(options, comm):
    """What a run leaves, from one process's point of view.

    options : dict
        ``batch`` (of all processes together), ``steps``, ``lr``, ``seed``, ``dtype``, ``norm``
        ("synchronised", "local" or "single": no group at all), ``activation`` ("relu" or "tanh"),
        ``images`` of the training set,
        ``quick`` and ``data``, which say where that is, and ``accuracy``, whether to measure it.
    """
    load = dataset.load_subset if options["quick"] else lambda: dataset.load(options["data"])
    data = dataset.prepare(*load()[0])
    x, labels = (a[: options["images"]] for a in data[:2])
    x = x.astype(options["dtype"])
    group = None
    if options["norm"] == "synchronised":
        group = Timed(fn.distributed.mpi(comm))
    layers = network(options["seed"], options["dtype"], options["activation"])
    trainer = Shared(layers, comm, group)
    rng = np.random.default_rng(options["seed"])
    steps, size, losses, statistics, seconds = options["steps"], options["batch"], [], [], []
    order = []
    for step in range(steps):
        if len(order) < size:
            order = rng.permutation(len(x))
        batch, order = order[:size], order[size:]
        start = time.perf_counter()
        losses.append(trainer.step(x[batch], labels[batch], options["lr"] * (1 - step / steps)))
        seconds.append(time.perf_counter() - start)
        if options["keep_statistics"]:
            statistics.append(trainer.statistics())
    state = trainer.network.state_dict()
    kept = b"".join(a.tobytes() for k, a in state.items())
    median = float(np.median(seconds[steps // 10 :]))
    return {
        "losses": losses,
        "statistics": np.array(statistics),
        "seconds": median,
        "exchange": group.seconds / steps if group else 0.0,
        "gradients": trainer.seconds / steps,
        "accuracy": trainer.accuracy(*data[2:]) if options["accuracy"] else None,
        "bits": hashlib.sha256(kept).hexdigest(),
    }


def main():
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    options = json.loads(sys.argv[1])
    result = train(options, comm)
    result["bits"] = len(set(comm.allgather(result["bits"])))  # 1: the same in all processes
    if comm.Get_rank() == 0:
        np.savez(options["file"], **{k: v for k, v in result.items() if v is not None})


if __name__ == "__main__":
    main()
