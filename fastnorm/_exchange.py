"""What the members of a group tell each other: a few numbers a channel, once a pass.

A message is an array of float64: first the terms, on which the members must agree, then the
numbers. Every member gets all of them, in one order, and computes the same from them.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from ._typing import Array, Group

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def check(function: str, group: object) -> None:
    if not callable(getattr(group, "allgather", None)):
        raise TypeError(
            f"{function}: group must have a method allgather, got {type(group).__name__}"
        )


def dtype_term(dtype: np.dtype[Any]) -> int:
    """A number that is the same in all processes."""
    wide = {8: "float64", 4: "float32"}.get(dtype.itemsize)
    return _DTYPES.index(wide or ("float16" if dtype == np.float16 else "bfloat16"))


def exchange(function: str, group: Group, terms: dict[str, float], numbers: Array) -> Array:
    """The numbers of all members, one member a row."""
    message = np.concatenate((list(terms.values()), numbers))
    rows = _gathered(function, group, message)
    if (rows[:, : len(terms)] != message[: len(terms)]).any():
        _disagree(function, terms, rows)
    return rows[:, len(terms) :]


def _disagree(function: str, terms: dict[str, float], rows: Array) -> NoReturn:
    i, name = next((i, name) for i, name in enumerate(terms) if (rows[:, i] != rows[0, i]).any())
    told = sorted({_shown(name, value) for value in rows[:, i]})
    raise ValueError(
        f"{function}: all members of group must have the same {name}, got {', '.join(told)}"
    )


def _gathered(function: str, group: Group, message: Array) -> Array:
    returned = group.allgather(message.copy())  # whatever becomes of it there
    try:
        rows = np.asarray(returned, order="C")
    except ValueError:  # a list of arrays of several lengths
        raise ValueError(
            f"{function}: all members of group must have as many channels, and be in the same "
            f"pass; group.allgather returned arrays of several lengths"
        ) from None
    if rows.dtype != np.float64 or rows.ndim != 2 or rows.shape[1] != message.size:
        raise ValueError(
            f"{function}: group.allgather must return float64 (members, {message.size}), "
            f"got {rows.dtype} {rows.shape}; do all members have as many channels?"
        )
    if not (rows.view(np.int64) == message.view(np.int64)).all(axis=1).any():
        raise ValueError(
            f"{function}: group.allgather must return what every member gave, this one among "
            f"them, but its array is not there"
        )
    return rows


def _shown(name: str, value: float) -> str:
    if name == "dtype" and 0 <= value < len(_DTYPES):
        return _DTYPES[int(value)]
    return f"{value:g}"
