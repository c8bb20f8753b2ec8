"""The mistakes that are made on the first day: each gets one line, and the line helps."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastnorm as fn

ROOT = Path(__file__).parents[1]
X = np.ones((2, 6, 4, 5), np.float32)


def message_of(call, *args, **kwargs):
    with pytest.raises((TypeError, ValueError)) as error:
        call(*args, **kwargs)
    return str(error.value)


# ---- a forgotten axis ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        ("layer_norm", {"gamma": 6}, "gamma must have shape (5,), got (6,), which x has at axis=1"),
        ("layer_norm", {"beta": 4}, "beta must have shape (5,), got (4,), which x has at axis=2"),
        (
            "layer_norm",
            {"gamma": (6, 4, 5)},
            "gamma must have shape (5,), got (6, 4, 5), which x has at axis=(1, 2, 3)",
        ),
        ("rms_norm", {"gamma": 2}, "gamma must have shape (5,), got (2,), which x has at axis=0"),
        (
            "batch_norm",
            {"mean": 5, "var": 5},
            "mean must have shape (6,), got (5,), which x has at axis=3",
        ),
        (
            "batch_norm_forward",
            {"gamma": 5},
            "gamma must have shape (6,), got (5,), which x has at axis=3",
        ),
        (
            "batch_norm_forward",
            {"running_mean": 5},
            "running_mean must have shape (6,), got (5,), which x has at axis=3",
        ),
        (
            "group_norm",
            {"num_groups": 2, "gamma": 4},
            "gamma must have shape (6,), got (4,), which x has at axis=2",
        ),
        # Axis 0 has that length, but counts the samples.
        ("instance_norm", {"gamma": 2}, "gamma must have shape (6,), got (2,)"),
        # No axis has.
        ("layer_norm", {"gamma": 7}, "gamma must have shape (5,), got (7,)"),
        # A shape for broadcasting.
        (
            "batch_norm_forward",
            {"beta": (1, 6, 1, 1)},
            "beta must have shape (6,), got (1, 6, 1, 1)",
        ),
    ],
)
def test_the_axis_that_was_meant(call, arguments, message):
    arrays = {k: v if k == "num_groups" else np.ones(v) for k, v in arguments.items()}
    assert message_of(getattr(fn, call), X, **arrays) == f"{call}: {message}"


def test_two_axes_may_be_meant():
    x = np.ones((3, 8, 8, 4), np.float32)
    got = "layer_norm: gamma must have shape (4,), got (8,)"
    message = message_of(fn.layer_norm, x, np.ones(8))
    assert message == f"{got}, which x has at axis=1 and at axis=2"
    # Of many, which one would be a guess.
    assert message_of(fn.layer_norm, np.ones((8, 8, 8, 4)), np.ones(8)) == got


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_the_axis_of_g(shape):
    message = message_of(fn.weight_norm, np.ones((4, 3)), np.ones(shape))
    start = "weight_norm: g must have shape (4,) or (4, 1), got"
    assert message == f"{start} {shape}, which v has at axis=1"


def test_the_hint_of_many_dimensions_is_not_searched_for():
    """There would be a hundred million combinations of axes."""
    x = np.ones((1,) * 15 + (2,) * 15, np.float32)
    assert "which" not in message_of(fn.layer_norm, x[..., :0], np.ones((1,) * 15))


# ---- conventions of others -----------------------------------------------------------------------


def test_a_weight_of_pytorch():
    message = message_of(fn.affine, np.ones((2, 5)), np.ones((3, 5)))
    expected = "weight must have shape (5, out), got (3, 5); its transpose, weight.T, would do"
    assert message == f"affine: {expected}"
    assert message_of(fn.affine, np.ones((2, 5)), np.ones((3, 4))).endswith("got (3, 4)")


# ---- dtypes --------------------------------------------------------------------------------------

WORKING = "float16, bfloat16, float32 or float64"


def test_images_of_bytes():
    x = np.zeros((2, 3), np.uint8)
    assert message_of(fn.layer_norm, x) == (
        f"layer_norm: x must be an array of {WORKING}, got uint8"
    )


def test_bfloat16_from_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3), ml_dtypes.bfloat16))
    x = np.load(tmp_path / "x.npy")
    assert message_of(fn.layer_norm, x) == (
        f"layer_norm: x must be an array of {WORKING}, got |V2; "
        "if it was bfloat16: .view(ml_dtypes.bfloat16)"
    )
    fn.layer_norm(x.view(ml_dtypes.bfloat16))  # the advice is good


# ---- where Python is started, and with what ------------------------------------------------------


@pytest.fixture
def last_line(run_python):
    """The last line of an interpreter that fails: the one that is read."""

    def run(*command, **environment):
        done = run_python(*command, check=False, **environment)
        assert done.returncode != 0
        assert done.stderr.count("Traceback") <= 1
        return done.stderr.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("command", [("-c", "import fastnorm"), ("-m", "fastnorm", "info")])
def test_in_the_source_folder(last_line, tmp_path, command):
    shutil.copytree(ROOT / "fastnorm", tmp_path / "fastnorm", ignore=shutil.ignore_patterns("*.so"))
    # -S: an editable install would find the modules.
    line = last_line("-S", *command)
    assert line.startswith("ImportError: this is fastnorm's source folder, without compiled ")
    assert "`pip install .`" in line
    assert "another folder" in line


def test_an_installation_for_another_python(last_line, tmp_path):
    (tmp_path / "fastnorm").mkdir()
    shutil.copy(ROOT / "fastnorm" / "__init__.py", tmp_path / "fastnorm")
    line = last_line("-S", "-c", "import fastnorm")
    assert line.startswith(
        f"ImportError: fastnorm in {tmp_path / 'fastnorm'} is not made for this "
    )
    assert "install it again" in line


def test_as_a_module(run_python):
    assert run_python("-m", "fastnorm", "--version").stdout == f"fastnorm {fn.__version__}\n"


def test_without_what_the_tests_need(run_python, tmp_path):
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError('No hypothesis')\n")
    command = ("-m", "pytest", "tests/test_out.py")
    done = run_python(*command, check=False, PYTEST_DISABLE_PLUGIN_AUTOLOAD=1)
    assert done.returncode == 4
    line = done.stderr.strip().splitlines()[-1]
    assert line.endswith("No hypothesis; pip install '.[test]' installs what the tests need")


# ---- the build -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("variable", "language"), [("CC", "C"), ("CXX", "C++")])
def test_without_a_compiler(run_python, tmp_path, variable, language):
    pytest.importorskip("mesonbuild")
    command = ("-m", "mesonbuild.mesonmain", "setup", str(tmp_path / "build"), str(ROOT))
    done = run_python(*command, check=False, **{variable: "no-such-compiler"})
    assert done.returncode != 0
    (line,) = (line for line in done.stdout.splitlines() if "ERROR" in line)
    assert f"no {language} compiler was found" in line
    assert "build-essential" in line
