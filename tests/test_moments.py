"""Moments: those of any split of a data set are those of the whole, to the last digits."""

import copy
import pickle
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest
from checks import ANY_LAYOUT
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastnorm as fn
from fastnorm import Moments, reference
from fastnorm._registry import BATCH_NORM, DTYPES

# What is promised; what is measured is 1e-15. M2 is relative to itself, a mean to the larger of
# itself and the standard deviation: it may be 0.
PROMISED = 1e-12


def exact_moments(x, axis):
    """Mean and M2 of each channel as fractions: no rounding at all."""
    channels = np.moveaxis(x, axis, 0).astype(np.float64).reshape(x.shape[axis], -1)
    for channel in channels:
        values = [Fraction(v) for v in channel.tolist()]
        mean = sum(values) / len(values)
        yield mean, sum((v - mean) ** 2 for v in values)


def assert_exact(m, x, axis):
    assert m.count == x.size // x.shape[axis]
    for mean, m2, (exact_mean, exact_m2) in zip(m.mean, m.m2, exact_moments(x, axis), strict=True):
        std = (float(exact_m2) / m.count) ** 0.5
        assert abs(Fraction(mean) - exact_mean) <= PROMISED * max(abs(float(exact_mean)), std)
        assert abs(Fraction(m2) - exact_m2) <= PROMISED * exact_m2


def assert_close(m, other):
    assert m.count == other.count
    scale = np.maximum(np.abs(other.mean), other.std())
    assert (np.abs(m.mean - other.mean) <= PROMISED * scale).all()
    assert (np.abs(m.m2 - other.m2) <= PROMISED * other.m2).all()


def bits(m):
    return m.pack().tobytes()


@st.composite
def data(draw):
    """An array, its channel axis, and a split of it along another axis."""
    shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    along = draw(st.sampled_from([a for a in range(len(shape)) if a != axis % len(shape)]))
    shape[along] = draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mean = draw(st.sampled_from((0, 1, -30, 1e4, 1e8)))
    std = draw(st.sampled_from((1, 1e-3, 1e3, 0)))
    dtype = draw(st.sampled_from(DTYPES))
    if abs(mean) > 6e4 and dtype == np.float16:
        mean = 6e4
    x = (mean + std * rng.standard_normal(shape)).astype(dtype)
    cuts = sorted(draw(st.lists(st.integers(0, shape[along]), max_size=6)))
    return x, axis, np.split(x, cuts, along)


@given(data(), st.sampled_from(sorted(ANY_LAYOUT)))
def test_any_split(data, layout):
    x, axis, parts = data
    if layout not in ("broadcast", "one number"):  # which change the values
        parts = [ANY_LAYOUT[layout](part) if part.size else part for part in parts]
    assert_exact(Moments.of(x, axis), x, axis)
    assert_exact(Moments.merge(Moments.of(part, axis) for part in parts), x, axis)


@given(data(), st.randoms())
def test_the_order(data, random):
    """One part after another, whoever merges; in another order, to rounding."""
    _, axis, arrays = data
    parts = [Moments.of(array, axis) for array in arrays]
    merged = Moments.merge(parts)
    running = Moments(merged.channels)
    for array in arrays:
        assert running.update(array, axis) is running
    assert bits(reduce(add, parts)) == bits(merged) == bits(running)
    random.shuffle(parts)
    assert_close(Moments.merge(parts), merged)
    assert_close(reduce(lambda a, b: b + a, parts), merged)


@pytest.mark.parametrize("mean", [0, 1e4, 1e8])
def test_many_parts(rng, mean):
    """Of one value each, and of very different sizes."""
    x = mean + rng.standard_normal((20_000, 3))
    whole = Moments.of(x)
    assert_exact(whole, x, 1)
    assert_close(Moments.merge(Moments.of(x[i : i + 1]) for i in range(len(x))), whole)
    cuts = [1, 2, 3, 1000, 1001, 19_999]
    assert_close(Moments.merge(map(Moments.of, np.split(x, cuts))), whole)


def test_a_hundred_million_values():
    """0, 1, ..., 10**8 - 1, whose moments are known, in a hundred chunks."""
    n, chunk = 10**8, 10**6
    m = Moments(1)
    for start in range(0, n, chunk):
        m.update(np.arange(start, start + chunk, dtype=np.float64)[:, None])
    assert m.count == n
    assert m.mean == (n - 1) / 2
    m2 = Fraction(n * (n * n - 1), 12)
    assert abs(Fraction(m.m2[0]) - m2) <= PROMISED * m2


