from .._typing import Array

def forward(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    rows: int,
    n: int,
    centred: bool,
    eps: float,
    y: Array,
    mean: Array | None,
    rstd: Array | None,
    num_threads: int,
) -> None: ...
def backward(
    dy: Array,
    x: Array,
    gamma: Array | None,
    mean: Array | None,
    rstd: Array,
    rows: int,
    n: int,
    dx: Array,
    dgamma: Array | None,
    dbeta: Array | None,
    num_threads: int,
) -> None: ...
