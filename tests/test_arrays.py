"""What arrays may be: of any layout and mixed dtypes, read-only, mapped, lists, tensors, empty."""

import ml_dtypes
import numpy as np
import pytest
from checks import (
    ANY_LAYOUT,
    OUT_LAYOUTS,
    SEVERAL_TILES,
    SMALL,
    assert_dtypes,
    assert_right,
    assert_same,
    over,
    read_only,
    run_blank,
)

import fastnorm as fn
from fastnorm._registry import DTYPES, PASSES, WIDE_DTYPES, Case, every_case, working

# ---- layouts -------------------------------------------------------------------------------------


def roles(operation, arrays):
    """Sets of arguments whose layout is changed together.

    The weight of an affine layer is in none: BLAS may sum a transposed one in another order.
    """
    first = operation.inputs[0]
    given = {n for n, a in arrays.items() if a.ndim and n not in (*operation.state, "weight")}
    return {first}, {"dy"}, given - {first, "dy"}, given


def assert_layout_does_not_matter(operation, case, dtype, lay_out):
    arrays = operation.draw(case, dtype)
    for changed in roles(operation, arrays):
        strided = {name: lay_out(a) if name in changed else a for name, a in arrays.items()}
        plain = {
            name: a.copy(order="A" if name == "weight" else "C") for name, a in strided.items()
        }
        read_only(strided, operation.state)
        for pass_ in PASSES:
            results = run_blank(operation, pass_, case, strided)
            expected = run_blank(operation, pass_, case, plain)
            assert_same(results, expected, f"{pass_} of strided {', '.join(sorted(changed))}")


@over(SMALL)
@pytest.mark.parametrize("layout", ANY_LAYOUT)
def test_layouts(operation, case, dtype, layout):
    """Every array gives the bits of its contiguous copy, wherever its elements lie."""
    assert_layout_does_not_matter(operation, case, dtype, ANY_LAYOUT[layout])


@over(SEVERAL_TILES)
@pytest.mark.parametrize("layout", ["transposed", "stepped", "unaligned"])
@pytest.mark.parametrize("dtype", [DTYPES[0], DTYPES[-1]], ids=str)
def test_layouts_of_large_input(operation, case, dtype, layout):
    assert_layout_does_not_matter(operation, case, dtype, ANY_LAYOUT[layout])


def assert_same_bits_side_by_side(norm, x, dy, parameters, **options):
    """Rows that are nearer to each other than their elements are, as those of rows one by one."""
    assert x.strides[-1] > x.strides[0] or x.strides[-1] > x.strides[-2]
    forward, backward = getattr(fn, norm + "_forward"), getattr(fn, norm + "_backward")
    results = []
    for some_x, some_dy in [(x, dy), (x.copy("C"), dy.copy("C"))]:
        with np.errstate(all="ignore"):
            y, cache = forward(some_x, *parameters, **options)
            results.append([y, *backward(some_dy, cache)])
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or a.tobytes() == b.tobytes()


