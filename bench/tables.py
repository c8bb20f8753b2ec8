"""Print the tables of docs/performance.md from a JSON of pytest-benchmark.

    pytest bench --benchmark-only --benchmark-json=all.json
    python bench/tables.py all.json

A table for each file of bench/ that has rows in the JSON, in Markdown. Times are the least of each
call's rounds. bench/plot.py draws the rows of bench/test_sizes.py.
"""

import argparse
import json
from collections import defaultdict
from functools import partial
from pathlib import Path

PASSES = ("inference", "forward", "backward")
LIBRARIES = ("reference", "pytorch", "fastnorm")


def rows_of(data, test):
    """The rows that a test function made."""
    return [row for row in data["benchmarks"] if row["name"].split("[")[0] == test]


def table(head, lines):
    """In Markdown."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def by_pass(rows, value):
    """A line for each operation and shape, a column for each pass.

    A row's group begins with the operation and the pass; `value` makes a string of rows. Lines that
    say nothing are left out.
    """
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        operation, pass_, label = row["group"].split(" ", 2)
        found[f"{operation.replace('_', ' ')}, {label}"][pass_].append(row)
    lines = [
        [label, *(value(passes[pass_]) for pass_ in PASSES)] for label, passes in found.items()
    ]
    return table(["operation, shape", *PASSES], [line for line in lines if any(line[1:])])


def ratios(rows, key="speedup", *, inverse=False):
    """What the rows' ``extra_info`` has under a key, those that have none left out."""
    values = [row["extra_info"][key] for row in rows if key in row["extra_info"]]
    return " / ".join(f"{1 / value if inverse else value:.2f}" for value in values)


def microseconds(row):
    return row["stats"]["min"] * 1e6


def figures(value):
    """Four of them, or all that are before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def by_library(rows):
    """A line for each group, with times and their ratios to fastnorm's."""
    found = defaultdict(dict)
    for row in rows:
        found[row["group"].replace("_", " ")][row["params"]["library"]] = microseconds(row)
    others = [name for name in LIBRARIES[:-1] if any(name in times for times in found.values())]
    lines = []
    for group, times in found.items():
        line = [figures(times[name]) if name in times else "" for name in (*others, LIBRARIES[-1])]
        line += [
            f"{times[name] / times['fastnorm']:.2f}" if name in times else "" for name in others
        ]
        lines.append([group, *line])
    head = [f"{name}, µs" for name in (*others, LIBRARIES[-1])]
    return table(["call", *head, *(f"{name} / fastnorm" for name in others)], lines)


def by_kind(rows):
    """What test_company.py times, and in brackets, beside its parts."""
    found = defaultdict(dict)
    for row in rows:
        beside = row["extra_info"].get("of_parts")
        beside = f" ({beside:.2f})" if beside else ""
        found[row["group"]][row["params"]["kind"]] = f"{microseconds(row):.0f}{beside}"
    kinds = list(next(iter(found.values())))
    lines = [[group, *times.values()] for group, times in found.items()]
    return table(["shape", *(f"{kind}, µs" for kind in kinds)], lines)


speedups = partial(by_pass, value=ratios)
shares = partial(by_pass, value=partial(ratios, inverse=True))
copies = partial(by_pass, value=partial(ratios, key="copies"))

# Of each test function: the title of its table, and what makes it.
TABLES = {
    "test_scaling": ("Two threads: speed-up over one", speedups),
    "test_too_small": ("Small calls: two / sixteen threads, speed-up over one", speedups),
    "test_copies": ("Copies", copies),
    "test_operation": ("Beside others", by_library),
    "test_small": ("Small calls beside others", by_library),
    "test_awkward": ("Awkward shapes: time per byte over that of a comfortable one", shares),
    "test_places": ("Where results begin: time over that of half a page away", shares),
    "test_dtypes": ("16 bits: time over that of float32, float16 / bfloat16", shares),
    "test_alternating": ("In company", by_kind),
    "test_step": ("A training step", by_library),
}


def tables(data):
    """(title, table) for each of these tests that the JSON has rows of."""
    for test, (title, make) in TABLES.items():
        rows = rows_of(data, test)
        if rows:
            yield title, make(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path, help="of pytest --benchmark-json")
    data = json.loads(parser.parse_args().json.read_text())
    for title, lines in tables(data):
        print(f"## {title}\n\n{lines}\n")


if __name__ == "__main__":
    main()
