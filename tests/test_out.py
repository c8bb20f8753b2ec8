"""`out`: what it must be; it may be x in inference, and no other overlap is let through."""

from math import prod

import numpy as np
import pytest
from checks import SMALL, assert_raises, assert_same, over

import fastnorm as fn
from fastnorm._registry import DTYPES, HALF_DTYPES, LAYOUTS, OPERATIONS, WIDE_DTYPES


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (ValueError, lambda out: np.ones((*out.shape, 1), out.dtype)),
        (ValueError, lambda out: np.ones((*out.shape[::-1], 2), out.dtype)),
        (TypeError, lambda out: np.ones(out.shape, np.float64)),
        (TypeError, lambda out: np.ones(out.shape, np.float16)),
        (TypeError, lambda out: np.ones(out.shape, np.int32)),
        (TypeError, lambda out: np.ones(out.shape).astype(out.dtype.newbyteorder())),
        (ValueError, read_only),
        (TypeError, lambda out: out.tolist()),
    ],
    ids=[
        "dimensions",
        "shape",
        "wider",
        "narrower",
        "integers",
        "foreign-endian",
        "read-only",
        "list",
    ],
)
def test_wrong_out(operation, pass_, error, wrong):
    case = operation.typical
    arrays = operation.draw(case, np.float32)
    out = wrong(operation.blank(pass_, arrays))
    assert_raises(error, "out must ", operation, pass_, case, arrays, out=out)


@pytest.mark.parametrize("half", HALF_DTYPES, ids=str)
def test_out_of_the_other_16_bits(operation, pass_, half):
    """They are as large as one another, and that is all."""
    case = operation.typical
    arrays = operation.draw(case, half)
    for other in {*HALF_DTYPES, np.dtype(np.int16)} - {half}:
        out = np.ones(operation.blank(pass_, arrays).shape, other)
        assert_raises(TypeError, "out must ", operation, pass_, case, arrays, out=out)


# ---- out is x ------------------------------------------------------------------------------------


@over((o, c) for o, c in SMALL if c.data.get("outputs", c.shape[-1]) == c.shape[-1])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "reversed", "unaligned"])
def test_out_may_be_x_in_inference(operation, case, dtype, layout):
    """x itself, or another view of all of it."""
    arrays = operation.draw(case, dtype)
    first = operation.inputs[0]
    expected = operation.run(fn, "inference", case, arrays)
    for view in (lambda x: x, lambda x: x[...]):
        x = LAYOUTS[layout](np.copy(arrays[first]))
        results = operation.run(fn, "inference", case, arrays | {first: x}, out=view(x))
        assert_same(results, expected, case.label)
        assert_same({"y": x}, results, case.label)


def test_out_may_be_x_of_many_threads(operation, dtype):
    """Nobody reads what another has written."""
    same_size = [c for c in operation.cases if c.shape[-1] == c.data.get("outputs", c.shape[-1])]
    case = max(same_size, key=lambda case: prod(case.shape))
    arrays = operation.draw(case, dtype)
    expected = operation.run(fn, "inference", case, arrays)
    for n in (1, 3):
        x = arrays[operation.inputs[0]].copy()
        with fn.num_threads(n):
            operation.run(fn, "inference", case, arrays | {operation.inputs[0]: x}, out=x)
        assert_same({"y": x}, expected, f"{n} threads")


# ---- out overlaps an input -----------------------------------------------------------------------


def overlapping(array, shift):
    """Two arrays of the shape of `array`, the second `shift` elements further in memory."""
    memory = np.zeros(array.size + shift, array.dtype)
    views = [memory[k : k + array.size].reshape(array.shape) for k in (0, shift)]
    views[0][...] = array
    return views


