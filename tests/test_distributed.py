"""The adapters of `fastnorm.distributed`, in processes that mpiexec and PyTorch bring together."""

import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastnorm as fn

PROGRAM = str(Path(__file__).parent / "members.py")
BESIDE = str(Path(sys.executable).parent)
MPIEXEC = shutil.which("mpiexec", path=f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}")

needs_mpi = pytest.mark.skipif(
    find_spec("mpi4py") is None or MPIEXEC is None, reason="no mpi4py, or no mpiexec"
)
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch")
BOUND = 60  # seconds, for anything: there may be more members than cores


def environment(**more):
    # More members than cores, and root in a container: Open MPI wants to be told.
    quiet = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    quiet |= {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":OVERSUBSCRIBE",
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FASTNORM", "OMP"))}
    return inherited | {"FASTNORM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | quiet | more


def communicate(processes, cwd):
    """What the members said, by number, and the processes' codes and errors. All end in time, or
    are ended."""
    try:
        errors = [process.communicate(timeout=BOUND)[1] for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail(f"not done after {BOUND} s")
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    said = {int(path.stem): path.read_text() for path in cwd.glob("*.said")}
    return said, [process.returncode for process in processes], "".join(errors)


def start(command, cwd, **more):
    return subprocess.Popen(
        command, cwd=cwd, env=environment(**more), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def with_mpi(size, engine, what, cwd):
    python = [sys.executable, "-W", "error", "-m", "mpi4py", PROGRAM, engine, what]
    return communicate([start([MPIEXEC, "-n", str(size), *python], cwd)], cwd)


def with_torch(size, what, cwd):
    command = [sys.executable, PROGRAM, "torch", what, str(cwd / "rendezvous")]
    return communicate(
        [start(command, cwd, RANK=str(i), WORLD_SIZE=str(size)) for i in range(size)], cwd
    )


def assert_same_bits(size, said, codes, errors):
    assert not any(codes), errors
    assert said.keys() == set(range(size)), errors
    assert len(set(said.values())) == 1


def assert_all_say(members, message, said, _, errors):
    assert said.keys() == set(members), errors
    assert all(message in words for words in said.values()), said


# ---- MPI -----------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize(
    ("size", "engine"),
    [(1, "mpi"), (2, "mpi"), (3, "mpi"), (4, "mpi"), (3, "mpi-timeout"), (2, "comm")],
)
def test_mpi_is_as_the_whole_batch(size, engine, tmp_path):
    assert_same_bits(size, *with_mpi(size, engine, "whole", tmp_path))


@needs_mpi
@pytest.mark.parametrize("engine", ["mpi", "comm"])
def test_mpi_members_of_several_numbers_of_channels(engine, tmp_path):
    found = with_mpi(3, engine, "several_lengths", tmp_path)
    assert_all_say(range(3), "as many channels", *found)


@needs_mpi
def test_mpi_members_of_several_dtypes(tmp_path):
    found = with_mpi(2, "mpi", "several_options", tmp_path)
    assert_all_say(range(2), "the same dtype, got float32, float64", *found)


@needs_mpi
@pytest.mark.parametrize("what", ["raises", "exits"])
def test_mpi_ends_all_with_a_member(what, tmp_path):
    said, codes, errors = with_mpi(3, "mpi", what, tmp_path)
    assert codes != [0]
    assert not said  # the others are ended while they wait: none has a result
    assert what == "exits" or "KeyError: 'mine'" in errors


@needs_mpi
def test_mpi_with_a_member_that_does_not_come(tmp_path):
    found = with_mpi(3, "mpi-timeout", "stops", tmp_path)
    assert_all_say((0, 2), "TimeoutError allgather: not all 3 members came within 3 s", *found)


# ---- torch.distributed ---------------------------------------------------------------------------


@needs_torch
@pytest.mark.parametrize("size", [2, 3])
def test_torch_is_as_the_whole_batch(size, tmp_path):
    assert_same_bits(size, *with_torch(size, "whole", tmp_path))


@needs_torch
def test_torch_members_of_several_numbers_of_channels(tmp_path):
    found = with_torch(2, "several_lengths", tmp_path)
    assert_all_say(range(2), "ValueError the members' arrays must be of one length", *found)


@needs_torch
@pytest.mark.parametrize("what", ["raises", "exits", "stops"])
def test_torch_without_a_member(what, tmp_path):
    """gloo's own error in the others."""
    found = with_torch(3, what, tmp_path)
    assert_all_say((0, 2), "Error", *found)


# ---- the pages -----------------------------------------------------------------------------------


DOCS = Path(__file__).parents[1] / "docs"


def run_program(page, name, command, folder):
    """Run the block of a page that begins with this name, in a file of it, by this command."""
    text = (DOCS / page).read_text(encoding="utf-8")
    begin = text.index(f"```python\n# {name}: ") + len("```python\n")
    (folder / name).write_text(text[begin : text.index("```", begin)], encoding="utf-8")
    _, codes, errors = communicate([start([*command, name], folder, HOME=str(folder))], folder)
    assert codes == [0], errors


@needs_mpi
@pytest.mark.parametrize(
    ("page", "name"), [("howto/distributed.md", "program.py"), ("scale.md", "program_tree.py")]
)
def test_programs_for_mpi(page, name, tmp_path):
    run_program(page, name, [MPIEXEC, "-n", "3", sys.executable, "-m", "mpi4py"], tmp_path)


@needs_torch
def test_the_program_for_torch(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2"]
    run_program("howto/distributed.md", "program_torch.py", command, tmp_path)


@pytest.mark.skipif(find_spec("ray") is None, reason="no Ray")
def test_the_program_for_ray(tmp_path):
    run_program("howto/distributed.md", "program_ray.py", [sys.executable], tmp_path)


def test_all_programs_are_run():
    """Those that test_docs.py leaves out are those above."""
    found = [
        name
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"^```python\n# (\w+\.py): ", page.read_text("utf-8"), re.MULTILINE)
    ]
    expected = {"program.py", "program_torch.py", "program_ray.py", "program_tree.py"}
    assert sorted(found) == sorted(expected)


# ---- without an engine ---------------------------------------------------------------------------


def test_importing_fastnorm_imports_no_engine(run_python):
    code = """
import sys
import fastnorm
assert "fastnorm.distributed" not in sys.modules
fastnorm.distributed.Group
assert "distributed" in dir(fastnorm)
assert not {"mpi4py", "torch"} & set(sys.modules)
"""
    run_python(code)


@pytest.mark.parametrize(("engine", "module"), [("mpi", "mpi4py"), ("torch", "torch")])
def test_an_engine_that_is_not_installed(engine, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as raised:
        getattr(fn.distributed, engine)()
    wanted = (
        f"fastnorm.distributed.{engine} needs {module}: pip install 'fastnorm-kernels[{engine}]'"
    )
    assert str(raised.value) == wanted


@needs_torch
def test_torch_without_a_process_group(run_python):
    done = run_python("import fastnorm as fn\nfn.distributed.torch()", check=False)
    assert "RuntimeError: fastnorm.distributed.torch: torch.distributed.init" in done.stderr


def test_timeouts_that_make_no_sense():
    for timeout in (0, -1, np.nan):
        with pytest.raises(ValueError, match="timeout must be more than 0 seconds"):
            fn.distributed.mpi(timeout=timeout)
