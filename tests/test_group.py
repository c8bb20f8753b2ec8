"""Synchronised batch norm: a batch that several members share is normalised as one."""

from types import SimpleNamespace

import numpy as np
import pytest
from groups import Threads, together
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastnorm as fn
from fastnorm import layers, reference
from fastnorm._registry import BATCH_NORM, DTYPES, Case, working


def split(arrays, cuts, along=0):
    """x and dy of each member; parameters and running statistics are copies."""
    x, dy = np.split(arrays["x"], cuts, along), np.split(arrays["dy"], cuts, along)
    return [
        {k: v if v is None else v.copy() for k, v in arrays.items()} | {"x": a, "dy": b}
        for a, b in zip(x, dy, strict=True)
    ]


def steps(module, case, parts):
    """Both passes by a thread for each part; results by name, and the state they leave."""

    def step(member):
        arrays = parts[member.rank]
        options = BATCH_NORM.arguments("forward", case, arrays)
        y, cache = module.batch_norm_forward(**options, group=member)
        dx, dgamma, dbeta = module.batch_norm_backward(arrays["dy"], cache)
        state = {name: arrays[name] for name in BATCH_NORM.state}
        statistics = {"mean": cache.mean, "rstd": cache.rstd}
        return {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta} | statistics | state

    results = together(len(parts), step)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


SHARED = ("mean", "rstd", "running_mean", "running_var")


def whole(case, results, along=0):
    """The members' results as those of one batch; gradients of parameters are added up."""
    joined = {k: np.concatenate([r[k] for r in results], along) for k in ("y", "dx")}
    for name in ("dgamma", "dbeta"):
        given = results[0][name]
        joined[name] = given if given is None else sum(r[name].astype(np.float64) for r in results)
    return joined | {name: results[0][name] for name in SHARED}


def assert_as_one(case, arrays, parts, along=0):
    """The whole batch at once, in float64, says what is right; tolerances are the registry's."""
    results = steps(fn, case, parts)
    for name in SHARED:
        kept = {r[name].tobytes() for r in results if r[name] is not None}
        assert len(kept) <= 1, name
    joined = whole(case, results, along)
    errors = {}
    for pass_ in ("forward", "backward"):
        names = ("y", *SHARED) if pass_ == "forward" else ("dx", "dgamma", "dbeta")
        wide = BATCH_NORM.widened(arrays, arrays["x"].dtype)
        exact = BATCH_NORM.run(reference, pass_, case, wide)
        magnitudes = BATCH_NORM.magnitude(pass_, case, wide)
        mine = {name: joined[name] for name in names if name in exact}
        if pass_ == "backward":  # each part is rounded to the parameter's type
            for name in ("dgamma", "dbeta"):
                eps = np.finfo(np.float16).eps if arrays["x"].dtype.itemsize == 2 else 0
                if mine[name] is not None and eps:
                    atol = 8 * eps * magnitudes[name].max()
                    assert np.allclose(mine[name], exact[name], rtol=0, atol=atol)
                    del mine[name], exact[name]
        errors |= BATCH_NORM.errors(mine, exact, magnitudes, arrays["x"].dtype)
    assert max(errors.values()) <= 1, errors
    return results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "axis", "cuts"),
    [
        ((50, 7), 1, (20, 21)),
        ((33, 65), 1, (0, 5, 5)),
        ((9, 4, 6, 5), 1, (3, 3)),
        ((16, 3, 40, 40), 1, (15,)),
        ((6, 20, 20, 17), -1, (1, 2)),
        ((300, 2, 3), 2, (300,)),
    ],
    ids=str,
)
def test_whole_batch(shape, axis, cuts, dtype):
    """Parts of different sizes, some of them empty."""
    case = Case("", shape, {"axis": axis})
    arrays = BATCH_NORM.draw(case, dtype)
    assert_as_one(case, arrays, split(arrays, cuts))