def test_constant_channels():
    for value in (0.1, 1e8 + 0.1, -3e30, 1e300):
        parts = [Moments.of(np.full((n, 2), value)) for n in (1, 1000, 7)]
        m = Moments.merge(parts)
        assert_array_equal(m.mean, value)
        assert_array_equal(m.std(), 0)


def test_where_the_guess_at_the_mean_is_far_off(rng):
    """The kernel looks at eight elements of a channel, these: there must be a second sweep."""
    n = 80_000
    x = rng.standard_normal((n, 2))
    x[n // 8 * np.arange(8) + n // 16, 0] = 1e5
    assert_exact(Moments.of(x), x, 1)
    x = np.ascontiguousarray(x.T)[None]
    assert_exact(Moments.of(x), x, 1)


@pytest.mark.parametrize("case", BATCH_NORM.cases, ids=lambda case: case.label)
def test_threads_and_types(case):
    """Same bits for any number of threads; 16 and 32 bits are as their float64 values are."""
    axis = case.options.get("axis", 1)
    for dtype in DTYPES:
        x = BATCH_NORM.draw(case, dtype)["x"]
        results = set()
        for threads in (1, 2, 3, 7):
            with fn.num_threads(threads):
                results.add(bits(Moments.of(x, axis)))
        results.add(bits(Moments.of(np.array(x, np.float64, order="C"), axis)))
        assert len(results) == 1


def test_instruction_sets(run_python):
    code = """
import hashlib
import numpy as np
import fastnorm as fn
rng = np.random.default_rng(0)
shapes = (300, 7), (5, 40, 33), (9, 3, 70, 70), (64, 1000)
arrays = [rng.standard_normal(shape) for shape in shapes]
parts = [fn.Moments.of(a[i::4].astype(t), axis) for a in arrays for axis in (0, 1, -1)
    for t in ("f2", "f4", "f8") for i in range(4)]
together = [fn.Moments.merge(parts[i : i + 4]) for i in range(0, len(parts), 4)
    if len({p.channels for p in parts[i : i + 4]}) == 1]
assert len(together) > 10
print(hashlib.sha256(b"".join(m.pack().tobytes() for m in parts + together)).hexdigest())
"""
    isas = fn.show_config("dicts")["isas"]
    assert len({run_python(code, FASTNORM_ISA=isa).stdout for isa in isas}) == 1


def test_the_reference(rng):
    x = rng.standard_normal((6, 4, 5))
    for axis in (0, 1, 2, -1):
        parts = np.array_split(x, 3, 1 if axis % 3 != 1 else 0)
        m = Moments.merge(Moments.of(part, axis) for part in parts)
        count, mean, m2 = reference.merge_moments(*(reference.moments(p, axis) for p in parts))
        assert m.count == count
        assert np.allclose(m.mean, mean, rtol=1e-14, atol=1e-15)
        assert np.allclose(m.m2, m2, rtol=1e-14)


def test_var_and_std(rng):
    x = rng.standard_normal((10, 3))
    m = Moments.of(x)
    for ddof in (0, 1, 2.5):
        assert np.allclose(m.var(ddof), x.var(axis=0, ddof=ddof), rtol=1e-14)
        assert np.allclose(m.std(ddof), x.std(axis=0, ddof=ddof), rtol=1e-14)
    assert np.isnan(Moments.of(x[:1]).var(ddof=1)).all()
    assert_array_equal(Moments.of(x[:1]).var(), 0)


def test_no_values(rng):
    x = rng.standard_normal((10, 3))
    empty, m = Moments.of(x[:0]), Moments.of(x)
    assert empty == Moments(3) == Moments.of(np.zeros((0, 3, 0)))
    assert empty.count == 0
    assert np.isnan(empty.mean).all()
    assert np.isnan(empty.var()).all()
    assert bits(empty + m) == bits(m + empty) == bits(Moments.merge([empty, m, empty])) == bits(m)
    assert empty + empty == empty
    none = Moments.of(np.zeros((4, 0)))
    assert (none.channels, none.count, none.mean.shape) == (0, 4, (0,))
    assert (none + none).count == 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(40, 3), (5, 3, 200)])
