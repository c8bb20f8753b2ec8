# /// script
# dependencies = ["nox"]
# ///
"""One command per chore: `nox -s tests`, `nox -s tests -- -k layer_norm`; `nox -l` lists them.

Each session has a virtual environment, which the next run uses again, and a wheel of the checkout,
of which only what changed is built. `.ci/run` runs the sessions too, with the wheel that it has
built (`FASTNORM_WHEEL`).
"""

import os
import re
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
STUDIES = (
    *("agreement", "backward_pass", "fashion_mnist", "cnn", "cnn_mistakes", "initial_scale"),
    *("batch_size", "weight_norm", "training_speed", "data_parallel", "merging"),
)
GIVEN = os.environ.get("FASTNORM_WHEEL")


def requirements(session, *extras):
    """What a build without isolation and these extras require."""
    named = session.run("python", ".ci/requirements", *extras, silent=True).split("\n")
    return list(filter(None, named))


def wheels_folder(session):
    return session.cache_dir / "wheels"


def install(session, *extras, also=()):
    """The wheel with the extras, and what else the session needs."""
    wheel = GIVEN or next(wheels_folder(session).glob("*.whl"))
    session.install(f"{wheel}[{','.join(extras)}]", *also)
    # A wheel of the same version is taken for the same wheel.
    session.install("--force-reinstall", "--no-deps", str(wheel))


def pinned(tool):
    """A linter with the version that the hooks have."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    return re.search(rf"^ *- ({tool}==\S+)", hooks, re.MULTILINE)[1]


@nox.session
def lint(session):
    """All linters; posargs: the hooks to run, `ruff`."""
    session.install("pre-commit")
    command = ["pre-commit", "run", "--all-files", "--show-diff-on-failure"]
    for hook in session.posargs or [""]:
        session.run(*command, *([hook] if hook else []))


@nox.session(default=False)
def build(session):
    """The wheel that the other sessions install."""
    if GIVEN:
        session.skip("the wheel is given")
    session.install(*requirements(session))
    folder = wheels_folder(session)
    for old in folder.glob("*.whl"):
        old.unlink()
    session.run(
        *("pip", "wheel", ".", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)),
        *("-C", f"build-dir={session.cache_dir / 'build'}"),
    )


@nox.session(requires=["build"])
def tests(session):
    """The suite; posargs go to pytest."""
    install(session, "test", "plot")
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def editable(session):
    """An editable install: used from the checkout, it builds what changed when it is imported."""
    session.install(*requirements(session, "test"))
    # The baseline's kernels are enough to see whether it works.
    session.install(
        *("--no-build-isolation", "--editable", "."),
        *("-C", f"build-dir={session.cache_dir / 'editable'}", "-C", "setup-args=-Disas="),
    )
    (ROOT / "fastnorm" / "_cpu.pyx").touch()
    verbose = {"MESONPY_EDITABLE_VERBOSE": "1"}
    built = session.run("python", "-m", "fastnorm", "info", env=verbose, silent=True)
    if "_cpu" not in built or "layer_norm" in built or "isa " not in built:
        session.error(f"not what changed, and that alone, was built: {built}")
    tests = [f"tests/test_{name}.py" for name in ("newcomer", "golden", "cli")]
    # Whether the kernels are right does not depend on how they are installed.
    others = ("--deselect", "tests/test_cli.py::test_whole_check")
    session.run("python", "-m", "pytest", "-q", *tests, *others, *session.posargs)


@nox.session(requires=["build"], default=False)
def types(session):
    """The stubs, beside what is installed."""
    install(session, "test", also=[pinned("mypy")])
    session.chdir(session.create_tmp())  # not the folder of the checkout, which has no modules
    # Kernels have no files under the names that they are loaded by; affine's waits for its use.
    code = """
