"""Names for what the signatures share."""

from typing import Any, TypeAlias

from numpy.typing import ArrayLike, NDArray

__all__ = ["Array", "ArrayLike", "Axes", "MaybeArray"]

Array: TypeAlias = NDArray[Any]
Axes: TypeAlias = int | tuple[int, ...]
# None where the caller knows that it is, as the gradient of a parameter that was not given. With
# `| None` a type checker would ask every caller for a proof.
MaybeArray: TypeAlias = NDArray[Any] | Any