@st.composite
def shared_batches(draw):
    shape = draw(st.lists(st.integers(1, 8), min_size=2, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    along = draw(st.sampled_from([a for a in range(len(shape)) if a != axis % len(shape)]))
    shape[along] = draw(st.integers(3, 40))
    cuts = sorted(draw(st.lists(st.integers(0, shape[along]), max_size=3)))
    without = draw(st.sampled_from(((), ("gamma",), ("beta",), ("gamma", "beta"))))
    mean = draw(st.sampled_from((0, -30, 1e4)))
    more = {"decay": draw(st.sampled_from((0.9, 0.0))), "ddof": draw(st.sampled_from((0, 1)))}
    case = Case("", tuple(shape), {"axis": axis}, more, without, data={"mean": mean})
    return case, along, cuts, draw(st.sampled_from((np.float32, np.float64)))


@settings(max_examples=60)
@given(shared_batches())
def test_any_split(batch):
    case, along, cuts, dtype = batch
    arrays = BATCH_NORM.draw(case, dtype)
    assert_as_one(case, arrays, split(arrays, cuts, along), along)


def test_the_reference():
    """The specification, by the same exchange."""
    case = Case("", (12, 3, 4), {"axis": 1})
    arrays = BATCH_NORM.draw(case, np.float64)
    mine = steps(fn, case, split(arrays, (2, 2, 9)))
    specified = steps(reference, case, split(arrays, (2, 2, 9)))
    for results, expected in zip(mine, specified, strict=True):
        for name, value in expected.items():
            assert np.allclose(results[name], value, rtol=1e-13, atol=1e-13), name
    one = steps(reference, case, split(arrays, ()))[0]
    joined = whole(case, specified)
    for name, value in joined.items():
        assert np.allclose(value, one[name], rtol=1e-13, atol=1e-13), name


def test_gradients_are_right():
    """Central differences of a loss over the whole batch, through every member's dx."""
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, 7, 3))
    gamma = rng.standard_normal(3)
    cuts, step = (2, 2, 5), 1e-5

    def loss(x):
        parts = np.split(x, cuts)
        ys = together(4, lambda m: fn.batch_norm_forward(parts[m.rank], gamma, group=m)[0])
        return (np.concatenate(ys) * dy).sum()

    def gradient(member):
        _, cache = fn.batch_norm_forward(np.split(x, cuts)[member.rank], gamma, group=member)
        return fn.batch_norm_backward(np.split(dy, cuts)[member.rank], cache)[0]

    dx = np.concatenate(together(4, gradient))
    for i in np.ndindex(x.shape):
        shift = np.zeros_like(x)
        shift[i] = step
        assert abs((loss(x + shift) - loss(x - shift)) / (2 * step) - dx[i]) < 1e-8


def test_same_bits_for_any_number_of_threads():
    case = Case("", (40, 8, 30, 30), {"axis": 1})
    arrays = BATCH_NORM.draw(case, np.float32)
    before = fn.get_num_threads()
    found = set()
    try:
        for threads in (1, 2, 3):
            fn.set_num_threads(threads)
            results = steps(fn, case, split(arrays, (13,)))
            found.add(b"".join(a.tobytes() for r in results for a in r.values()))
    finally:
        fn.set_num_threads(before)
    assert len(found) == 1


def test_one_exchange_a_pass_of_a_few_numbers_a_channel():
    threads = Threads(1)
    x = np.random.default_rng(0).standard_normal((20, 5, 30))
    member = threads.member(0)
    _, cache = fn.batch_norm_forward(x, group=member)
    fn.batch_norm_backward(x, cache)
    assert [round[0].shape for round in threads.rounds] == [(8 + 3 * 5,), (4 + 2 * 5,)]
    running_mean, running_var = np.zeros(5), np.ones(5)
    _, cache = fn.batch_norm_forward(
        x, running_mean=running_mean, running_var=running_var, training=False,
        group=member,
    )  # fmt: skip
    fn.batch_norm_backward(x, cache)
    assert len(threads.rounds) == 2


