"""The affine layer's tiles, chunks and panels: what shapes of some size must not show."""

import ctypes
import tracemalloc

import numpy as np
import pytest
from checks import ANY_LAYOUT, OUT_LAYOUTS, assert_right, assert_same, over, run_blank

import fastnorm as fn
from fastnorm import _blas, _cpu
from fastnorm._registry import AFFINE, DTYPES, HALF_DTYPES, PASSES, Case
from fastnorm.layers import Affine


@pytest.fixture(autouse=True, params=[2, 64], ids="{} CPUs".format)
def cpus(request):
    """The more CPUs a machine has, the more tiles."""
    before = _cpu.assume_cpu_count(request.param)
    yield
    _cpu.assume_cpu_count(before)


# Several tiles and chunks of the depth, and the last of them a single row or column.
PRODUCTS = [
    (AFFINE, Case(f"{m}x{k} to {n}", (m, k), data={"outputs": n}))
    for m, k, n in (
        (130, 1025, 129),
        (129, 600, 257),
        (2100, 65, 40),
        (1, 3000, 257),
        (1500, 33, 1),
        (300, 1, 40),
        (1100, 300, 300),  # and ranges of the depth, backward
        (2500, 130, 260),
        (130, 300, 1024),  # a weight and dy whose rows are a page apart
        (2600, 131, 7),  # columns that are few, so that depth is, backward
        (1027, 4200, 11),
        (4001, 5, 83),
        (7, 700, 601),  # rows that are few
        (8, 4200, 67),
    )
]


@over(PRODUCTS)
@pytest.mark.parametrize("layout", ["transposed", "padded", "reversed", "stepped", "one number"])
@pytest.mark.parametrize("dtype", [DTYPES[0], *HALF_DTYPES[:1]], ids=str)
def test_panels(operation, case, dtype, layout):
    """What BLAS takes as it lies, and what is brought into panels, have the same bits."""
    arrays = operation.draw(case, dtype)
    strided = arrays | {name: ANY_LAYOUT[layout](arrays[name]) for name in ("x", "dy")}
    plain = {name: a.copy() for name, a in strided.items()}
    out_layout = OUT_LAYOUTS.get(layout, np.asfortranarray)
    for pass_ in PASSES:
        expected = run_blank(operation, pass_, case, plain)
        for n in (1, 3):
            out = out_layout(operation.blank(pass_, arrays))
            with fn.num_threads(n):
                assert_same(operation.run(fn, pass_, case, strided, out=out), expected, pass_)


@over(PRODUCTS)
@pytest.mark.parametrize("half", HALF_DTYPES, ids=str)
def test_16_bits_are_rounded_float32(operation, case, half):
    """The products are those of float32 copies, rounded once; dbias comes from double."""
    arrays = operation.draw(case, half)
    wide = {name: a.astype(np.float32) for name, a in arrays.items()}
    thin = min(arrays["weight"].shape) <= 16
    for pass_ in PASSES:
        results = operation.run(fn, pass_, case, arrays)
        assert_right(operation, pass_, case, arrays, results)
        names = [name for name in results if name != "dbias" and not (thin and name == "dweight")]
        expected = operation.run(fn, pass_, case, wide)
        assert_same(
            {n: results[n] for n in names}, {n: expected[n].astype(half) for n in names}, pass_
        )


@pytest.mark.parametrize("layout", OUT_LAYOUTS)
def test_out_is_a_large_x(layout, dtype, rng):
    """Too large to be copied, and not copied: whole rows are done before they are overwritten."""
    given = rng.standard_normal((4500, 260)).astype(dtype)
    weight, bias = rng.standard_normal((260, 260)).astype(dtype), np.ones(260, dtype)
    expected = fn.affine(given, weight, bias)
    for n in (1, 3):
        x = OUT_LAYOUTS[layout](given)
        x = x.copy() if layout == "contiguous" else x
        assert x.nbytes > 2**21
        with fn.num_threads(n):
            fn.affine(x, weight, bias, out=x)
        assert_same({"y": x}, {"y": expected}, f"{n} threads")
    tracemalloc.start()
    try:
        fn.affine(x, weight, bias, out=x)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("outputs", [3, 40])
def test_parameter_gradients_of_a_first_layer(outputs, dtype, rng):
    """They are those of the whole backward pass, in the parameters' dtype, whatever x has."""
    x = rng.standard_normal((5, 33, 17)).astype(dtype)
    layers = Affine(17, outputs, rng=0), Affine(17, outputs, rng=0)
    dy = rng.standard_normal((5, 33, outputs)).astype(dtype)
    for layer in layers:
        layer.forward(x)
        layer.backward(dy, input_gradient=layer is layers[0])
    assert_same(layers[1].grads, layers[0].grads)
    assert layers[0].grads["weight"].dtype == np.float32


def test_blas_counts_in_32_bits():
    """An error, where BLAS would compute with another number of rows."""
    one = np.ones(1, np.float32)
    x, weight = np.broadcast_to(one, (1, 2**31)), np.broadcast_to(one, (2**31, 1))
    with pytest.raises(ValueError, match=r"^affine: weight must have at most 2\*\*31 - 1 rows"):
        fn.affine(x, weight)


def test_another_blas_keeps_its_threads(monkeypatch):
    """Whose name for their number is not known here."""

    class Library:
        def __init__(self, name):
            pass

    monkeypatch.setattr(ctypes, "PyDLL", Library)
    assert _blas._find() == (None, None, None)
    monkeypatch.setattr(_blas, "_set", None)
    assert not _blas.can_be_single_threaded()
    assert _blas.describe() == "threads not under control: affine leaves threading to BLAS"


def test_kernels_that_openblas_could_have_chosen(monkeypatch):
    """An OpenBLAS that does not know this processor says so in show_config."""
    monkeypatch.setattr(_blas, "_kernels", lambda: "Haswell")
    monkeypatch.setattr(_blas._cpu, "has_avx512", lambda: True)
    assert "set OPENBLAS_CORETYPE=SkylakeX to use AVX-512" in _blas.describe()
    monkeypatch.setattr(_blas._cpu, "has_avx512", lambda: False)
    assert "OPENBLAS_CORETYPE" not in _blas.describe()
