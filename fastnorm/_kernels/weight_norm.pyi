from .._typing import Array

def forward(
    v: Array,
    g: Array,
    n: int,
    c: int,
    s: int,
    w: Array,
    norm: Array | None,
    num_threads: int,
) -> None: ...
def backward(
    dy: Array,
    v: Array,
    g: Array,
    norm: Array,
    n: int,
    c: int,
    s: int,
    dv: Array,
    dg: Array,
    num_threads: int,
) -> None: ...