@pytest.mark.parametrize("route", ["in cache", "through the cache", "past the cache"])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        *[(3, 64, 7, 7), (1, 65, 150, 2), (40, 100, 3), (2, 513, 17), (1, 768, 300)],
        *[(3, 130, 600), (2, 1030, 33)],
    ],
    ids=str,
)
def test_rows_side_by_side(norm, dtype, shape, route, rng, memory_route):
    """Those over axis 1, in groups that a tile may cut. One is far from 0, one overflows when it
    is squared, one is constant."""
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    x[-1, :, 1] += 1000
    x[0, :, -1] *= np.finfo(np.float32).max / 1e4 if x.itemsize > 2 else 1
    x[0, :, 0] = 3
    gamma, beta = rng.standard_normal((2, shape[1])).astype(dtype)
    memory_route(route)
    for parameters in [(), (gamma,) if norm == "rms_norm" else (gamma, beta)]:
        assert_same_bits_side_by_side(
            norm, np.moveaxis(x, 1, -1), np.moveaxis(dy, 1, -1), parameters
        )


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("shape", [(2, 130, 600), (1, 513, 290)], ids=str)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_side_by_side_where_they_are(norm, shape, num_threads, rng):
    """Those long enough are taken from the array and not from a copy: of x, dy and results that
    have strides of their own, one of which may be x."""
    inference, forward, backward = (
        getattr(fn, norm + end) for end in ("", "_forward", "_backward")
    )
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    gamma = rng.standard_normal(shape[1], dtype=np.float32)
    wide = np.zeros((3, *shape[:-1], shape[-1] + 5), np.float32)
    some_x, some_dy, out = (a[..., 3:-2] for a in wide)
    some_x[...], some_dy[...] = x, dy
    with fn.num_threads(num_threads):
        y, cache = forward(x, gamma, axis=1)
        expected = backward(dy, cache)
        some_y, some_cache = forward(some_x, gamma, axis=1, out=out)
        assert some_y.tobytes() == y.tobytes()
        for a, b in zip(backward(some_dy, some_cache, out=out), expected, strict=True):
            assert (a is None and b is None) or a.tobytes() == b.tobytes()
        assert inference(some_x, gamma, axis=1, out=some_x).tobytes() == y.tobytes()
    assert not wide[..., :3].any()
    assert not wide[..., -2:].any()


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "weight_norm"])
@pytest.mark.parametrize("shape", [(500, 100), (200, 65), (70, 1030)], ids=str)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_turned_rows(norm, shape, num_threads, rng):
    """They go through the passes in larger groups, which must not show in the sums."""
    x, dy = (np.asfortranarray(rng.standard_normal(shape, dtype=np.float32)) for _ in range(2))
    parameters = (rng.standard_normal(shape[0] if norm == "weight_norm" else shape[1]),)
    options = {"axis": 0} if norm == "weight_norm" else {}
    with fn.num_threads(num_threads):
        assert_same_bits_side_by_side(norm, x, dy, parameters, **options)


def assert_taken_as_stored(norm, x, dy, parameters, **options):
    """16 bits that are contiguous give what a copy in float does, which those apart are taken from;
    NaN for NaN."""
    apart = np.stack([x, x], axis=-1)[..., 0], np.stack([dy, dy], axis=-1)[..., 0]
    assert not apart[0].flags.c_contiguous
    forward, backward = getattr(fn, norm + "_forward"), getattr(fn, norm + "_backward")
    results = []
    for some_x, some_dy in [(x, dy), apart]:
        y, cache = forward(some_x, *parameters, **options)
        results.append([y, *backward(some_dy, cache)])
    for stored, copied in zip(*results, strict=True):
        if stored is None:
            assert copied is None
            continue
        stored, copied = stored.astype(np.float64), copied.astype(np.float64)
        assert np.array_equal(stored, copied, equal_nan=True)
        assert np.array_equal(np.signbit(stored[stored == 0]), np.signbit(copied[copied == 0]))
    if norm != "batch_norm":
        getattr(fn, norm)(x, *parameters, **options, out=x)
        assert x.tobytes() == results[0][0].tobytes()


@pytest.mark.parametrize(
    "norm",
    ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm", "weight_norm"],
)
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("n", [64, 79, 128, 143, 145, 1023, 1041, 4111, 17000])
def test_runs_of_16_bits(norm, dtype, n, rng):
    """Some kernels take contiguous runs of 16 bits as they are, others from a copy in float."""
    shape = (5, n) if norm == "weight_norm" else (3, 4, n)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    x.reshape(-1, n)[0, 3], x.reshape(-1, n)[2, 7] = np.nan, np.inf
    gamma, beta = rng.standard_normal((2, n)).astype(dtype)
    parameters = {
        "group_norm": [(2,)],
        "layer_norm": [(), (gamma, None), (None, beta), (gamma, beta)],
        "rms_norm": [(), (gamma,)],
        "weight_norm": [(np.ones(5),)],
    }
    for some in parameters.get(norm, [()]):
        assert_taken_as_stored(norm, x.copy(), dy, some)


