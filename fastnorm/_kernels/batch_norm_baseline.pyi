from .._typing import Array

def forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    n: int,
    c: int,
    s: int,
    eps: float,
    decay: float,
    correction: float,
    y: Array,
    mean: Array,
    rstd: Array,
    running_mean: Array | None,
    running_var: Array | None,
    num_threads: int,
) -> None: ...
def moments(x: Array, n: int, c: int, s: int, state: Array, num_threads: int) -> None: ...
def merge_moments(parts: Array, state: Array) -> None: ...
def infer(
    x: Array,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    n: int,
    c: int,
    s: int,
    eps: float,
    y: Array,
    rstd: Array | None,
    num_threads: int,
) -> None: ...
def backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array,
    rstd: Array,
    n: int,
    c: int,
    s: int,
    frozen: bool,
    dx: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    num_threads: int,
) -> None: ...
