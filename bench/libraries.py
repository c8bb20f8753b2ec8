"""What is timed beside fastnorm: the reference, and PyTorch where it is installed.

PyTorch's forward pass records the graph, its backward pass is autograd's. Its results are fresh
arrays: it has no ``out=`` here.
"""

from functools import lru_cache

import numpy as np

import fastnorm as fn
from fastnorm import reference

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

LIBRARIES = ("reference", "fastnorm") + (("pytorch",) if torch else ())


@lru_cache(maxsize=1)
def draw(operation, case):
    """The arrays of a case, which most often is that of the benchmark before too."""
    return operation.draw(case, np.float32)


def bind(library, operation, pass_, case, arrays, **more):
    """The call that does a pass, as a function without arguments, on as many threads as fastnorm.

    The reference is NumPy, which has one thread for all but matrix products. `more` is for
    fastnorm alone.
    """
    if library == "pytorch":
        torch.set_num_threads(fn.get_num_threads())
        return bind_torch(operation, pass_, case, arrays)
    if library == "reference":
        return operation.bind(reference, pass_, case, arrays)
    return operation.bind(fn, pass_, case, arrays, **more)


def channels_second(x, case):
    """x with its channels where PyTorch wants them, without a copy."""
    return x.movedim(case.options.get("axis", 1), 1)


def torch_batch_norm(arrays, case):
    return F.batch_norm(
        channels_second(arrays["x"], case),
        arrays["mean"],
        arrays["var"],
        arrays["gamma"],
        arrays["beta"],
    )


def torch_batch_norm_forward(arrays, case):
    return F.batch_norm(
        channels_second(arrays["x"], case),
        arrays["running_mean"],
        arrays["running_var"],
        arrays["gamma"],
        arrays["beta"],
        training=True,
    )


def torch_layer_norm(arrays, case):
    return F.layer_norm(arrays["x"], arrays["gamma"].shape, arrays["gamma"], arrays["beta"])


def torch_rms_norm(arrays, case):
    return F.rms_norm(arrays["x"], arrays["gamma"].shape, arrays["gamma"], 1e-6)


def torch_group_norm(arrays, case):
    groups = case.options["num_groups"]
    return F.group_norm(channels_second(arrays["x"], case), groups, arrays["gamma"], arrays["beta"])


def torch_instance_norm(arrays, case):
    x = channels_second(arrays["x"], case)
    return F.instance_norm(x, weight=arrays["gamma"], bias=arrays["beta"])


def torch_weight_norm(arrays, case):
    axis = case.options.get("axis", 0) % arrays["v"].ndim
    shape = [-1 if a == axis else 1 for a in range(arrays["v"].ndim)]
    return torch._weight_norm(arrays["v"], arrays["g"].view(shape), axis)


def torch_affine(arrays, case):
    return F.linear(arrays["x"], arrays["weight"].T, arrays["bias"])


TORCH = {
    "batch_norm": torch_batch_norm,
    "batch_norm_forward": torch_batch_norm_forward,
    "layer_norm": torch_layer_norm,
    "rms_norm": torch_rms_norm,
    "group_norm": torch_group_norm,
    "instance_norm": torch_instance_norm,
    "weight_norm": torch_weight_norm,
    "affine": torch_affine,
}


def bind_torch(operation, pass_, case, arrays):
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    inputs = [tensors[name] for name in operation.inputs]
    forward = TORCH.get(f"{operation.name}_forward", TORCH[operation.name])
    if pass_ == "inference":

        def infer():
            with torch.no_grad():
                return TORCH[operation.name](tensors, case)

        return infer
    for tensor in inputs:
        tensor.requires_grad_(True)
    if pass_ == "forward":
        return lambda: forward(tensors, case)
    y = forward(tensors, case)
    dy = tensors["dy"]
    if operation.name in ("batch_norm", "group_norm", "instance_norm"):
        dy = channels_second(dy, case)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)
