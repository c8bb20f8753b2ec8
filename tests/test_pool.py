"""The thread pool alone: `pool_stress.cpp`, compiled plainly and with sanitizers."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = [HERE / "pool_stress.cpp", HERE.parent / "fastnorm" / "_pool.cpp"]
SECONDS = "3"

VARIANTS = {
    "plain": ["-O2"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
    "address-undefined": [
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ],
}


def compiler():
    """The C++ compiler as a list of arguments, or a skip."""
    if sys.platform == "win32":
        pytest.skip("pool_stress.cpp forks")
    for name in [os.environ.get("CXX"), "c++", "g++", "clang++"]:
        command = shlex.split(name or "")
        if command and shutil.which(command[0]):
            return command
    pytest.skip("no C++ compiler")


def build(command, flags, sources, program):
    """Compile and link; returns None, or the compiler's complaint."""
    arguments = [*command, "-std=c++17", *flags, *map(str, sources), "-o", str(program), "-pthread"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    return done.stderr if done.returncode else None


def launcher(command, flags, tmp_path):
    """The words before a program's name with which programs of these flags run here, or a skip."""
    source = tmp_path / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    program = tmp_path / "empty"
    if build(command, flags, [source], program):
        pytest.skip(f"{command[0]} cannot build with {' '.join(flags)}")
    # ThreadSanitizer wants certain addresses free; on recent Linux randomisation may take them.
    for words in [], ["setarch", "-R"]:
        if words and not shutil.which(words[0]):
            continue
        if subprocess.run([*words, str(program)], capture_output=True).returncode == 0:
            return words
    pytest.skip(f"programs built with {' '.join(flags)} do not run here")


@pytest.mark.parametrize("variant", VARIANTS)
def test_stress(variant, tmp_path):
    if not all(source.exists() for source in SOURCES):
        pytest.skip("needs the sources of fastnorm")
    command, flags = compiler(), VARIANTS[variant]
    words = launcher(command, flags, tmp_path)
    program = tmp_path / "pool_stress"
    complaint = build(command, [*flags, "-Wall", "-Wextra"], SOURCES, program)
    assert complaint is None, complaint

    run = subprocess.run(
        [*words, str(program), SECONDS], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_import_starts_no_threads(tmp_path):
    code = "from fastnorm import _pool; print(_pool.workers())"
    # Not in the checkout, where `import fastnorm` would find the sources.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "0"
