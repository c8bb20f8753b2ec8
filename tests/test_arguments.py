"""Errors, the number of threads and the environment."""

import re
import threading

import ml_dtypes
import numpy as np
import pytest
from checks import assert_raises

import fastnorm as fn
from fastnorm._registry import (
    AFFINE,
    BATCH_NORM,
    GROUP_NORM,
    HALF_DTYPES,
    INSTANCE_NORM,
    LAYER_NORM,
    OPERATIONS,
    PASSES,
    WEIGHT_NORM,
)
from fastnorm.testing import check_gradients


def array_arguments(operation):
    """Every function with the name of each of its array arguments."""
    for pass_ in PASSES:
        names = {
            "inference": (operation.inputs[0], *operation.given, *operation.inputs[1:]),
            "forward": (*operation.inputs, *operation.state),
            "backward": ("dy",),
        }
        for name in names[pass_]:
            yield operation, pass_, name


ARGUMENTS = [triple for operation in OPERATIONS for triple in array_arguments(operation)]
OPTIONAL = ("gamma", "beta", "bias", *BATCH_NORM.state)


def over_arguments(arguments):
    """Parametrise a test over array arguments of functions."""
    ids = [f"{operation.function(pass_)}-{name}" for operation, pass_, name in arguments]
    return pytest.mark.parametrize(("operation", "pass_", "name"), arguments, ids=ids)


# ---- shapes --------------------------------------------------------------------------------------


@over_arguments([(o, pass_, name) for o, pass_, name in ARGUMENTS if name != o.inputs[0]])
def test_wrong_shape(operation, pass_, name):
    """``layer_norm: gamma must have shape (768,), got (512,)``"""
    case = operation.typical
    arrays = operation.draw(case, np.float32)
    shape = arrays[name].shape
    wrong_shapes = [(*shape, 2), (2, *shape), (shape[0] + 1, *shape[1:]), shape[1:]]
    for wrong in wrong_shapes:
        message = rf"{name} must have shape .*, got {re.escape(str(wrong))}"
        assert_raises(
            ValueError, message, operation, pass_, case, arrays | {name: np.ones(wrong, np.float32)}
        )
        if name not in ("g", "weight"):  # of which more than one shape is right
            message = rf"{name} must have shape {re.escape(str(shape))}, got"
            arrays_ = arrays | {name: np.ones(wrong, np.float32)}
            assert_raises(ValueError, message, operation, pass_, case, arrays_)


def test_the_example_of_an_error():
    with pytest.raises(
        ValueError, match=r"^layer_norm: gamma must have shape \(768,\), got \(512,\)$"
    ):
        fn.layer_norm(np.ones((4, 768), np.float32), np.ones(512, np.float32))


def test_an_error_of_weight_names_the_width_of_x():
    with pytest.raises(ValueError, match=r"^affine: weight must have shape \(5, .*got \(4, 3\)"):
        fn.affine(np.ones((2, 5)), np.ones((4, 3)))


@pytest.mark.parametrize("operation", [BATCH_NORM, GROUP_NORM, INSTANCE_NORM], ids=repr)
@pytest.mark.parametrize("shape", [(), (5,)])
@pytest.mark.parametrize("pass_", ["inference", "forward"])
def test_channels_need_two_dimensions(operation, shape, pass_):
    arrays = operation.draw(operation.typical, np.float32) | {"x": np.ones(shape, np.float32)}
    message = "x must have .*2 dimensions.*, got "
    assert_raises(ValueError, message, operation, pass_, operation.typical, arrays)


def test_scalars_have_no_axis():
    with pytest.raises(ValueError, match=r"^layer_norm: "):
        fn.layer_norm(1.0)
    with pytest.raises(ValueError, match=r"^weight_norm: "):
        fn.weight_norm(1.0, 1.0)
    with pytest.raises(ValueError, match=r"^affine: "):
        fn.affine(1.0, np.ones((1, 1)))


# ---- types ---------------------------------------------------------------------------------------

WRONG_ARRAYS = {
    "integers": lambda a: a.astype(np.int32),
    "booleans": lambda a: a.astype(bool),
    "complex": lambda a: a.astype(np.complex64),
    "objects": lambda a: a.astype(object),
    "masked": lambda a: np.ma.masked_array(a, mask=a > 1e6),
    "foreign-endian": lambda a: a.astype(a.dtype.newbyteorder()),
    "strings": lambda a: a.astype(str),
    "longdouble": lambda a: a.astype(np.longdouble),
    "integer list": lambda a: np.ones(a.shape, int).tolist(),
    "foreign-endian float16": lambda a: a.astype(np.dtype(np.float16).newbyteorder()),
    "float8": lambda a: a.astype(ml_dtypes.float8_e4m3fn),
    "integers of 4 bits": lambda a: a.astype(ml_dtypes.int4),
    "bytes": lambda a: a.astype(ml_dtypes.bfloat16).view("V2"),  # np.save's idea of bfloat16
}
if np.dtype(np.longdouble).itemsize == 8:
    del WRONG_ARRAYS["longdouble"]


