"""Caches: used twice, pickled, sent to another process, after their arrays have changed."""

import multiprocessing
import pickle

import numpy as np
import pytest
from checks import ANY_LAYOUT, assert_raises, assert_same

import fastnorm as fn
from fastnorm._registry import OPERATIONS


def backward(operation, dy, cache, **more):
    """The gradients by name."""
    results = getattr(fn, operation.function("backward"))(dy, cache, **more)
    return dict(zip(operation.gradients, results, strict=True))


def forward(operation, case, arrays):
    """The cache."""
    return operation.bind(fn, "forward", case, arrays)()[1]


@pytest.fixture
def drawn(operation):
    case = operation.typical
    arrays = operation.draw(case, np.float32)
    return case, arrays, forward(operation, case, arrays)


def test_used_twice(operation, drawn):
    """Backward leaves it as it is."""
    _, arrays, cache = drawn
    assert_same(backward(operation, arrays["dy"], cache), backward(operation, arrays["dy"], cache))
    other = arrays["dy"] + 1
    expected = backward(operation, other, cache)
    backward(operation, arrays["dy"], cache)
    assert_same(backward(operation, other, cache), expected)


def test_refers_to_its_arrays(operation, drawn):
    """What is written into x after forward is what backward sees, beside forward's statistics."""
    case, arrays, cache = drawn
    first = operation.inputs[0]
    changed = cache._replace(**{first: arrays[first] + 1})
    expected = backward(operation, arrays["dy"], changed)
    arrays[first] += 1
    assert_same(backward(operation, arrays["dy"], cache), expected)
    if operation.name != "affine":  # which keeps no statistics: there it is a forward of the new x
        fresh = backward(operation, arrays["dy"], forward(operation, case, arrays))
        assert not np.array_equal(fresh[f"d{first}"], expected[f"d{first}"])


def test_pickled(operation, drawn):
    """Which takes a copy of its arrays."""
    _, arrays, cache = drawn
    expected = backward(operation, arrays["dy"], cache)
    copy = pickle.loads(pickle.dumps(cache))
    arrays[operation.inputs[0]][...] = 0
    assert_same(backward(operation, arrays["dy"], copy), expected)


@pytest.mark.parametrize("layout", ANY_LAYOUT)
def test_pickled_with_strides(operation, layout):
    case = operation.typical
    arrays = operation.draw(case, np.float32)
    first = operation.inputs[0]
    arrays[first] = ANY_LAYOUT[layout](arrays[first])
    cache = forward(operation, case, arrays)
    expected = backward(operation, arrays["dy"], cache)
    assert_same(backward(operation, arrays["dy"], pickle.loads(pickle.dumps(cache))), expected)


def test_sent_to_another_process():
    """Gradients of a cache computed elsewhere have the same bits."""
    context = multiprocessing.get_context("spawn")
    work = []
    for operation in OPERATIONS:
        case = operation.typical
        arrays = operation.draw(case, np.float32)
        cache = forward(operation, case, arrays)
        work.append((getattr(fn, operation.function("backward")), arrays["dy"], cache))
    with context.Pool(1) as pool:
        results = [pool.apply_async(f, (dy, cache)) for f, dy, cache in work]
        for operation, (_, dy, cache), result in zip(OPERATIONS, work, results, strict=True):
            there = dict(zip(operation.gradients, result.get(60), strict=True))
            assert_same(there, backward(operation, dy, cache))


def test_dy_of_any_layout_and_dtype(operation, drawn, dtype, layout):
    """dy need not lie as y does."""
    _, arrays, cache = drawn
    dy = ANY_LAYOUT[layout](arrays["dy"].astype(dtype))
    expected = backward(operation, np.array(dy, np.float64, order="C"), cache)
    for name, gradient in backward(operation, dy, cache).items():
        if gradient is not None:
            assert gradient.dtype == expected[name].dtype
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-4)


def test_wrong_dy(operation, drawn):
    case, arrays, _ = drawn
    for dy, error in (
        (arrays["dy"][..., :-1], ValueError),
        (arrays["dy"][None], ValueError),
        (arrays["dy"].astype(int), TypeError),
        (None, TypeError),
    ):
        assert_raises(error, "dy must ", operation, "backward", case, arrays | {"dy": dy})


def wrong_values(field, value):
    """What a field must not be, though it could be by accident."""
    if field == "frozen":
        return
    yield "nonsense"
    if isinstance(value, np.ndarray):
        yield value.astype(int)
        yield value[..., None]
        yield np.repeat(value, 2, axis=-1)
        if field in ("mean", "rstd", "norm"):
            yield None
            yield value.astype(np.float32)
            yield np.repeat(value, 2, axis=-1)[..., ::2]
    elif isinstance(value, int):
        yield value + 64
    elif isinstance(value, tuple):
        yield (*value, 64)


def test_wrong_cache_fields(operation, drawn):
    """A cache that does not fit together is an error, and no read outside of its arrays."""
    _, arrays, cache = drawn
    function = operation.function("backward")
    for field, value in zip(cache._fields, cache, strict=True):
        for wrong in wrong_values(field, value):
            with pytest.raises((TypeError, ValueError), match=f"^{function}: "):
                backward(operation, arrays["dy"], cache._replace(**{field: wrong}))


def test_x_has_got_another_shape(operation, drawn):
    """In place, between forward and backward, which is noticed."""
    _, arrays, cache = drawn
    first = operation.inputs[0]
    x = arrays[first].copy()
    cache = cache._replace(**{first: x})
    x.resize([2 * n for n in x.shape], refcheck=False)
    function = operation.function("backward")
    with pytest.raises(ValueError, match=f"^{function}: "):
        backward(operation, arrays["dy"], cache)
    if operation.name != "affine":  # to which rows are rows
        dy = np.zeros(x.shape, np.float32)
        with pytest.raises(ValueError, match=f"^{function}: cache"):
            backward(operation, dy, cache)
