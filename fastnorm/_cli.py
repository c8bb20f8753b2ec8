"""The console command ``fastnorm``: is this installation right, how fast is it, what is it."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import prod
from time import perf_counter
from typing import Any

import numpy as np

import fastnorm as fn
from fastnorm import reference
from fastnorm._registry import DTYPES, OPERATIONS, PASSES, Arrays, Case, Operation, differing

CHECK_HEADER = """\
Every kernel against the reference in a wider type; {threads} threads must give the bits of one.
Errors are in units of the tolerance that the registry names: up to 1 is right.
"""

BENCH_HEADER = """\
fastnorm {version} ({isa}, {threads}), NumPy {numpy}, float32. Times: the least of repeated calls,
in turn, as a user writes them, with warm caches and a fresh result array each time (no out=).
"reference" is plain NumPy, fastnorm.reference. GB/s count every array once, read or written.
"error" is the largest difference from float64, relative to the largest value of the result that it
is in.
"""


class Progress:
    """A line on stderr that says what goes on, if somebody is looking."""

    def __init__(self) -> None:
        self.visible = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self.visible:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        self.show("")


def say(text: str = "") -> None:
    """Print a line that a pipe sees at once."""
    print(text, flush=True)


def plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


# ---- check ---------------------------------------------------------------------------------------


def check_pass(
    operation: Operation, pass_: str, case: Case, arrays: Arrays, threads: int
) -> tuple[dict[str, float], str]:
    """Errors of a pass in units of their tolerances, and a complaint about bits if there is one."""
    results = []
    for n in (1, threads):
        with fn.num_threads(n):
            out = operation.blank(pass_, arrays)
            results.append(operation.run(fn, pass_, case, arrays, out=out))
    other = differing(results[0], results[-1])
    complaint = f"{', '.join(other)} with {threads} threads unlike 1 thread" if other else ""
    return operation.judge(pass_, case, arrays, results[0]), complaint


def check_operation(
    operation: Operation, threads: int, progress: Progress
) -> tuple[int, str, list[str]]:
    """The number of results, the largest error with its description, and what is wrong."""
    count, worst = 0, (-1.0, "")
    wrong: list[str] = []
    for number, case in enumerate(operation.cases, 1):
        progress.show(f"{operation.name}: case {number} of {len(operation.cases)}")
        for dtype in DTYPES:
            arrays = operation.draw(case, dtype)
            for pass_ in PASSES:
                where = f"{operation.function(pass_)}, {dtype}, {case.label}"
                try:
                    errors, complaint = check_pass(operation, pass_, case, arrays, threads)
                except Exception as failure:  # whatever a kernel does, the other checks go on
                    wrong.append(f"{where}: {type(failure).__name__}: {failure}")
                    continue
                if complaint:
                    wrong.append(f"{where}: {complaint}")
                count += len(errors)
                for name, error in errors.items():
                    tolerance = operation.tolerances[name]
                    described = f"{error:.2g} x {tolerance.name} tolerance ({name}: {where})"
                    worst = max(worst, (error, described))
                    if error > 1:
                        wrong.append(f"{where}: {name} is off by {error:.3g} x {tolerance}")
    return count, worst[1], wrong


def check(arguments: argparse.Namespace) -> int:
    """Run every kernel of this installation on this machine."""
    started = perf_counter()
    threads = max(fn.get_num_threads(), 2)
    progress = Progress()
    say(CHECK_HEADER.format(threads=threads))
    if "bfloat16" not in map(str, DTYPES):
        say("bfloat16 is left out: `pip install ml_dtypes` brings it to NumPy.\n")
    count = 0
    failed: list[str] = []
    for operation in OPERATIONS:
        results, worst, wrong = check_operation(operation, threads, progress)
        progress.clear()
        count += results
        verdict = "FAILED" if wrong else "ok"
        say(f"{operation.name:<14} {verdict:<6} {results:>5} results, largest error {worst}")
        for line in wrong[:5]:
            say(f"    {line}")
        if len(wrong) > 5:
            say(f"    and {len(wrong) - 5} more")
        failed += [operation.name] if wrong else []
    seconds = perf_counter() - started
    isa = fn.show_config(mode="dicts")["isa"]
    say()
    if failed:
        say(f"FAILED: {', '.join(failed)} ({isa}, {seconds:.1f} s)")
        return 1
    say(f"All {count} results of {len(OPERATIONS)} operations are right ({isa}, {seconds:.1f} s).")
    return 0


# ---- bench ---------------------------------------------------------------------------------------


def least_time(call: Callable[[], object], seconds: float) -> float:
    """The least time of a call, in seconds, repeated for about so long and three times at least."""
    call()
    least, repeats, deadline = math.inf, 0, perf_counter() + seconds
    while repeats < 3 or perf_counter() < deadline:
        started = perf_counter()
        call()
        least = min(least, perf_counter() - started)
        repeats += 1
    return least


def least_times(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """The least time of each call, in seconds. They take turns: what disturbs the machine for a
    while must not meet one of them alone."""
    rounds = 4
    times = [[least_time(call, seconds / rounds) for call in calls] for _ in range(rounds)]
    return [min(of_call) for of_call in zip(*times, strict=True)]


def figures(value: float) -> str:
    """Three of them, or all that are before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def relative_error(results: Arrays, exact: Arrays) -> float:
    """The largest difference of a result from the exact one, relative to its largest value."""
    return max(
        float(np.abs(results[name] - expected).max() / np.abs(expected).max())
        for name, expected in exact.items()
        if expected is not None
    )