def test_as_without_a_group():
    """A group of one: the same to rounding."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 20, 5, 30)).astype(np.float32)
    gamma = rng.standard_normal(5).astype(np.float32)
    y, cache = fn.batch_norm_forward(x, gamma)
    mine, mine_cache = fn.batch_norm_forward(x, gamma, group=Threads(1).member(0))
    assert np.allclose(mine, y, rtol=1e-6, atol=1e-6)
    for a, b in zip(
        fn.batch_norm_backward(dy, mine_cache), fn.batch_norm_backward(dy, cache), strict=True
    ):
        assert a is b is None or np.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_empty_on_all_members():
    running_mean, running_var = np.ones(3), np.ones(3)

    def step(member):
        y, cache = fn.batch_norm_forward(
            np.zeros((0, 3)), running_mean=running_mean, running_var=running_var, eps=0.25,
            group=member,
        )  # fmt: skip
        return y, cache.mean, cache.rstd, fn.batch_norm_backward(y, cache)[0]

    for y, mean, rstd, dx in together(2, step):
        assert y.shape == dx.shape == (0, 3)
        assert_array_equal(mean, 0)
        assert_array_equal(rstd, 2)
    assert_array_equal(running_mean, 1)
    assert_array_equal(running_var, 1)


def test_nan_and_infinity_stay_in_their_channel():
    x = np.random.default_rng(0).standard_normal((10, 3))
    clean = together(2, lambda m: fn.batch_norm_forward(x[m.rank :: 2], group=m)[0])
    x[4, 1] = np.inf
    with np.errstate(all="raise"):
        found = together(2, lambda m: fn.batch_norm_forward(x[m.rank :: 2], group=m)[0])
    for y, expected in zip(found, clean, strict=True):
        assert_array_equal(y[:, [0, 2]], expected[:, [0, 2]])
        assert np.isnan(y[:, 1]).all()


@pytest.mark.parametrize("functions", [fn, reference])
def test_layers(functions):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 12, 4)).astype(np.float32)

    def step(member):
        layer = layers.BatchNorm(4, group=member)
        layer.functions = functions
        y = layer.forward(x[member.rank :: 3])
        return y, layer.backward(dy[member.rank :: 3]), layer.grads, layer.stats

    alone = layers.BatchNorm(4)
    y = alone.forward(x)
    dx = alone.backward(dy)
    results = together(3, step)
    for rank, (part, dpart, _, stats) in enumerate(results):
        assert np.allclose(part, y[rank::3], atol=1e-5)
        assert np.allclose(dpart, dx[rank::3], atol=1e-5)
        for name, statistic in stats.items():
            assert np.allclose(statistic, alone.stats[name], rtol=1e-6)
    for name, gradient in alone.grads.items():
        assert np.allclose(sum(r[2][name] for r in results), gradient, atol=1e-5)


# ---- errors --------------------------------------------------------------------------------------


def failing(parts, options, message, error=ValueError):
    """Every member raises, and has written nothing."""
    outs = [np.full(x.shape, 7, x.dtype) for x in parts]
    running = [np.full((2, 3), 7.0) for _ in parts]

    def step(member):
        i = member.rank
        given = {"running_mean": running[i][0], "running_var": running[i][1], "out": outs[i]}
        fn.batch_norm_forward(parts[i], **(given | options[i]), group=member)

    for result in together(len(parts), step):
        assert isinstance(result, error), result
        assert message in str(result)
    for array in outs + running:
        assert_array_equal(array, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 1e-3}, "the same eps, got 0.001, 1e-05"),
        ({"decay": 0.5}, "the same decay, got 0.5, 0.9"),
        ({"ddof": 0}, "the same ddof, got 0, 1"),
        ({"running_var": None}, "the same running statistics"),
    ],
    ids=str,
)
def test_members_that_do_not_agree(options, message):
    failing(np.ones((2, 4, 3)), [{}, options], message)


def test_members_of_several_dtypes():
    parts = [np.ones((4, 3), np.float32), np.ones((4, 3))]
    failing(parts, [{}, {}], "the same dtype, got float32, float64")


def test_members_of_several_numbers_of_channels():
    def step(member):
        fn.batch_norm_forward(np.ones((4, 3 + member.rank)), group=member)

    for result in together(2, step):
        assert isinstance(result, ValueError)
        assert "as many channels" in str(result)


def test_members_in_different_passes():
    x = np.random.default_rng(0).standard_normal((4, 3))
    _, cache = fn.batch_norm_forward(x, group=Threads(1).member(0))

    def step(member):
        if member.rank:
            fn.batch_norm_backward(x, cache._replace(group=member))
        fn.batch_norm_forward(x, group=member)

    for result in together(2, step):
        assert isinstance(result, ValueError)
        assert "be in the same pass" in str(result)


def test_one_value_a_channel_in_the_whole_group():
    failing([np.ones((1, 3)), np.ones((0, 3))], [{}, {}], "more than 1 values a channel, got 1")
    outs = together(2, lambda m: fn.batch_norm_forward(np.ones((1 - m.rank, 3)), group=m)[0])
    assert_array_equal(outs[0], 0)


def test_two_values_a_channel_one_each():
    """Too few for either of them alone."""

    def step(member):
        running_var = np.ones(3)
        x = np.full((1, 3), 2.0 * member.rank)
        y, _ = fn.batch_norm_forward(x, running_var=running_var, eps=0, decay=0, group=member)
        return y, running_var

    for rank, (y, running_var) in enumerate(together(2, step)):
        assert_array_equal(y, 2 * rank - 1)
        assert_array_equal(running_var, 2)


@pytest.mark.parametrize(
    ("allgather", "message"),
    [
        (lambda a: a, "must return float64 (members, 17), got float64 (17,)"),
        (lambda a: a[None, 1:], "must return float64 (members, 17), got float64 (1, 16)"),
        (lambda a: a[None].astype("f4"), "must return float64 (members, 17), got float32"),
        (lambda a: None, "must return float64 (members, 17), got object ()"),
        (lambda a: np.zeros((2, a.size)), "its array is not there"),
        (lambda a: np.zeros((0, a.size)), "its array is not there"),
        (lambda a: [a, a[1:]], "several lengths"),
    ],
)
def test_what_allgather_must_not_return(allgather, message):
    group = SimpleNamespace(allgather=allgather)
    out, running_mean = np.full((4, 3), 7.0), np.full(3, 7.0)
    with pytest.raises(ValueError, match=r"^batch_norm_forward: ") as raised:
        fn.batch_norm_forward(np.ones((4, 3)), running_mean=running_mean, out=out, group=group)
    assert message in str(raised.value)
    assert_array_equal(out, 7)
    assert_array_equal(running_mean, 7)


def test_what_allgather_returns_as_a_list():
    group = SimpleNamespace(allgather=lambda a: [a.copy()])
    y, cache = fn.batch_norm_forward(np.array([[1.0], [3.0]]), eps=0, group=group)
    assert_array_equal(y, [[-1], [1]])
    assert fn.batch_norm_backward(y, cache)[0].shape == (2, 1)


def test_what_is_no_group():
    for group in (3, "nonsense", np.ones(3), SimpleNamespace(allgather=3)):
        with pytest.raises(TypeError, match="batch_norm_forward: group must have a method"):
            fn.batch_norm_forward(np.ones((4, 3)), group=group)


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_what_allgather_raises(pass_):
    """Comes through as it is, and nothing has been written."""

    def allgather(array):
        raise ConnectionError("member 3 is gone")

    x = np.random.default_rng(0).standard_normal((4, 3))
    out, running_var = np.full((4, 3), 7.0), np.full(3, 7.0)
    group = SimpleNamespace(allgather=allgather)
    _, cache = fn.batch_norm_forward(x)
    call = {
        "forward": lambda: fn.batch_norm_forward(x, running_var=running_var, out=out, group=group),
        "backward": lambda: fn.batch_norm_backward(x, cache._replace(group=group), out=out),
    }[pass_]
    with pytest.raises(ConnectionError, match="member 3"):
        call()
    assert_array_equal(out, 7)
    assert_array_equal(running_var, 7)


def test_a_member_that_fails():
    """The others get the group's own error, soon."""

    def step(member):
        if member.rank == 1:
            raise KeyError("mine")
        fn.batch_norm_forward(np.ones((4, 3)), group=member)

    results = together(3, step)
    assert isinstance(results.pop(1), KeyError)
    assert all(isinstance(r, ConnectionError) for r in results)


def test_types_that_gradients_have():
    for dtype in DTYPES:
        gamma = np.ones(3, dtype)
        x = np.random.default_rng(0).standard_normal((8, 3)).astype(dtype)
        y, cache = fn.batch_norm_forward(x, gamma, gamma, group=Threads(1).member(0))
        dx, dgamma, dbeta = fn.batch_norm_backward(y, cache)
        assert y.dtype == dx.dtype == dgamma.dtype == dbeta.dtype == x.dtype
        assert cache.mean.dtype == cache.rstd.dtype == np.float64
        assert working(dtype) in (np.float32, np.float64)
