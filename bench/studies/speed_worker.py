"""Time the training steps of one library in a process of its own, for training_speed.py.

    OMP_NUM_THREADS=2 python speed_worker.py LIBRARY NETWORK SECONDS

A process each, since the idle threads of one library would take the cores from the next. The last
line of the output is JSON: the batch, the losses of the first steps, the median seconds of a step.
"""

import json
import os
import sys
import time

import dataset
import nn
import numpy as np
from training import Trainer

import fastnorm as fn

LIBRARIES = {
    "fastnorm": "fastnorm",
    "numpy": "NumPy reference",
    "torch": "PyTorch",
    "torch-channels-last": "PyTorch, channels last",
}
NETWORKS = {"mlp": "MLP", "cnn": "CNN"}
BATCH_SIZES = {"mlp": 128, "cnn": 100}
LR = 0.02
FIRST = 3  # steps whose losses are compared; they also warm up


class NumPy:
    """`fastnorm.reference` as plain NumPy code would use it: results are allocated, not copied."""

    def __getattr__(self, name):
        function = getattr(fn.reference, name)
        return lambda *args, out=None, **options: function(*args, **options)


def layers_of(network):
    """With batch norm, from the same seed in all libraries."""
    if network == "mlp":
        return nn.normalised_network("batch", [784, 256, 256, 256, 256, 10], 0)
    return nn.convolutional_network("batch", 0)


def our_step(network, functions=None):
    trainer = Trainer(layers_of(network), functions=functions)

    def step(x, labels):
        if network == "cnn":
            x = x.reshape(-1, 28, 28, 1)
        return trainer.step(x, labels, LR)

    return step


def torch_step(network, channels_last=False):
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = torch_network(layers_of(network))
    order = torch.channels_last if channels_last else torch.contiguous_format
    if network == "cnn":
        model = model.to(memory_format=order)
    optimiser = torch.optim.SGD(model.parameters(), LR, momentum=0.9)

    def step(x, labels):
        x, labels = torch.from_numpy(x), torch.from_numpy(labels)
        if network == "cnn":
            x = x.view(-1, 1, 28, 28).contiguous(memory_format=order)
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def torch_network(layers):
    """The same network in PyTorch's layers, with the same initial weights."""
    import torch

    modules, size, channels = [], None, None
    for layer in layers:
        match type(layer).__name__:
            case "Im2col":
                size = layer.size
                continue  # the affine layer that follows makes the convolution
            case "Affine":
                modules.append(torch_affine(layer, size, channels))
                channels, size = layer.params["weight"].shape[1], None
            case "BatchNorm":
                norm = torch.nn.BatchNorm1d if not is_image(modules) else torch.nn.BatchNorm2d
                modules.append(norm(channels))
            case "ReLU":
                modules.append(torch.nn.ReLU())
            case "MaxPool":
                modules.append(torch.nn.MaxPool2d(2))
            case "Flatten":
                modules.append(torch.nn.Flatten())
    return torch.nn.Sequential(*modules)


def is_image(modules):
    return type(modules[-1]).__name__ == "Conv2d"


def torch_affine(layer, size, channels):
    """A convolution if im2col of this size came before; after flattening, channels come first."""
    import torch

    weight = torch.from_numpy(layer.params["weight"])
    n_in, n_out = weight.shape
    bias = "bias" in layer.params
    if size:
        made = torch.nn.Conv2d(n_in // size**2, n_out, size, padding=size // 2, bias=bias)
        weight = weight.view(size, size, -1, n_out).permute(3, 2, 0, 1)
    else:
        made = torch.nn.Linear(n_in, n_out, bias=bias)
        if channels and n_in != channels:  # rows of pixels, channels last
            weight = weight.view(-1, channels, n_out).transpose(0, 1).reshape(n_in, n_out)
        weight = weight.T
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias:
            made.bias.zero_()
    return made


STEPS = {
    "fastnorm": our_step,
    "numpy": lambda network: our_step(network, NumPy()),
    "torch": torch_step,
    "torch-channels-last": lambda network: torch_step(network, channels_last=True),
}


def measure(library, network, seconds):
    """Losses of the first steps, and the median time of those that follow for so long."""
    x, labels, *_ = dataset.prepare(*dataset.load_subset()[0])
    size = BATCH_SIZES[network]
    step = STEPS[library](network)
    losses, times, count = [], [], 0
    end = None
    while end is None or time.perf_counter() < end or not times:
        at = count * size % (len(x) - size + 1)
        start = time.perf_counter()
        loss = step(x[at : at + size], labels[at : at + size])
        if count < FIRST:
            losses.append(loss)
        elif end is None:
            end = time.perf_counter() + seconds
        else:
            times.append(time.perf_counter() - start)
        count += 1
    return {"batch": size, "losses": losses, "seconds": float(np.median(times)), "steps": count}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
