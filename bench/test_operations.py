"""Every operation, pass and typical shape: the reference, fastnorm, and PyTorch if it is installed.

    pytest bench --benchmark-only
    pytest bench --benchmark-only -k "layer_norm and forward"

Results are fresh arrays at each call, as users write it. PyTorch gets as many threads as fastnorm.
Its idle threads spin for a while and disturb what runs after it in the process: give ``-k "not
pytorch"`` for fastnorm alone. Its forward pass records the graph, its backward pass is autograd's.
"""

import numpy as np
import pytest

import fastnorm as fn
from fastnorm import reference
from fastnorm._registry import OPERATIONS, PASSES

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

LIBRARIES = ("reference", "fastnorm") + (("pytorch",) if torch else ())


# ---- PyTorch -------------------------------------------------------------------------------------


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
    "weight_norm": torch_weight_norm,
    "affine": torch_affine,
}


def torch_call(operation, pass_, case, arrays):
    """The same pass in PyTorch, as a function without arguments."""
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
    if operation.name == "batch_norm":
        dy = channels_second(dy, case)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


# ---- the benchmarks ------------------------------------------------------------------------------


BENCHMARKS = [
    pytest.param(
        operation, case, pass_, library, id=f"{operation.name}-{pass_}-{case.label}-{library}"
    )
    for operation in OPERATIONS
    for case in operation.bench_cases
    for pass_ in PASSES
    for library in LIBRARIES
]


@pytest.mark.parametrize(("operation", "case", "pass_", "library"), BENCHMARKS)
def test_operation(operation, case, pass_, library, measure):
    arrays = operation.draw(case, np.float32)
    if library == "pytorch":
        torch.set_num_threads(fn.get_num_threads())
        call = torch_call(operation, pass_, case, arrays)
    else:
        call = operation.bind(
            {"reference": reference, "fastnorm": fn}[library], pass_, case, arrays
        )
    measure(
        call,
        library,
        f"{operation.name} {pass_} {case.label}",
        operation.bytes_moved(pass_, case, arrays),
    )