def test_nan_and_infinity_stay_in_their_channel(rng, bad, shape):
    x = rng.standard_normal(shape)
    clean = Moments.of(x)
    x[1, 2] = bad
    parts = [Moments.of(x[:2]), Moments.of(x[2:])]
    for m in (Moments.of(x), parts[0] + parts[1], parts[1] + parts[0]):
        assert_array_equal(m.mean[2], bad)
        assert np.isnan(m.m2[2])
    assert_array_equal(Moments.of(x).pack()[[1, 2, 7, 8]], clean.pack()[[1, 2, 7, 8]])
    opposite = x.copy()
    opposite[0, 2] = -bad
    assert np.isnan((Moments.of(x) + Moments.of(opposite)).mean[2])


def test_values_as_large_as_float32_has(rng):
    x = (1e38 * rng.uniform(-1, 1, (1000, 2))).astype(np.float32)
    assert_exact(Moments.of(x), x, 1)


def test_squares_beyond_float64():
    m = Moments.of(np.array([[1e200], [-1e200]]))
    assert (m.mean, m.var()) == (0, np.inf)
    m = Moments.of(np.array([[1.5e308]])) + Moments.of(np.array([[-1.5e308]]))
    assert (m.mean, m.var()) == (0, np.inf)


def test_pack_and_pickle(rng):
    m = Moments.of(1e8 + rng.standard_normal((50, 4)))
    packed = m.pack()
    assert packed.dtype == np.float64
    assert packed.shape == (13,)
    for other in (
        Moments.unpack(packed),
        Moments.unpack(packed[::1].tolist()),
        pickle.loads(pickle.dumps(m)),
        copy.deepcopy(m),
    ):
        assert other == m
        assert bits(other) == bits(m)
    packed[:] = 0
    other.update(np.ones((1, 4)))
    assert bits(Moments.unpack(m.pack())) == bits(m)
    assert other != m


def test_equality():
    m = Moments.of(np.array([[1.0, np.nan]]))
    assert m == Moments.of(np.array([[1.0, np.nan]]))
    assert m != Moments(2)
    assert m != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(m)


def test_what_is_returned_is_the_callers_own():
    m = Moments.of(np.array([[1.0, 2.0], [3.0, 5.0]]))
    before = bits(m)
    for array in (m.mean, m.m2, m.var(), m.std(), m.pack()):
        array[...] = -1
    assert bits(m) == before


def test_errors(rng):
    m = Moments.of(rng.standard_normal((4, 3)))
    before = bits(m)
    with pytest.raises(ValueError, match=r"Moments\.update: x must have 3 channels, got 2"):
        m.update(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="the second summand must have 3 channels, got 2"):
        m + Moments(2)
    with pytest.raises(ValueError, match=r"Moments\.merge: part 1 must have 3 channels, got 2"):
        Moments.merge([m, Moments(2)])
    with pytest.raises(ValueError, match="got none"):
        Moments.merge([])
    with pytest.raises(TypeError, match="must hold Moments, got ndarray"):
        Moments.merge([m, m.pack()])
    with pytest.raises(TypeError, match="unsupported operand"):
        m + 1
    with pytest.raises(ValueError, match=r"Moments\.of: x must have at least 2 dimensions"):
        Moments.of(np.zeros(3))
    with pytest.raises(TypeError, match=r"Moments\.of: x must be an array of float16"):
        Moments.of(np.zeros((3, 3), int))
    with pytest.raises(ValueError, match=r"Moments\.of: axis must be between -2 and 1"):
        Moments.of(np.zeros((3, 3)), 2)
    with pytest.raises(ValueError, match="channels must be at least 0, got -1"):
        Moments(-1)
    with pytest.raises(TypeError, match="channels must be an integer, got float"):
        Moments(2.0)
    assert bits(m) == before


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(6), "must have shape"),
        (np.zeros((1, 4)), "must have shape"),
        (np.array([-1.0, 0, 0, 0]), "begin with a count, got -1"),
        (np.array([0.5, 0, 0, 0]), r"begin with a count, got 0\.5"),
        (np.array([np.nan, 0, 0, 0]), "begin with a count, got nan"),
        (np.array([np.inf, 0, 0, 0]), "begin with a count, got inf"),
        (np.zeros(4, np.float32), "must be of float64, got float32"),
    ],
)
def test_what_pack_cannot_have_made(array, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Moments.unpack(array)