def bench_pass(
    operation: Operation, pass_: str, case: Case, arrays: Arrays, seconds: float
) -> dict[str, Any]:
    """What is printed of one pass."""
    calls = [operation.bind(module, pass_, case, arrays) for module in (reference, fn)]
    slow, fast = least_times(calls, seconds)
    exact = operation.run(reference, pass_, case, operation.widened(arrays, np.float32))
    return {
        "operation": operation.name,
        "pass": pass_,
        "shape": case.label,
        "reference_ms": slow * 1e3,
        "fastnorm_ms": fast * 1e3,
        "speedup": slow / fast,
        "gb_per_s": operation.bytes_moved(pass_, case, arrays) / fast / 1e9,
        "error": relative_error(operation.run(fn, pass_, case, arrays), exact),
    }


def bench(arguments: argparse.Namespace) -> int:
    """Time every operation beside the reference."""
    config = fn.show_config(mode="dicts")
    threads = arguments.threads or fn.get_num_threads()
    say(BENCH_HEADER.format_map(config | {"threads": plural(threads, "thread")}))
    say(
        f"{'operation':<14} {'pass':<10} {'shape':<28} {'reference µs':>12} {'fastnorm µs':>12} "
        f"{'speed-up':>9} {'GB/s':>7} {'error':>8}"
    )
    progress, rows = Progress(), []
    operations = [o for o in OPERATIONS if not arguments.only or o.name in arguments.only]
    with fn.num_threads(threads) if arguments.threads else nullcontext():
        for operation in operations:
            for case in operation.bench_cases:
                if arguments.quick and prod(case.shape) > 2**19:
                    continue
                arrays = operation.draw(case, np.float32)
                for pass_ in PASSES:
                    progress.show(f"{operation.name} {pass_} {case.label}")
                    row = bench_pass(
                        operation, pass_, case, arrays, 0.02 if arguments.quick else 0.2
                    )
                    progress.clear()
                    rows.append(row)
                    say(
                        f"{row['operation']:<14} {row['pass']:<10} {row['shape']:<28} "
                        f"{figures(row['reference_ms'] * 1e3):>12} "
                        f"{figures(row['fastnorm_ms'] * 1e3):>12} "
                        f"{row['speedup']:>8.1f}x {row['gb_per_s']:>7.1f} {row['error']:>8.1e}"
                    )
    logarithms = [math.log(row["speedup"]) for row in rows]
    mean = math.exp(math.fsum(logarithms) / len(rows))
    say(f"\n{mean:.1f} times as fast as the reference (geometric mean of {len(rows)} passes).")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {"config": config | {"num_threads": threads}, "results": rows}, file, indent=2
            )
            file.write("\n")
    return 0


# ---- the command ---------------------------------------------------------------------------------


def info(arguments: argparse.Namespace) -> int:
    """Print the configuration."""
    fn.show_config()
    return 0


def at_least_one(text: str) -> int:
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {n}")
    return n


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="fastnorm", description="Normalisation layers for NumPy: check, time, describe."
    )
    parser.add_argument("--version", action="version", version=f"fastnorm {fn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("check", help="is every kernel right on this machine?")
    command.set_defaults(run=check)

    command = commands.add_parser("bench", help="how fast is it, beside plain NumPy?")
    command.set_defaults(run=bench)
    command.add_argument(
        "--only",
        action="append",
        choices=[operation.name for operation in OPERATIONS],
        metavar="OPERATION",
        help="this operation, and others by repeating it; one of %(choices)s",
    )
    command.add_argument("--quick", action="store_true", help="small shapes, a few seconds")
    command.add_argument("--threads", type=at_least_one, metavar="N", help="number of threads")
    command.add_argument("--json", metavar="FILE", help="write the results to a file as well")

    command = commands.add_parser("info", help="what is installed, and what does it use here?")
    command.set_defaults(run=info)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status