@pytest.mark.parametrize("shift", [1, 100])
@pytest.mark.parametrize("order", [1, -1])
def test_out_overlaps_the_input(operation, square, pass_, shift, order):
    """Part of the input may not be overwritten while it is read: not x, and in backward not dy."""
    for name in (operation.inputs[0], "dy") if pass_ == "backward" else operation.inputs[:1]:
        arrays = operation.draw(square, np.float32)
        given, out = overlapping(arrays[name], shift)[::order]
        given[...] = arrays[name]
        arrays[name] = given
        assert_raises(ValueError, "out .*overlap", operation, pass_, square, arrays, out=out)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_out_is_the_input_of_training(operation, square, pass_):
    """Backward needs x: forward may not overwrite it, nor backward, whose cache serves twice."""
    for name in (operation.inputs[0], "dy") if pass_ == "backward" else operation.inputs[:1]:
        arrays = operation.draw(square, np.float32)
        assert_raises(
            ValueError, "out .*overlap", operation, pass_, square, arrays, out=arrays[name]
        )


def around(argument, like):
    """An array as `like`, and a copy of the argument that begins inside it."""
    memory = np.zeros(like.nbytes + argument.nbytes, np.uint8)
    begin = 8 * (like.nbytes // 16)
    inside = memory[begin : begin + argument.nbytes].view(argument.dtype).reshape(argument.shape)
    inside[...] = argument
    return memory[: like.nbytes].view(like.dtype).reshape(like.shape), inside


ARGUMENTS = [
    (operation, pass_, name)
    for operation in OPERATIONS
    for pass_, names in (
        ("inference", (*operation.given, *operation.inputs[1:])),
        ("forward", (*operation.inputs[1:], *operation.state)),
        ("backward", ("dy", *operation.inputs[1:2])),  # backward has no use for beta or bias
    )
    for name in names
]


@pytest.mark.parametrize(
    ("operation", "pass_", "name"), ARGUMENTS, ids=[f"{o}-{p}-{n}" for o, p, n in ARGUMENTS]
)
def test_out_overlaps_an_argument(operation, pass_, name, dtype):
    """Of x's dtype, or of another; contiguous, or with strides of which a copy is made."""
    case = operation.typical
    for other in WIDE_DTYPES if name in operation.state else DTYPES:
        arrays = operation.draw(case, dtype)
        argument = arrays[name].astype(other)
        out, arrays[name] = around(argument, operation.blank(pass_, arrays))
        for view in (arrays[name], arrays[name][::-1]):
            arrays[name] = view
            message = f"out .*overlap {name}"
            assert_raises(ValueError, message, operation, pass_, case, arrays, out=out)


@pytest.mark.parametrize("twist", ["reversed", "flipped", "transposed", "stepped"])
def test_out_is_x_otherwise(operation, square, dtype, pass_, twist):
    """x's own memory, but its elements in other places."""
    arrays = operation.draw(square, dtype)
    first = operation.inputs[0]
    x = arrays[first]
    memory = np.zeros((2 * len(x), *x.shape[1:]), dtype)
    memory[: len(x)] = x
    arrays[first] = memory[: len(x)]
    out = {
        "reversed": memory[: len(x)][::-1],
        "flipped": np.flip(memory[: len(x)]),
        "transposed": memory[: len(x)].reshape(x.shape[::-1]).T,
        "stepped": memory[::2],
    }[twist]
    assert_raises(ValueError, "out .*overlap", operation, pass_, square, arrays, out=out)


def test_out_with_an_element_for_two(operation, pass_):
    """Two results cannot be in one place."""
    case = operation.typical
    arrays = operation.draw(case, np.float32)
    shape = operation.blank(pass_, arrays).shape
    memory = np.zeros(shape, np.float32)
    strides = (*memory.strides[:-1], 0)
    for out in (
        np.lib.stride_tricks.as_strided(memory, strides=strides),
        np.lib.stride_tricks.as_strided(memory, strides=[4] * len(shape)),
    ):
        assert_raises(ValueError, "out must ", operation, pass_, case, arrays, out=out)


def test_interleaved_arrays_do_not_overlap(operation, square, dtype):
    """x in the even columns, out in the odd ones of the same memory: no element in common."""
    arrays = operation.draw(square, dtype)
    first = operation.inputs[0]
    expected = operation.run(fn, "forward", square, arrays)["y"]
    memory = np.zeros((*expected.shape[:-1], 2 * expected.shape[-1]), dtype)
    x, out = memory[..., ::2], memory[..., 1::2]
    x[...] = arrays[first]
    y = operation.run(fn, "forward", square, arrays | {first: x}, out=out)["y"]
    assert y is out
    np.testing.assert_array_equal(y, expected)
