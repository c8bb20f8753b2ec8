"""Names for what the signatures share."""

from typing import Any, Protocol, TypeAlias

from numpy.typing import ArrayLike, NDArray

__all__ = ["Array", "ArrayLike", "Axes", "Group", "MaybeArray"]

Array: TypeAlias = NDArray[Any]
Axes: TypeAlias = int | tuple[int, ...]
# None where the caller knows that it is, as the gradient of a parameter that was not given. With
# `| None` a type checker would ask every caller for a proof.
MaybeArray: TypeAlias = NDArray[Any] | Any


class Group(Protocol):
    """Whoever shares a batch: processes, machines, threads. `fastnorm.distributed` has some.

    All members call `allgather` equally often, and each gets the arrays of all of them, in one
    order, which is the same for every member. Where that fails, or takes too long, it raises.
    """

    def allgather(self, array: Array, /) -> ArrayLike:
        """The arrays of all members, stacked along a new first axis.

        ``array`` is one of float64, of the same length for all members.
        """