@pytest.mark.parametrize("route", ["in cache", "through the cache", "past the cache"])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("rows", [1, 7, 39])
@pytest.mark.parametrize("n", [64, 97, 1040, 4111])
def test_row_gradients_of_16_bits(norm, dtype, rows, n, route, rng, memory_route):
    """The same of rows that go one, two or four at a time, with finite sums over all of them."""
    x, dy = (rng.standard_normal((rows, n)).astype(dtype) for _ in range(2))
    memory_route(route)
    for some in [(), (rng.standard_normal(n).astype(dtype),)]:
        assert_taken_as_stored(norm, x.copy(), dy, some)


@pytest.mark.parametrize("route", ["in cache", "through the cache", "past the cache"])
@pytest.mark.parametrize("norm", ["batch_norm", "group_norm", "instance_norm", "weight_norm"])
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(3, 2), (70, 7), (9, 31), (65, 32), (5, 100), (139, 66), (13, 1045), (300, 1200)],
    ids=str,
)
def test_columns_of_16_bits(norm, dtype, shape, route, rng, memory_route):
    """The same of columns: a few, or parts of vectors, of rows that are no multiple of four."""
    rows, n = shape
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    x[1, 0], x[0, 1], x[2, n - 1] = np.inf, np.nan, -0.0
    dy[:, n // 2] = -0.0
    memory_route(route)
    if norm == "weight_norm":
        assert_taken_as_stored(norm, x, dy, (np.linspace(-1, 1, n),), axis=1)
        return
    parameters = (1 if n % 2 else 2,) if norm == "group_norm" else ()
    x, dy = x.reshape(1, rows, n), dy.reshape(1, rows, n)
    assert_taken_as_stored(norm, x, dy, parameters, axis=-1)


@over((o, case) for o, case in every_case() if 1 in case.shape and not case.without)
@pytest.mark.parametrize("stride", [0, 3, -8, 2**40])
def test_strides_of_axes_of_length_1(operation, case, stride):
    """They lead nowhere and may be any number, as NumPy leaves them after slicing."""
    arrays = operation.draw(case, np.float32)
    strided = dict(arrays)
    for name in (operation.inputs[0], "dy"):
        a = arrays[name]
        strides = [stride if n == 1 else s for n, s in zip(a.shape, a.strides, strict=True)]
        strided[name] = np.lib.stride_tricks.as_strided(a, strides=strides)
    for pass_ in PASSES:
        assert_same(
            operation.run(fn, pass_, case, strided), operation.run(fn, pass_, case, arrays), pass_
        )


# ---- the layout of out ---------------------------------------------------------------------------


@over(SMALL)
@pytest.mark.parametrize("layout", OUT_LAYOUTS)
def test_out(operation, case, dtype, layout):
    """`out` receives the first result and is returned, whatever its strides, and x's."""
    arrays = operation.draw(case, dtype)
    first = operation.inputs[0]
    for pass_ in PASSES:
        expected = operation.run(fn, pass_, case, arrays)
        for x_layout in ("contiguous", layout, "transposed", "stepped"):
            strided = arrays | {first: ANY_LAYOUT[x_layout](arrays[first])}
            out = OUT_LAYOUTS[layout](operation.blank(pass_, arrays))
            results = operation.run(fn, pass_, case, strided, out=out)
            assert next(iter(results.values())) is out
            assert_same(results, expected, f"{pass_}, x {x_layout}")


@over(SEVERAL_TILES)
@pytest.mark.parametrize("layout", ["transposed", "stepped"])
@pytest.mark.parametrize("dtype", [DTYPES[0], DTYPES[-1]], ids=str)
def test_out_of_large_input(operation, case, dtype, layout):
    arrays = operation.draw(case, dtype)
    for pass_ in PASSES:
        out = OUT_LAYOUTS[layout](operation.blank(pass_, arrays))
        results = operation.run(fn, pass_, case, arrays, out=out)
        assert_same(results, operation.run(fn, pass_, case, arrays), pass_)


def test_nothing_beside_out_is_written(operation, dtype, pass_):
    """Between the elements of a strided `out` lie those of somebody else."""
    case = operation.typical
    arrays = operation.draw(case, dtype)
    blank = operation.blank(pass_, arrays)
    memory = np.full([3 * n for n in blank.shape[::-1]], 7, dtype).T
    out = memory[tuple(np.s_[1::3] for _ in blank.shape)]
    out[...] = np.nan
    assert_same(
        operation.run(fn, pass_, case, arrays, out=out), operation.run(fn, pass_, case, arrays)
    )
    out[...] = 7
    assert (memory == 7).all()


# ---- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", DTYPES, ids=lambda dtype: f"and-{dtype}")
def test_mixed_dtypes(operation, dtype, other, pass_):
    """One argument, or all but x, of another dtype than the rest."""
    case = operation.typical
    first = operation.inputs[0]
    plain = {name: a.dtype for name, a in operation.draw(case, dtype).items()}
    mixed = {n: working(other) if n in operation.state else other for n in plain if n != first}
    for changed in (*({name} for name in mixed), set(mixed)):
        dtypes = plain | {name: mixed[name] for name in changed}
        arrays = read_only(operation.draw(case, dtypes), operation.state)
        results = operation.run(fn, pass_, case, arrays)
        assert_right(operation, pass_, case, arrays, results)
        assert_dtypes(operation, arrays, results)


@over(SMALL)
def test_every_argument_of_another_dtype(operation, case):
    """All the dtypes at once, in every assignment that goes round."""
    plain = operation.draw(case, np.float32)
    for shift in range(len(DTYPES)):
        dtypes = {}
        for k, name in enumerate(plain):
            among = WIDE_DTYPES if name in operation.state else DTYPES
            dtypes[name] = among[(k + shift) % len(among)]
        arrays = read_only(operation.draw(case, dtypes), operation.state)
        for pass_ in PASSES:
            results = operation.run(fn, pass_, case, arrays)
            assert_right(operation, pass_, case, arrays, results)
            assert_dtypes(operation, arrays, results)


@over(SMALL)
@pytest.mark.parametrize("narrow", DTYPES[2:], ids=str)
def test_narrow_arguments_are_widened_exactly(operation, case, narrow):
    """Beside float32, 16-bit parameters, statistics and dy are what their float32 copies are."""
    first = operation.inputs[0]
    plain = operation.draw(case, np.float32)
    dtypes = {n: np.float32 if n in (first, *operation.state) else narrow for n in plain}
    arrays = operation.draw(case, dtypes)
    wide = {n: a.astype(np.float32) for n, a in arrays.items()}
    for pass_ in PASSES:
        results = operation.run(fn, pass_, case, arrays)
        expected = operation.run(fn, pass_, case, wide)
        same = [n for n in results if n not in operation.gradients[1:]]
        assert_same({n: results[n] for n in same}, {n: expected[n] for n in same}, pass_)


def test_strided_and_mixed(operation, dtype, pass_):
    """Gathering elements and converting them do not get into each other's way."""
    case = operation.typical
    dtypes = {n: a.dtype for n, a in operation.draw(case, dtype).items()}
    other = DTYPES[(DTYPES.index(dtype) + 2) % len(DTYPES)]
    dtypes |= {n: other for n in dtypes if n not in (operation.inputs[0], *operation.state)}
    plain = operation.draw(case, dtypes)
    for lay_out in map(ANY_LAYOUT.get, ("stepped", "transposed", "unaligned")):
        strided = {
            n: lay_out(a) if n not in (*operation.state, "weight") and a.ndim else a
            for n, a in plain.items()
        }
        out = lay_out(operation.blank(pass_, plain))
        results = operation.run(fn, pass_, case, strided, out=out)
        assert_same(results, operation.run(fn, pass_, case, plain))


# ---- what is not an array ------------------------------------------------------------------------


def test_lists(operation, pass_):
    """Lists are arrays of float64."""
    case = operation.typical
    arrays = operation.draw(case, np.float64)
    lists = {
        name: array if name in operation.state else array.tolist() for name, array in arrays.items()
    }
    results = operation.run(fn, pass_, case, lists)
    assert_same(results, operation.run(fn, pass_, case, arrays))


class Subclass(np.ndarray):
    """An array whose class is nobody's business."""


def test_subclasses(operation, dtype, pass_):
    """They are taken for what they are based on, and results are plain arrays."""
    case = operation.typical
    arrays = operation.draw(case, dtype)
    given = {n: a if n in operation.state else a.view(Subclass) for n, a in arrays.items()}
    results = operation.run(fn, pass_, case, given)
    assert_same(results, operation.run(fn, pass_, case, arrays))
    assert {type(result) for result in results.values()} == {np.ndarray}


def test_memory_mapped_input(operation, dtype, pass_, tmp_path):
    case = operation.typical
    arrays = operation.draw(case, dtype)
    mapped = dict(arrays)
    for name in (operation.inputs[0], "dy"):
        arrays[name].tofile(tmp_path / name)
        mapped[name] = np.memmap(tmp_path / name, dtype, mode="r", shape=arrays[name].shape)
    results = operation.run(fn, pass_, case, mapped)
    assert_same(results, operation.run(fn, pass_, case, arrays))
    assert type(next(iter(results.values()))) is np.ndarray


def test_mapped_out(operation, dtype, pass_, tmp_path):
    """A result may go to a file."""
    case = operation.typical
    arrays = operation.draw(case, dtype)
    blank = operation.blank(pass_, arrays)
    out = np.memmap(tmp_path / "out", dtype, mode="w+", shape=blank.shape)
    results = operation.run(fn, pass_, case, arrays, out=out)
    first = next(iter(results))
    assert results[first] is out
    assert_same({first: out}, {first: operation.run(fn, pass_, case, arrays)[first]})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: d.__name__)