@over_arguments([triple for triple in ARGUMENTS if triple[2] not in OPTIONAL])
def test_missing_argument(operation, pass_, name):
    case = operation.typical
    arrays = operation.draw(case, np.float32) | {name: None}
    assert_raises(TypeError, f"{name} must be ", operation, pass_, case, arrays)


WIDE = "float32 or float64"


@over_arguments(ARGUMENTS)
@pytest.mark.parametrize("wrong", WRONG_ARRAYS)
def test_wrong_type(operation, pass_, name, wrong):
    """The dtypes that work are named."""
    case = operation.typical
    arrays = operation.draw(case, np.float32)
    arrays[name] = WRONG_ARRAYS[wrong](arrays[name])
    message = f"{name} must be an array of float16, bfloat16, float32 or float64, got "
    if name in operation.state:  # to be written to, with more digits than 16 bits have
        message = f"{name} must be an .*{'ndarray' if wrong.endswith('list') else WIDE}.*, got "
    assert_raises(TypeError, message, operation, pass_, case, arrays)


@pytest.mark.parametrize("half", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("name", BATCH_NORM.state)
def test_running_statistics_of_16_bits(name, half):
    """(1 - decay) * batch would be lost in the rounding of the sum."""
    case = BATCH_NORM.typical
    arrays = BATCH_NORM.draw(case, half)
    arrays[name] = arrays[name].astype(half)
    message = f"{name} must be .*{WIDE}.*, got .*{half}"
    assert_raises(TypeError, message, BATCH_NORM, "forward", case, arrays)


@pytest.mark.parametrize("name", BATCH_NORM.state)
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_arrays_to_write(name, training):
    case = BATCH_NORM.typical
    arrays = BATCH_NORM.draw(case, np.float32)
    call = {"x": arrays["x"], "training": training} | {n: arrays[n] for n in BATCH_NORM.state}
    if training:
        with pytest.raises(TypeError, match=f"^batch_norm_forward: {name} must be an ndarray"):
            fn.batch_norm_forward(**call | {name: arrays[name].tolist()})
    frozen = arrays[name].copy()
    frozen.flags.writeable = False
    if training:
        with pytest.raises(ValueError, match=f"^batch_norm_forward: {name} must .*writ"):
            fn.batch_norm_forward(**call | {name: frozen})
    else:
        fn.batch_norm_forward(**call | {name: frozen})  # which are only read


@pytest.mark.parametrize("missing", [("running_mean",), ("running_var",), BATCH_NORM.state])
def test_frozen_batch_norm_needs_both_statistics(missing):
    arrays = {name: np.ones(3) for name in BATCH_NORM.state if name not in missing}
    with pytest.raises(ValueError, match=rf"^batch_norm_forward: .*needs {missing[0]}, got"):
        fn.batch_norm_forward(np.ones((4, 3)), training=False, **arrays)


@pytest.mark.parametrize("cache", [None, np.ones((4, 3)), ()])
def test_wrong_cache(operation, cache):
    backward = getattr(fn, operation.function("backward"))
    with pytest.raises(TypeError, match=f"^{operation.name}_backward: cache must be"):
        backward(np.ones((4, 3)), cache)


def test_cache_of_another_operation():
    _, cache = fn.weight_norm_forward(np.ones((4, 3)), np.ones(4))
    with pytest.raises(TypeError, match=r"^layer_norm_backward: cache must be"):
        fn.layer_norm_backward(np.ones((4, 3)), cache)


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_", ["inference", "forward"])
@pytest.mark.parametrize(
    "operation", [LAYER_NORM, BATCH_NORM, GROUP_NORM, INSTANCE_NORM, WEIGHT_NORM], ids=repr
)
@pytest.mark.parametrize(
    ("axis", "error"),
    [(3, ValueError), (-4, ValueError), (1.0, TypeError), ("0", TypeError), ([0, "1"], TypeError)],
)
def test_wrong_axis(operation, pass_, axis, error):
    case = operation.cases[2]
    arrays = operation.draw(case, np.float32)
    assert_raises(error, "axis ", operation, pass_, case_with(case, axis=axis), arrays)


def case_with(case, **options):
    """The case with other options."""
    return type(case)(case.label, case.shape, {**case.options, **options}, case.forward_options)


@pytest.mark.parametrize("axis", [(0, 0), (1, -1), ()])
def test_wrong_axes_of_layer_norm(axis):
    with pytest.raises(ValueError, match=r"^layer_norm: axis "):
        fn.layer_norm(np.ones((4, 3)), axis=axis)


@pytest.mark.parametrize("axis", [(0,), (0, 1), None])
def test_batch_norm_has_one_channel_axis(axis):
    with pytest.raises(TypeError, match=r"^batch_norm_forward: axis "):
        fn.batch_norm_forward(np.ones((4, 3)), axis=axis)


@pytest.mark.parametrize("axis", [0, -3])
@pytest.mark.parametrize("pass_", ["inference", "forward"])
@pytest.mark.parametrize("operation", [GROUP_NORM, INSTANCE_NORM], ids=repr)
def test_samples_are_no_channels(operation, pass_, axis):
    """The statistics are those of a sample: axis 0 cannot hold the channels."""
    case = operation.cases[2]
    arrays = operation.draw(case, np.float32)
    message = "axis must not be 0"
    assert_raises(ValueError, message, operation, pass_, case_with(case, axis=axis), arrays)


@pytest.mark.parametrize("pass_", ["inference", "forward"])
@pytest.mark.parametrize(
    ("num_groups", "error"),
    [
        (4, ValueError),
        (12, ValueError),
        (0, ValueError),
        (-2, ValueError),
        (2.0, TypeError),
        ("2", TypeError),
    ],
)
def test_wrong_number_of_groups(pass_, num_groups, error):
    """``group_norm: num_groups must divide the 6 channels of x, got 4``"""
    case = GROUP_NORM.cases[0]
    assert case.shape[1] == 6
    arrays = GROUP_NORM.draw(case, np.float32)
    message = "num_groups must divide the 6 channels of x, got "
    message = message if error is ValueError else "num_groups must be an integer, got "
    case = case_with(case, num_groups=num_groups)
    assert_raises(error, message, GROUP_NORM, pass_, case, arrays)


@pytest.mark.parametrize("pass_", ["inference", "forward"])
@pytest.mark.parametrize("operation", [LAYER_NORM, BATCH_NORM, GROUP_NORM, INSTANCE_NORM], ids=repr)
@pytest.mark.parametrize(
    ("eps", "error"),
    [(-1e-5, ValueError), (np.nan, ValueError), ("small", TypeError), (None, TypeError)],
)
def test_wrong_eps(operation, pass_, eps, error):
    case = operation.typical
    arrays = operation.draw(case, np.float32)
    assert_raises(error, "eps must ", operation, pass_, case_with(case, eps=eps), arrays)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("decay", -0.1, ValueError),
        ("decay", 1.1, ValueError),
        ("decay", np.nan, ValueError),
        ("decay", "slow", TypeError),
        ("ddof", 4, ValueError),
        ("ddof", "1", TypeError),
    ],
)
def test_wrong_moving_average(option, value, error):
    running = {name: np.ones(3) for name in BATCH_NORM.state}
    with pytest.raises(error, match=f"^batch_norm_forward: .*{option}"):
        fn.batch_norm_forward(np.ones((4, 3)), **running, **{option: value})
    assert all((array == 1).all() for array in running.values())


