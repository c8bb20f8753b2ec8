"""Calls of the public functions with hostile arguments, at random.

    python tests/fuzz.py --calls 1000000 --seed 0

A call either returns, or raises TypeError or ValueError (MemoryError where a result would be huge)
with a message that begins with the function's name. Read-only arrays, and all inputs of a call that
raises, keep their bits; a result has the shape and dtype that it should have. What goes wrong is
printed with the seed that repeats it. A call that takes longer than a minute ends the process with
a traceback.

Half of a call's arguments are right, so that it gets far enough. In memory there is only what NumPy
holds to be an array: an object whose ``__array_interface__`` points to where there is nothing is
no array for NumPy either.
"""

import argparse
import faulthandler
import inspect
import sys
import warnings

import numpy as np

import fastnorm as fn
from fastnorm._registry import DTYPES, OPERATIONS, PASSES

ALLOWED = (TypeError, ValueError)
CASES = {
    operation: [case for case in operation.cases if np.prod(case.shape) < 3000]
    for operation in OPERATIONS
}


# ---- objects that are not what they seem ---------------------------------------------------------


class Liar(np.ndarray):
    """A subclass whose attributes and methods are wrong."""

    shape = property(lambda self: (1 << 40, 3))
    ndim = property(lambda self: 7)
    size = property(lambda self: 0)
    dtype = property(lambda self: np.dtype(np.float64))
    strides = property(lambda self: (0,) * 7)
    nbytes = property(lambda self: 1)

    def transpose(self, *axes):
        return np.zeros(1)

    def __array_finalize__(self, other):
        pass


class Interface:
    """Has its array by ``__array_interface__``, of another shape or type each time it is asked."""

    def __init__(self, rng, array):
        self.rng, self.array = rng, array

    @property
    def __array_interface__(self):
        interface = dict(self.array.__array_interface__)
        wrong = self.rng.integers(6)
        if wrong == 0:
            interface["shape"] = (-1,)
        elif wrong == 1:
            interface["typestr"] = "<f3"
        elif wrong == 2:
            interface["strides"] = (4,) * 40
        elif wrong == 3:
            interface = {"version": 3}
        elif wrong == 4:
            interface["data"] = b"1234"
            interface["shape"] = (100,)
        return interface


class Number:
    """Is an index and a float, but not the same twice."""

    def __init__(self, rng):
        self.rng = rng

    def __index__(self):
        return int(self.rng.integers(-3, 4))

    def __float__(self):
        return float(self.rng.standard_normal())

    def __add__(self, other):
        return self


class Refuses:
    """Raises whatever is asked of it."""

    def _refuse(self, *_):
        raise TypeError("no")

    __index__ = __float__ = __array__ = __len__ = __iter__ = __bool__ = __add__ = _refuse


# ---- arguments -----------------------------------------------------------------------------------


