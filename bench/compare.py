"""Compare the speed of two commits: is anything slower?

    python bench/compare.py main                      the working tree beside main
    python bench/compare.py v0.1.0 HEAD -k layer_norm
    python bench/compare.py main HEAD --bench bench/test_small.py --rounds 9

Each commit is built in a virtual environment of its own, kept by its hash, and runs its own
benchmarks, of which those that both have are compared. The commits take turns, so that what else
the machine does meets both. The table has the least time of all rounds. "Slower" is what takes
longer by more than the threshold there, and took longer in every single round, also when it was
measured again; then the exit status is 1.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import tables

ROOT = Path(__file__).parents[1]
WORKING_TREE = "."


# ---- what was measured ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One benchmark: the least time of each round in seconds, of both commits."""

    name: str
    base: tuple[float, ...]
    new: tuple[float, ...]

    @property
    def ratio(self):
        """Of the least times of all rounds; above 1, the new commit is slower."""
        return min(self.new) / min(self.base)

    @property
    def times_slower(self):
        """The number of rounds in which the new commit was slower."""
        return sum(new > base for base, new in zip(self.base, self.new, strict=True))

    def is_slower(self, threshold):
        """Whether by more than the threshold, and in each round: with equal speeds, five rounds
        say so of one benchmark in 32, were there no threshold."""
        return self.ratio > threshold and self.times_slower == len(self.new)


def slowest_first(comparison):
    return -comparison.ratio, comparison.name


def comparisons(base, new):
    """Of what all rounds of both commits have timed, the slowest first.

    `base` and `new` are the rounds: dictionaries of least times.
    """
    common = set.intersection(*(set(times) for times in (*base, *new)))
    found = [
        Comparison(name, tuple(t[name] for t in base), tuple(t[name] for t in new))
        for name in common
    ]
    return sorted(found, key=slowest_first)


def geometric_mean(ratios):
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def least_times(data):
    """Of each benchmark of a JSON of pytest-benchmark, by its full name."""
    return {row["fullname"]: row["stats"]["min"] for row in data["benchmarks"]}


def report(found, threshold):
    """The table and what follows from it."""
    lines = [
        [
            comparison.name.split("::", 1)[-1],
            tables.figures(min(comparison.base) * 1e6),
            tables.figures(min(comparison.new) * 1e6),
            f"{comparison.ratio:.3f}",
            f"{comparison.times_slower} of {len(comparison.new)}",
            "slower" if comparison.is_slower(threshold) else "",
        ]
        for comparison in found
    ]
    head = ["benchmark", "base, µs", "new, µs", "new / base", "rounds slower", ""]
    mean = geometric_mean([comparison.ratio for comparison in found])
    return f"{tables.table(head, lines)}\n\ngeometric mean of {len(found)} ratios: {mean:.3f}"


# ---- the commits, built --------------------------------------------------------------------------


def run(*command, **options):
    """Run a command; what it prints is shown only if it fails."""
    done = subprocess.run(command, capture_output=True, check=False, **options)
    if done.returncode:
        sys.stderr.buffer.write(done.stdout + done.stderr)
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


def git(*arguments):
    return run("git", "-C", ROOT, *arguments)


def hash_of(commit):
    """The full hash; of the working tree, that of a commit of its tracked files."""
    if commit == WORKING_TREE:
        commit = git("stash", "create").decode().strip() or "HEAD"
    return git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()


def build(commit, cache):
    """The folder with the commit's `source` and an environment, `venv`, that has it installed."""
    tag = f"{sys.implementation.cache_tag}-{commit[:12]}"
    folder = cache / tag
    if (folder / "built").exists():
        return folder
    print(f"building {tag} ...", file=sys.stderr)
    with tarfile.open(fileobj=BytesIO(git("archive", commit))) as archive:
        archive.extractall(folder / "source", filter="data")
    run(sys.executable, "-m", "venv", folder / "venv")
    pip = (python_of(folder), "-m", "pip", "--disable-pip-version-check")
    # All commits with the NumPy and the SciPy, whose BLAS we call, that the first one got.
    same = cache / f"{sys.implementation.cache_tag}.txt"
    constraints = ("-c", same) if same.exists() else ()
    run(*pip, "install", "--quiet", *constraints, f"{folder / 'source'}[test]")
    if not constraints:
        installed = run(*pip, "list", "--format=freeze").decode().split()
        ours = ("numpy==", "scipy==", "pytest-benchmark==")
        same.write_text("\n".join(line for line in installed if line.startswith(ours)))
    (folder / "built").touch()
    return folder


def python_of(folder):
    return folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def measure(folder, arguments):
    """The least times of one run of a commit's benchmarks."""
    with tempfile.TemporaryDirectory() as results:
        file = Path(results) / "results.json"
        # -P: the folder fastnorm/ of the source has no compiled modules.
        run(
            *(python_of(folder), "-P", "-m", "pytest", "-q", "--benchmark-only"),
            *(f"--benchmark-json={file}", *arguments),
            cwd=folder / "source",
        )
        return least_times(json.loads(file.read_text(encoding="utf-8")))


def take_turns(folders, rounds, arguments):
    """The rounds of both commits; who is first takes turns too."""
    results = {folder: [] for folder in folders}
    for number in range(rounds):
        for folder in folders if number % 2 == 0 else reversed(folders):
            print(f"round {number + 1} of {rounds}: {folder.name}", file=sys.stderr)
            results[folder].append(measure(folder, arguments))
    return [results[folder] for folder in folders]


# ---- the command ---------------------------------------------------------------------------------


def parser():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("base", help="a commit, branch or tag")
    p.add_argument(
        "new", nargs="?", default=WORKING_TREE, help="another (default: the working tree)"
    )
    p.add_argument("-k", metavar="EXPRESSION", help="of pytest: which benchmarks")
    p.add_argument(
        "--bench",
        nargs="+",
        metavar="FILE",
        default=["bench/test_operations.py::test_operation"],
        help="files of bench/, or tests in them (default: %(default)s)",
    )
    p.add_argument("--rounds", type=int, default=5, help="runs of each commit (5)")
    p.add_argument("--threshold", type=float, default=1.05, help="a ratio (1.05)")
    p.add_argument("--seconds", type=float, default=0.1, help="for a benchmark in a round (0.1)")
    p.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "fastnorm-compare",
        help="where builds are kept (%(default)s)",
    )
    return p


def main(argv=None):
    args = parser().parse_args(argv)
    hashes = [hash_of(args.base), hash_of(args.new)]
    if hashes[0] == hashes[1]:
        sys.exit(f"{args.base} and {args.new} are one commit")
    folders = [build(commit, args.cache) for commit in hashes]
    # Other libraries are the same in both.
    which = "not reference and not pytorch" + (f" and ({args.k})" if args.k else "")
    options = [f"--benchmark-max-time={args.seconds}", "--benchmark-min-rounds=3"]
    found = comparisons(*take_turns(folders, args.rounds, [*options, "-k", which, *args.bench]))
    if not found:
        sys.exit("no benchmark that both have")
    slower = {c.name for c in found if c.is_slower(args.threshold)}
    if slower:
        print(f"{len(slower)} slower, measured again ...", file=sys.stderr)
        again = comparisons(*take_turns(folders, 2 * args.rounds, [*options, *slower]))
        found = sorted({c.name: c for c in (*found, *again)}.values(), key=slowest_first)
    print(report(found, args.threshold))
    return int(any(c.is_slower(args.threshold) for c in found))


if __name__ == "__main__":
    sys.exit(main())