# ---- check_gradients takes fastnorm's functions --------------------------------------------------


def test_check_gradients_finds_a_wrong_gradient(rng):
    def backward(dy, cache):
        dx, dgamma, dbeta = fn.layer_norm_backward(dy, cache)
        return dx, dgamma * 1.001, dbeta

    x, gamma, beta = rng.standard_normal((3, 5)), np.ones(5), np.ones(5)
    with pytest.raises(AssertionError, match="gradient of gamma"):
        check_gradients(fn.layer_norm_forward, backward, x, gamma, beta)


# ---- the number of threads -----------------------------------------------------------------------


@pytest.fixture
def restored():
    """Sets the process's number of threads back."""
    before = fn.get_num_threads()
    yield before
    fn.set_num_threads(before)


def test_set_num_threads(restored):
    assert restored >= 1
    for n in (1, 3, np.int64(2)):
        fn.set_num_threads(n)
        assert fn.get_num_threads() == n
        assert type(fn.get_num_threads()) is int


@pytest.mark.parametrize("function", ["set_num_threads", "num_threads"])
@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-1, ValueError), (1.0, TypeError), ("2", TypeError), (None, TypeError)],
)
def test_wrong_number_of_threads(function, n, error, restored):
    with pytest.raises(error, match=f"^{function}: n must be .*, got "):
        enter(getattr(fn, function)(n))
    assert fn.get_num_threads() == restored


