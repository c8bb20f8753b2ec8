"""What every study shares: its command line, its claims, and what it writes.

A study is a script whose ``main`` has this form::

    def main(argv=None):
        study = Study(__doc__, argv)
        x, labels, x_test, labels_test = study.data()
        ...
        study.claim("Batch norm learns.", accuracy >= 0.88, test_accuracy=accuracy)
        study.figure("curves", draw, results)  # calls draw(figure, results)
        return study.finish(results, table(results))


    if __name__ == "__main__":
        sys.exit(main())

The table and the claims go to stdout, the progress to stderr, the JSON and the pictures where the
options say. The exit status is 1 if a claim does not hold in a full run; a quick run prints its
claims but trains too little to decide them.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import dataset
import numpy as np

import fastnorm as fn


class Study:
    """One run of a study.

    Parameters
    ----------
    doc : str
        The script's docstring: its first line is the title, all of it the help.
    argv : list of str, optional
        The command line; by default that of the process.
    add_options : callable, optional
        Called with the `argparse.ArgumentParser`, to add options of the study's own.

    Attributes
    ----------
    name : str
        That of the script, for messages.
    quick : bool
        Whether this is a run on the subset, for which a minute must do.
    args : argparse.Namespace
        All options.
    claims : list of dict
        What `claim` was given.
    """

    def __init__(self, doc, argv=None, add_options=None):
        self.name = Path(sys.argv[0]).name
        self.title = doc.strip().splitlines()[0]
        self.args = parse(doc, argv, add_options)
        self.quick, self.seed = self.args.quick, self.args.seed
        self.source, self.claims, self.pictures = None, [], []
        self.started = time.perf_counter()
        if self.args.threads:
            fn.set_num_threads(self.args.threads)

    def data(self):
        """Training images and labels, test images and labels: rows of standardised float32.

        An error in the files ends the script with a message.
        """
        try:
            arrays, self.source = (
                dataset.load_subset() if self.quick else dataset.load(self.args.data)
            )
        except (OSError, ValueError) as error:
            sys.exit(f"{self.name}: {error}")
        print(f"{self.source}; threads: {fn.get_num_threads()}", file=sys.stderr)
        return dataset.prepare(*arrays)

    def claim(self, sentence, held, **evidence):
        """Note a claim, whether it held, and the numbers that say so."""
        evidence = {name: plain(value) for name, value in evidence.items()}
        self.claims.append({"claim": sentence, "held": bool(held), "evidence": evidence})

    def figure(self, name, draw, *args, size=(8, 4)):
        """Write a picture into the directory of ``--figures``, if it is given.

        draw : called with a matplotlib Figure and *args*.
        """
        if self.args.figures is None:
            return
        try:
            from matplotlib.figure import Figure
        except ImportError:
            print(f'{name}.png: not drawn, no matplotlib (pip install ".[plot]")', file=sys.stderr)
            return
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, *args)
        self.args.figures.mkdir(parents=True, exist_ok=True)
        path = self.args.figures / f"{name}.png"
        figure.savefig(path, dpi=110)
        self.pictures.append(path.name)

    def finish(self, results, table):
        """Print table and claims, write the JSON; return the exit status."""
        seconds = time.perf_counter() - self.started
        to_stdout = self.args.json == "-"
        parts = [table, claims_text(self.claims, self.quick)] if self.claims else [table]
        print(*parts, sep="\n\n", file=sys.stderr if to_stdout else None)
        if self.args.json:
            text = json.dumps(
                {
                    "study": self.title,
                    "data": self.source,
                    "options": {k: v for k, v in vars(self.args).items() if k not in PLACES},
                    "machine": machine(),
                    "seconds": round(seconds, 1),
                    "results": plain(results),
                    "claims": self.claims,
                    "figures": self.pictures,
                },
                indent=1,
            )
            if to_stdout:
                print(text)
            else:
                Path(self.args.json).write_text(text + "\n", encoding="utf-8")
        failed = not all(claim["held"] for claim in self.claims)
        return int(failed and not self.quick)


# ---- Command line --------------------------------------------------------------------------------

PLACES = ("json", "figures", "data")  # options that say where, not what


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def parse(doc, argv=None, add_options=None):
    p = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--quick", action="store_true", help="less of everything, on the subset kept here"
    )
    p.add_argument("--data", metavar="DIR", help="the four idx files, plain or gzipped")
    p.add_argument("--json", metavar="FILE", help="write the results there; -: to stdout")
    p.add_argument("--figures", metavar="DIR", type=Path, help="write the pictures there")
    p.add_argument("--threads", type=positive, help="of fastnorm; NumPy's: OMP_NUM_THREADS")
    p.add_argument("--seed", type=int, default=0)
    if add_options:
        add_options(p)
    args = p.parse_args(argv)
    if args.quick and args.data:
        p.error("--quick uses the subset in the repository: leave out --data")
    return args


# ---- Results -------------------------------------------------------------------------------------


def plain(value):
    """The value with NumPy's numbers and arrays as Python's, for JSON."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value


def short(value):
    """A number of the evidence as one reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(short, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def claims_text(claims, quick):
    lines = ["Claims" + (" (a quick run does not decide them)" if quick else "")]
    for claim in claims:
        lines.append(f"  {'held    ' if claim['held'] else 'NOT HELD'}  {claim['claim']}")
        evidence = (f"{k.replace('_', ' ')} {short(v)}" for k, v in claim["evidence"].items())
        lines.append(f"            {'; '.join(evidence)}")
    return "\n".join(lines)


def rows_text(header, rows):
    """A table in text: the first column to the left, the others to the right."""
    cells = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            c.rjust(w) if i else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def mean_spread(values, digits=3):
    """Mean and standard deviation of the repeats, as 0.871 ± 0.004."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {spread:.{digits}f}"


def machine():
    config = fn.show_config("dicts")
    return {
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "architecture": platform.machine(),
        "isa": config["isa"],
        "threads": fn.get_num_threads(),
        "numpy": np.__version__,
        "fastnorm": fn.__version__,
    }


class Progress:
    """A bar on stderr; where that is no terminal, only the lines of `say`."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.shown = 0.0

    def step(self, label, done, steps):
        if self.terminal and time.monotonic() - self.shown > 0.1:
            self.shown = time.monotonic()
            bar = ("#" * (30 * done // steps)).ljust(30, ".")
            sys.stderr.write(f"\r{label} [{bar}] {done}/{steps}\033[K")
            sys.stderr.flush()

    def say(self, text):
        sys.stderr.write(f"\r{text}\033[K\n" if self.terminal else f"{text}\n")
        sys.stderr.flush()