def test_tensors(operation, dtype, pass_):
    """A tensor of PyTorch on the CPU is its memory, not a copy; results are arrays of NumPy."""
    torch = pytest.importorskip("torch")
    case = operation.typical
    arrays = operation.draw(case, dtype)
    tensors = {n: a if n in operation.state else torch.from_numpy(a) for n, a in arrays.items()}
    results = operation.run(fn, pass_, case, tensors)
    assert_same(results, operation.run(fn, pass_, case, arrays))
    assert {type(result) for result in results.values()} == {np.ndarray}
    cache = operation.bind(fn, "forward", case, tensors)()[1]
    first = operation.inputs[0]
    assert np.shares_memory(getattr(cache, first), arrays[first])


# ---- small and empty -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [np.float64(-3), np.float32(-3), np.float16(-3), ml_dtypes.bfloat16(-3), np.array(-3.0), -3.0],
)
def test_zero_dimensions(number):
    """A number is a tensor of its own: its norm is its size."""
    w, cache = fn.weight_norm_forward(number, 2.0, axis=None)
    dv, dg = fn.weight_norm_backward(np.array(1.0), cache)
    assert (w, dv, dg) == (-2, 0, -1)
    assert w.shape == dv.shape == dg.shape == ()
    assert w.dtype == dv.dtype == np.asarray(number).dtype


EMPTY_LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": np.flip,
    "sliced": lambda a: np.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)[..., ::2],
    "broadcast": lambda a: np.broadcast_to(np.ones((), a.dtype), a.shape),
}


@pytest.mark.parametrize("layout", EMPTY_LAYOUTS)
def test_empty_layouts(operation, dtype, pass_, layout):
    """No elements, in any order."""
    typical = operation.typical
    case = Case("", (0, *typical.shape[1:]), typical.options, data=typical.data)
    arrays = operation.draw(case, dtype)
    strided = arrays | {
        name: EMPTY_LAYOUTS[layout](arrays[name]) for name in (operation.inputs[0], "dy")
    }
    results = operation.run(fn, pass_, case, strided)
    assert_same(results, operation.run(fn, pass_, case, arrays))
    assert next(iter(results.values())).shape == operation.blank(pass_, arrays).shape