def enter(manager):
    with manager:
        pass


def test_num_threads_nests_and_is_restored(restored):
    with fn.num_threads(3):
        with fn.num_threads(2):
            assert fn.get_num_threads() == 2
        assert fn.get_num_threads() == 3
        fn.set_num_threads(5)
        assert fn.get_num_threads() == 3
    assert fn.get_num_threads() == 5
    with pytest.raises(KeyError), fn.num_threads(2):
        raise KeyError
    assert fn.get_num_threads() == 5


def test_num_threads_is_this_threads_alone(restored):
    seen = []

    def look():
        seen.append(fn.get_num_threads())

    with fn.num_threads(restored + 1):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [restored]


@pytest.mark.parametrize("variable", ["FASTNORM_NUM_THREADS", "OMP_NUM_THREADS"])
def test_environment_limits_threads(run_python, variable):
    code = "import fastnorm as fn; print(fn.get_num_threads())"
    default = int(run_python(code).stdout)
    assert default >= 1
    assert int(run_python(code, **{variable: 1}).stdout) == 1
    assert int(run_python(code, **{variable: 1000}).stdout) == default
    both = {"FASTNORM_NUM_THREADS": 1000, "OMP_NUM_THREADS": 1000, variable: 1}
    assert int(run_python(code, **both).stdout) == 1


# ---- the configuration ---------------------------------------------------------------------------


def test_show_config(capsys):
    config = fn.show_config(mode="dicts")
    assert {"version", "isa", "isas", "num_threads", "blas"} <= set(config)
    assert config["version"] == fn.__version__
    assert config["isa"] in config["isas"]
    assert isinstance(config["isas"], list)
    assert config["num_threads"] == fn.get_num_threads()
    assert capsys.readouterr().out == ""
    assert fn.show_config() is None
    printed = capsys.readouterr().out
    for key in config:
        assert key in printed
    with pytest.raises(ValueError, match="mode"):
        fn.show_config(mode="nonsense")


def test_unknown_instruction_set(run_python):
    done = run_python("import fastnorm", FASTNORM_ISA="nonsense", check=False)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    for name in fn.show_config(mode="dicts")["isas"]:
        assert name in done.stderr


def test_every_instruction_set_computes_the_same(run_python):
    """The same bits, whichever set of instructions is forced."""
    code = """
import hashlib, numpy as np, fastnorm as fn
from fastnorm._registry import OPERATIONS, DTYPES, PASSES
for operation in OPERATIONS:
    digest = hashlib.sha256()
    for number, case in enumerate(operation.cases if operation.name != "affine" else ()):
        for dtype in DTYPES if number % 3 == 0 else DTYPES[:2]:
            arrays = operation.draw(case, dtype)
            for pass_ in PASSES:
                for result in operation.run(fn, pass_, case, arrays).values():
                    digest.update(b"" if result is None else result.tobytes())
    print(operation.name, digest.hexdigest())
print(fn.show_config(mode="dicts")["isa"])
"""
    isas = fn.show_config(mode="dicts")["isas"]
    outputs = [run_python(code, FASTNORM_ISA=isa).stdout.split() for isa in isas]
    assert [output.pop() for output in outputs] == isas
    assert all(output == outputs[0] for output in outputs)


def test_import_is_light(run_python):
    """SciPy is imported by the first call of affine, and by nothing else."""
    code = """
import sys, numpy as np, fastnorm as fn
fn.layer_norm(np.ones((2, 3)))
assert "scipy" not in sys.modules
fn.affine(np.ones((2, 3)), np.ones((3, 4)))
"""
    run_python(code)


def test_import_is_fast(run_python):
    """Half as long as that of NumPy, at most. The least of a few: machines are noisy."""
    code = """
from time import perf_counter
start = perf_counter()
import numpy
middle = perf_counter()
import fastnorm
print((perf_counter() - middle) / (middle - start))
"""
    assert min(float(run_python(code).stdout) for _ in range(5)) < 0.5


def test_operations_are_functions():
    """Not the modules of the same names."""
    for operation in OPERATIONS:
        for pass_ in PASSES:
            assert callable(getattr(fn, operation.function(pass_)))
    assert AFFINE.name == "affine"