from fastnorm import _dispatch
_dispatch.load("affine")
from mypy import stubtest
exit(stubtest.main())
"""
    session.run(
        *("python", "-c", code, "--mypy-config-file", str(ROOT / "pyproject.toml")),
        *("--allowlist", str(ROOT / ".ci/stubtest.txt"), "fastnorm"),
    )


@nox.session(requires=["build"], default=False)
def coverage(session):
    """The lines of Python that the suite runs, 95 % of them at least; posargs go to pytest."""
    install(session, "test", "plot", also=["coverage>=7.10"])
    session.run("coverage", "erase")
    # Not `-m pytest`, which would import the folder of the checkout.
    session.run("coverage", "run", f"{session.bin}/pytest", "-q", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(default=False)
def kernel_coverage(session):
    """The lines of Cython and C++ that the suite runs; posargs go to pytest."""
    session.install(*requirements(session, "test"))
    build = session.cache_dir / "coverage"
    for counts in build.rglob("*.gcda"):
        counts.unlink()
    session.install(
        *(".", "--no-deps", "--force-reinstall", "--no-build-isolation"),
        *("-C", f"build-dir={build}"),
        *("-C", "setup-args=-Dcoverage=true", "-C", "setup-args=-Disas="),
    )
    # Two threads that count in the same place are no faster than one.
    fast = "tests/test_threads.py::test_serial_kernels_run_side_by_side"
    session.run("pytest", "-q", "--deselect", fast, *session.posargs)
    session.run("python", ".ci/kernel_coverage", str(build))


@nox.session(requires=["build"], default=False)
def docs(session):
    """The site; posargs: the folder for it (default: build/html)."""
    install(session, "docs")
    folder = session.posargs[0] if session.posargs else "build/html"
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", folder)


@nox.session(requires=["build"], default=False)
def isas(session):
    """The numerics on the instruction sets that are not chosen here; posargs go to pytest."""
    install(session, "test")
    code = """
import os; os.chdir('/')
import fastnorm as fn
config = fn.show_config('dicts')
print(*(isa for isa in config['isas'] if isa != config['isa']))"""
    for isa in session.run("python", "-c", code, silent=True).split():
        tests = [f"tests/test_{name}.py" for name in ("golden", "operations", "numerics", "bits")]
        # float64's kernels are float32's with another type; its bits are among the golden ones. How
        # work is cut for threads is the same on all of them.
        chosen = session.posargs or ["-k", "golden or (not float64 and not test_threads)"]
        session.run("pytest", "-q", *tests, *chosen, env={"FASTNORM_ISA": isa})


@nox.session(requires=["build"], default=False)
def company(session):
    """Each test in four threads at once, fastnorm beside other libraries and over processes."""
    install(session, "test", "company")
    session.run("pytest", "-q", "--parallel-threads=4", "tests/test_operations.py", "-k", "float32")
    names = ("company", "threadpoolctl", "processes", "distributed", "dask")
    tests = [f"tests/test_{name}.py" for name in names]
    session.run("pytest", "-q", *tests)


@nox.session(requires=["build"], default=False)
def bench(session):
    """The benchmarks; posargs go to pytest (default: all that is timed)."""
    install(session, "test")
    session.run("pytest", "bench", *(session.posargs or ["--benchmark-only"]))


@nox.session(default=False)
def compare(session):
    """The speed of two commits; posargs go to bench/compare.py: `main HEAD -k layer_norm`."""
    session.run("python", "bench/compare.py", *session.posargs)


@nox.session(requires=["build"], default=False)
def studies(session):
    """The studies, briefly, on the embedded part of the data; posargs go to each."""
    install(session, "plot", "mpi", also=["mpich>=4"])
    for study in STUDIES:
        result = session.cache_dir / f"{study}.json"
        script = f"bench/studies/{study}.py"
        session.run("python", script, "--quick", "--json", str(result), *session.posargs)


@nox.session(venv_backend="none", default=False)
def sanitizers(session):
    """The suite on modules with a sanitizer; posargs go to .ci/sanitize (default: address)."""
    session.run(".ci/sanitize", *(session.posargs or ["address", "-q", "-x"]), external=True)


if __name__ == "__main__":
    nox.main()
