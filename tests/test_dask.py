"""`fastnorm.dask`: any chunks, any scheduler, the result of the array in memory."""

import importlib
import sys

import numpy as np
import pytest

import fastnorm as fn

CHUNKS = [(6, 8, 5, 7), (2, 3, 5, 7), (4, 8, 2, 3), (5, 1, 5, 1), ((1, 5), (3, 5), (5,), (2, 2, 3))]
TOLERANCE = {"float16": 5e-3, "float32": 5e-6, "float64": 1e-13}


@pytest.fixture(scope="module")
def da():
    return pytest.importorskip("dask.array")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def array(rng, dtype="float32", shape=(6, 8, 5, 7)):
    return (rng.standard_normal(shape) * 3 + 10).astype(dtype)


def check(lazy, x, expected, tolerance=0.0):
    assert lazy.chunks == x.chunks
    assert lazy.dtype == x.dtype
    result = lazy.compute(scheduler="synchronous")
    assert result.dtype == x.dtype
    assert result.shape == x.shape
    np.testing.assert_allclose(result.astype(float), expected.astype(float), 0, tolerance)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_moments(da, rng, chunks, axis):
    x = array(rng)
    expected = fn.Moments.of(x, axis)
    got = fn.dask.moments(da.from_array(x, chunks=chunks), axis).compute(scheduler="synchronous")
    assert got.count == expected.count
    np.testing.assert_allclose(got.mean, expected.mean, 1e-14)
    np.testing.assert_allclose(got.m2, expected.m2, 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_batch_norm(da, rng, chunks, dtype):
    x, gamma, beta = array(rng, dtype), rng.standard_normal(8), rng.standard_normal(8)
    lazy = da.from_array(x, chunks=chunks)
    y, moments = fn.dask.batch_norm_forward(lazy, gamma, beta)
    check(y, lazy, fn.batch_norm_forward(x, gamma, beta)[0], TOLERANCE[dtype])
    m = moments.compute(scheduler="synchronous")
    assert m.count == x.size // 8

    # With given statistics there is nothing to merge: the same bits.
    y = fn.dask.batch_norm(lazy, m.mean, m.var(), gamma, beta)
    check(y, lazy, fn.batch_norm(x, m.mean, m.var(), gamma, beta))
    last = fn.dask.batch_norm(lazy, np.arange(7.0), np.ones(7), axis=-1)
    check(last, lazy, fn.batch_norm(x, np.arange(7.0), np.ones(7), axis=-1))


@pytest.mark.parametrize("parameters", ["", "gamma", "beta", "gamma beta"])
@pytest.mark.parametrize("axis", [-1, 0, 1, (2, 3), (0, 2), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_rows(da, rng, chunks, axis, parameters):
    x = array(rng)
    lazy = da.from_array(x, chunks=chunks)
    shape = tuple(x.shape[a] for a in np.atleast_1d(axis))
    given = {name: rng.standard_normal(shape) for name in parameters.split()}
    is_split = any(lazy.numblocks[a] > 1 for a in np.atleast_1d(axis))
    tolerance = TOLERANCE["float32"] if is_split else 0
    y = fn.dask.layer_norm(lazy, axis=axis, **given)
    check(y, lazy, fn.layer_norm(x, axis=axis, **given), tolerance)
    given.pop("beta", None)
    y = fn.dask.rms_norm(lazy, axis=axis, **given)
    check(y, lazy, fn.rms_norm(x, axis=axis, **given), tolerance)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize(("axis", "groups"), [(1, 4), (1, 1), (1, 8), (-1, 7), (-1, 1)])
def test_group_norm(da, rng, chunks, axis, groups):
    x = array(rng)
    lazy = da.from_array(x, chunks=chunks)
    gamma, beta = rng.standard_normal((2, x.shape[axis]))
    y = fn.dask.group_norm(lazy, groups, gamma, beta, axis=axis)
    check(y, lazy, fn.group_norm(x, groups, gamma, beta, axis=axis), TOLERANCE["float32"])
    whole = da.from_array(x, chunks=(2, *x.shape[1:]))
    y = fn.dask.group_norm(whole, groups, gamma, beta, axis=axis)
    check(y, whole, fn.group_norm(x, groups, gamma, beta, axis=axis))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(da, rng, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    x = array(rng, dtype)
    lazy = da.from_array(x, chunks=3)
    tolerance = float(np.finfo(dtype).eps) * 8 if dtype == "float64" else 2e-2
    check(fn.dask.layer_norm(lazy), lazy, fn.layer_norm(x), tolerance)
    check(fn.dask.rms_norm(lazy), lazy, fn.rms_norm(x), tolerance)
    check(fn.dask.group_norm(lazy, 2), lazy, fn.group_norm(x, 2), tolerance)


def test_a_large_mean_costs_no_digits(da, rng):
    x = (rng.standard_normal((1000, 4)) + 1e6).astype(np.float32)
    y, _ = fn.dask.batch_norm_forward(da.from_array(x, chunks=(37, 3)))
    true = (x - x.mean(0, np.float64)) / np.sqrt(x.var(0, np.float64) + 1e-5)
    np.testing.assert_allclose(y.compute(scheduler="synchronous"), true, 0, 1e-6)


def test_nan_stays_in_its_channel(da, rng):
    x = array(rng)
    x[1, 2, 3, 4] = np.nan
    y, moments = fn.dask.batch_norm_forward(da.from_array(x, chunks=2))
    for channels in (
        y.compute(scheduler="synchronous").transpose(1, 0, 2, 3),
        moments.compute().m2,
    ):
        is_nan = np.isnan(channels).reshape(8, -1).any(1)
        assert is_nan.tolist() == [c == 2 for c in range(8)]


def test_parameters_may_be_lazy(da, rng):
    x = da.from_array(array(rng), chunks=3)
    gamma = da.from_array(rng.standard_normal(8), chunks=5)
    y, _ = fn.dask.batch_norm_forward(x, gamma)
    expected = fn.batch_norm_forward(x.compute(), gamma.compute())[0]
    check(y, x, expected, TOLERANCE["float32"])


def results(x):
    y, moments = fn.dask.batch_norm_forward(x)
    return y, fn.dask.layer_norm(x), fn.dask.group_norm(x, 4), moments


def bits(computed):
    *arrays, moments = computed
    return [a.tobytes() for a in arrays] + [moments.pack().tobytes()]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers_give_the_same_bits(da, rng, scheduler):
    import dask

    x = da.from_array(array(rng, shape=(12, 8, 9, 10)), chunks=(3, 3, 4, 5))
    expected = bits(dask.compute(*results(x), scheduler="synchronous"))
    assert bits(dask.compute(*results(x), scheduler=scheduler, num_workers=2)) == expected


def test_a_cluster_gives_the_same_bits(da, rng):
    import dask

    distributed = pytest.importorskip("distributed")
    x = da.from_array(array(rng, shape=(12, 8, 9, 10)), chunks=(3, 3, 4, 5))
    expected = bits(dask.compute(*results(x), scheduler="synchronous"))
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None}
    with (
        distributed.LocalCluster(processes=True, **options) as cluster,
        distributed.Client(cluster, timeout=60),
    ):
        assert bits(dask.compute(*results(x))) == expected


def threads_of(x):
    return np.full_like(x, fn.get_num_threads())


def test_kernels_run_on_one_thread(da, rng, monkeypatch):
    module = importlib.import_module("fastnorm.dask")
    monkeypatch.setattr(module, "_layer_norm", lambda x, *_, **__: threads_of(x))
    x = da.from_array(array(rng), chunks=6)
    with fn.num_threads(5):
        assert (fn.dask.layer_norm(x, axis=2).compute(scheduler="synchronous") == 1).all()
        two = fn.dask.layer_norm(x, axis=2, num_threads=2)
    assert (two.compute(scheduler="synchronous") == 2).all()


def test_nothing_is_computed_early(da):
    def fail(block):
        raise AssertionError("computed")

    x = da.ones((2, 12, 4), chunks=3).map_blocks(fail, dtype=float, meta=np.empty((0, 0, 0)))
    for lazy in results(x):
        with pytest.raises(AssertionError, match="computed"):
            lazy.compute(scheduler="synchronous")


def test_no_elements(da):
    x = da.zeros((0, 3), chunks=2)
    y, moments = fn.dask.batch_norm_forward(x)
    assert y.compute().shape == (0, 3)
    assert moments.compute() == fn.Moments(3)
    assert fn.dask.layer_norm(x).compute().shape == (0, 3)
    assert fn.dask.moments(da.zeros((4, 0), chunks=2)).compute().channels == 0


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda d, x: d.moments(np.ones((2, 2))), TypeError, "x must be a dask array, got ndarray"),
        (lambda d, x: d.moments(x[:, 0, 0, 0]), ValueError, "at least 2 dimensions"),
        (lambda d, x: d.moments(x, axis=4), ValueError, "axis"),
        (lambda d, x: d.moments(x.astype(int)), TypeError, "float"),
        (lambda d, x: d.layer_norm(x, np.ones(6)), ValueError, r"gamma must have shape \(7,\)"),
        (lambda d, x: d.rms_norm(x, axis=(1, 1)), ValueError, "axis"),
        (lambda d, x: d.layer_norm(x, eps=-1), ValueError, "eps"),
        (lambda d, x: d.group_norm(x, 3), ValueError, "num_groups"),
        (lambda d, x: d.batch_norm(x, np.ones(7), np.ones(8)), ValueError, "mean must have shape"),
        (lambda d, x: d.batch_norm_forward(x, np.ones(3)), ValueError, "gamma must have shape"),
        (lambda d, x: d.layer_norm(x[x > 0]), ValueError, "known sizes"),
    ],
)
def test_errors_come_when_the_graph_is_made(da, call, kind, message):
    with pytest.raises(kind, match=message):
        call(fn.dask, da.ones((6, 8, 5, 7), chunks=3))


def test_without_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(ImportError, match=r"fastnorm-kernels\[dask\]"):
        fn.dask.layer_norm(np.ones((2, 2)))