def strange_view(rng, array):
    """The same memory, other strides; never beyond the array."""
    kind = rng.integers(10)
    if kind == 0:
        return array[::-1]
    if kind == 1:
        return array.T
    if kind == 2:
        return np.broadcast_to(array[(slice(0, 1),) * array.ndim], array.shape)
    if kind == 3:
        return array[..., None]
    if kind == 4:
        return array[None]
    if kind == 5:
        return array[:0]
    if kind == 6:
        stride = int(rng.choice([0, 1 << 40, -(1 << 40), (1 << 62) + 4, 3]))
        return np.lib.stride_tricks.as_strided(array, (1, *array.shape), (stride, *array.strides))
    if kind == 7:
        stride = int(rng.choice([1 << 40, -(1 << 62)]))
        return np.lib.stride_tricks.as_strided(array, (0, *array.shape), (stride, *array.strides))
    if kind == 8:
        return array.reshape(-1)
    memory = np.zeros(array.nbytes + 16, np.uint8)
    offset = int(rng.integers(16))
    view = memory[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def wrong_array(rng, array, others):
    kind = rng.integers(16)
    if kind == 0:
        wide = array.astype(np.float64)
        return wide.astype(rng.choice([np.int8, np.complex64, bool, object, "S4", "M8[s]"]))
    if kind == 1:
        return array.astype(DTYPES[rng.integers(len(DTYPES))])
    if kind == 2:
        return array.astype(array.dtype.newbyteorder())
    if kind == 3:
        return array.tolist()
    if kind == 4:
        return np.ma.masked_array(array)
    if kind == 5:
        return array.astype(np.float32).view(Liar)
    if kind == 6:
        return Interface(rng, array)
    if kind == 7:
        return [None, "text", 3, 2.5, {}, (), [], [[1.0], [2.0, 3.0]], b"bytes"][rng.integers(9)]
    if kind == 8:
        return Refuses()
    if kind == 9:
        shape = [int(n) for n in rng.integers(0, 4, rng.integers(0, 6))]
        return np.ones(shape, array.dtype)
    if kind == 10:
        return others[rng.integers(len(others))]
    if kind == 11:
        array = array.copy()
        array[...] = rng.choice([np.nan, np.inf, -np.inf, 0.0, 6e4, 1e-7])
        return array
    if kind == 12:
        return memoryview(np.ascontiguousarray(array.astype(np.float32)))
    if kind == 13:
        return np.ones((1,) * 40, array.dtype) if rng.integers(2) else array[()]
    return strange_view(rng, array)


def wrong_option(rng):
    return [
        None, 0, 1, -1, 2, 7, -9, 1 << 31, 1 << 63, -(1 << 80), 10**400, 0.5, -0.0, np.nan, np.inf,
        -1e-5, 1e308, "axis", b"", (), (0,), (0, 0), (-1, 1), [0, "x"], (1 << 70,), {0: 1}, True,
        np.int64(1), np.float32(1e-3), np.array(1), np.array([1, 2]), Number(rng), Refuses(), 1j,
        object,
    ][rng.integers(35)]  # fmt: skip


def wrong_out(rng, like, arrays):
    kind = rng.integers(8)
    if kind == 0:
        return like
    if kind == 1:
        return strange_view(rng, like)
    if kind == 2:
        return arrays[rng.integers(len(arrays))]
    if kind == 3:
        return like.view(Liar)
    if kind == 4:
        return wrong_array(rng, like, arrays)
    if kind == 5:
        first = arrays[0]
        return first.reshape(-1)[::-1].reshape(first.shape)
    return like


def made(make, *arguments):
    """What `make` returns, or None if NumPy has no such view of such an array."""
    try:
        return make(*arguments)
    except Exception:
        return None


def frozen(arrays):
    """The bits of arrays."""
    return [None if a.dtype == object else a.tobytes() for a in arrays]


def arrays_in(values):
    return [v for v in values if isinstance(v, np.ndarray)]


class Wrong(AssertionError):
    """What must not happen has happened."""


def checked(name, function, arguments, keywords):
    """Call; returns None if that raised what it may."""
    involved = arrays_in([*arguments, *keywords.values()])
    before = frozen(involved)
    try:
        result = function(*arguments, **keywords)
    except ALLOWED as error:
        if frozen(involved) != before:
            raise Wrong("an array was changed by a call that raised") from error
        text = str(error)
        if not text.startswith(f"{name}: "):
            raise Wrong(f"the message does not name {name}: {text}") from error
        return None
    except MemoryError:
        return None
    for array, bits in zip(involved, before, strict=True):
        if not array.flags.writeable and frozen([array]) != [bits]:
            raise Wrong("a read-only array was changed")
    return result


def one_call(rng):
    """A forward, inference or backward of a random case, some of whose arguments are wrong."""
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    case = CASES[operation][rng.integers(len(CASES[operation]))]
    dtype = DTYPES[rng.integers(len(DTYPES))]
    pass_ = PASSES[rng.integers(3)]
    arrays = operation.draw(case, dtype)
    values = arrays_in(arrays.values())
    wrong = rng.integers(1, 3)

    keywords = operation.arguments("forward" if pass_ == "backward" else pass_, case, arrays)
    if pass_ == "backward":
        _, cache = getattr(fn, operation.function("forward"))(**keywords)
        keywords = {"dy": arrays["dy"], "cache": cache}
        values += arrays_in(cache)
    name = operation.function(pass_)
    function = getattr(fn, name)
    options = [n for n in inspect.signature(function).parameters if n not in keywords]
    for _ in range(wrong):
        key = [*keywords, *options][rng.integers(len(keywords) + len(options))]
        value = keywords.get(key)
        if key == "cache":
            field = cache._fields[rng.integers(len(cache._fields))]
            value = getattr(cache, field)
            if isinstance(value, np.ndarray) and rng.integers(4):
                value = made(wrong_array, rng, value, values)
            else:
                value = wrong_option(rng)
            cache = cache._replace(**{field: value})
            keywords[key] = cache if rng.integers(10) else wrong_option(rng)
        elif key == "out":
            keywords[key] = made(wrong_out, rng, operation.blank(pass_, arrays), values)
        elif isinstance(value, np.ndarray):
            keywords[key] = made(wrong_array, rng, value, values)
        else:
            keywords[key] = wrong_option(rng)
    result = checked(name, function, (), keywords)
    first = result[0] if isinstance(result, tuple) else result
    if result is not None and not isinstance(first, np.ndarray):
        raise Wrong(f"{name} returned {type(first)}")


def run(seed, calls):
    """Returns the seeds of calls that went wrong, with what did."""
    found = []
    for number in range(seed, seed + calls):
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            with fn.num_threads(1 + number % 3):
                one_call(np.random.default_rng(number))
        except Exception as error:
            found.append((number, error))
            print(f"seed {number}: {type(error).__name__}: {error}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")  # NaN and infinities are among the arguments
    sys.exit(bool(run(arguments.seed, arguments.calls)))


if __name__ == "__main__":
    main()
