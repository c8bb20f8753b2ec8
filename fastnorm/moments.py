"""Count, mean and M2 of channels, which can be merged: statistics of data that is in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays, _dispatch
from ._threads import get_num_threads
from ._typing import Array, ArrayLike

if TYPE_CHECKING:  # a stub alone has this name: _dispatch.py loads a file under it
    from ._kernels import batch_norm as _kernel
else:
    _kernel = _dispatch.load("batch_norm")


def _channels(state: Array) -> int:
    return (state.size - 1) // 3


def merged(rows: Array) -> Array:
    """The state that several states, one a row, have together."""
    state = np.empty(rows.shape[1])
    _kernel.merge_moments(rows, state)
    return state


class Moments:
    """Count, mean and sum of squared deviations of each channel, in float64.

    They are the statistics of data that never lies in one array: of chunks of a file, of the parts
    of a batch that several processes have. Moments of parts are merged by Chan's formula, and those
    of any split of a data set are those of the whole, to rounding::

        delta = mean_b - mean_a
        mean  = mean_a + delta * n_b / (n_a + n_b)
        M2    = M2_a + M2_b + delta**2 * n_a * n_b / (n_a + n_b)

    The sums are taken about a value close to the mean, in float64 whatever the data are, and the
    mean is kept to twice the digits of a float64, so that a mean of many standard deviations costs
    none of M2's digits. The same parts in the same order give the same bits, on any machine and for
    any number of threads.

    Parameters
    ----------
    channels : int
        For how many channels. There are no values yet: see `update`, and `Moments.of`.

    See Also
    --------
    fastnorm.batch_norm : normalises with given statistics, such as ``m.mean, m.var()``.

    References
    ----------
    Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", The American
    Statistician 37, 1983.

    Examples
    --------
    >>> import numpy as np
    >>> import fastnorm as fn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]])
    >>> a, b = fn.Moments.of(x[:1]), fn.Moments.of(x[1:])
    >>> a + b
    Moments(count=3, mean=[ 4. 20.], std=[2.94392029 8.16496581])
    """

    __slots__ = ("_state",)
    __hash__ = None  # type: ignore[assignment]  # it changes

    # The count, the means, their low parts and the M2s, in one array: fastnorm/_kernels/pooled.pxd.
    _state: Array

    def __init__(self, channels: int) -> None:
        count = _arrays.length("Moments", "channels", channels)
        self._state = np.zeros(1 + 3 * count)

    @classmethod
    def _with(cls, state: Array) -> Moments:
        self = cls.__new__(cls)
        self._state = state
        return self

    @classmethod
    def of(cls, x: ArrayLike, axis: int = 1) -> Moments:
        """The moments of each channel of x, over all its other axes.

        Parameters
        ----------
        x : array_like
            float16, bfloat16, float32 or float64, of 2 dimensions or more and any strides.
        axis : int, optional
            The channel axis: 1 for channels first, -1 for channels last.

        Returns
        -------
        Moments
            Of ``x.shape[axis]`` channels. A NaN or an infinity in x is in the moments of its
            channel, and in no others.

        Raises
        ------
        TypeError
            For an array of another dtype, or a masked one.
        ValueError
            For a wrong shape or axis.

        Examples
        --------
        >>> import numpy as np
        >>> import fastnorm as fn
        >>> m = fn.Moments.of(np.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> m.mean
        array([ 2., 20.])
        >>> m.var(ddof=1)
        array([  2., 200.])
        """
        return cls._with(_state_of("Moments.of", x, axis))

    def update(self, x: ArrayLike, axis: int = 1) -> Moments:
        """Take up the values of x: the same as ``self + Moments.of(x, axis)``, in place.

        Parameters
        ----------
        x, axis
            As in `Moments.of`; x must have as many channels as these moments.

        Returns
        -------
        Moments
            These.

        Examples
        --------
        >>> import numpy as np
        >>> import fastnorm as fn
        >>> m = fn.Moments(channels=2)
        >>> for chunk in np.arange(12.0).reshape(3, 2, 2):
        ...     m = m.update(chunk)
        >>> m.count, m.mean
        (6, array([5., 6.]))
        """
        state = _state_of("Moments.update", x, axis)
        self._check("Moments.update", "x", _channels(state))
        self._state = merged(np.stack((self._state, state)))
        return self

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        self._check("Moments", "the second summand", other.channels)
        return self._with(merged(np.stack((self._state, other._state))))

    @classmethod
    def merge(cls, parts: Iterable[Moments]) -> Moments:
        """The moments of all parts together, merged one after another in the order given.

        Parameters
        ----------
        parts : iterable of Moments
            Of equal numbers of channels; at least one. Those without values change nothing.

        Returns
        -------
        Moments
            New ones. The same parts in the same order give the same bits.

        Raises
        ------
        TypeError
            For a part that is no Moments.
        ValueError
            For no parts, or parts of different numbers of channels.

        Examples
        --------
        >>> import numpy as np
        >>> import fastnorm as fn
        >>> x = np.arange(12.0).reshape(6, 2)
        >>> fn.Moments.merge(fn.Moments.of(part) for part in np.array_split(x, 4)).mean
        array([5., 6.])
        """
        parts = list(parts)
        if not parts:
            raise ValueError("Moments.merge: parts must hold at least one Moments, got none")
        for i, part in enumerate(parts):
            if not isinstance(part, Moments):
                raise TypeError(
                    f"Moments.merge: parts must hold Moments, got {type(part).__name__}"
                )
            parts[0]._check("Moments.merge", f"part {i}", part.channels)
        return cls._with(merged(np.stack([part._state for part in parts])))

    def _check(self, function: str, name: str, channels: int) -> None:
        if channels != self.channels:
            raise ValueError(
                f"{function}: {name} must have {self.channels} channels, got {channels}"
            )

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return _channels(self._state)

    @property
    def count(self) -> int:
        """How many values a channel has had."""
        return int(self._state[0])

    @property
    def mean(self) -> Array:
        """The mean of each channel, float64 of shape (channels,); NaN where there is no value."""
        mean: Array = self._state[1 : 1 + self.channels].copy()
        return mean if self.count else np.full_like(mean, np.nan)

    @property
    def m2(self) -> Array:
        """The sum of the squared deviations from the mean, float64 of shape (channels,)."""
        m2: Array = self._state[1 + 2 * self.channels :].copy()
        return m2

    def var(self, ddof: float = 0) -> Array:
        """The variance of each channel, ``M2 / (count - ddof)``.

        Parameters
        ----------
        ddof : float, optional
            As in `numpy.var`.

        Returns
        -------
        ndarray
            float64, of shape (channels,); NaN where there are no more than `ddof` values.
        """
        value = _arrays.real("Moments.var", "ddof", ddof)
        if self.count <= value:
            return np.full(self.channels, np.nan)
        return self.m2 / (self.count - value)

    def std(self, ddof: float = 0) -> Array:
        """The standard deviation of each channel: the root of `var`."""
        return np.sqrt(self.var(ddof))

    def pack(self) -> Array:
        """All of it as one float64 array, for a file or a transport.

        Returns
        -------
        ndarray
            Of shape (1 + 3 * channels,): the count, the means, the means' low parts, the M2s.
        """
        return self._state.copy()

    @classmethod
    def unpack(cls, array: ArrayLike) -> Moments:
        """The moments that `pack` turned into an array.

        Raises
        ------
        TypeError, ValueError
            For an array that `pack` cannot have made.

        Examples
        --------
        >>> import numpy as np
        >>> import fastnorm as fn
        >>> m = fn.Moments.of(np.array([[1.0, 10.0], [3.0, 30.0]]))
        >>> fn.Moments.unpack(m.pack()) == m
        True
        """
        function = "Moments.unpack"
        state = _arrays.array(function, "array", array)
        if state.dtype != np.float64:
            raise TypeError(f"{function}: array must be of float64, got {state.dtype}")
        if state.ndim != 1 or state.size % 3 != 1:
            raise ValueError(
                f"{function}: array must have shape (1 + 3 * channels,), got {state.shape}"
            )
        if not (state[0] >= 0 and state[0] == np.floor(state[0]) < np.inf):
            raise ValueError(f"{function}: array must begin with a count, got {state[0]}")
        return cls._with(np.array(state))

    def __eq__(self, other: object) -> bool:
        """Whether all numbers are the same; NaN is the same as NaN."""
        if not isinstance(other, Moments):
            return NotImplemented
        return np.array_equal(self._state, other._state, equal_nan=True)

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean}, std={self.std()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).unpack, (self.pack(),)


def _state_of(function: str, x: ArrayLike, axis: int) -> Array:
    x = _arrays.array(function, "x", x)
    if x.ndim < 2:
        raise ValueError(f"{function}: x must have at least 2 dimensions, got shape {x.shape}")
    return state_of_view(x, *_arrays.channel_view(x, _arrays.one_axis(function, axis, x.ndim)))


def state_of_view(x: Array, n: int, c: int, s: int) -> Array:
    """Of the channels of an (n, c, s) view."""
    state = np.zeros(1 + 3 * c)
    state[0] = n * s
    if x.size:
        _kernel.moments(x, n, c, s, state, get_num_threads())
    return state
