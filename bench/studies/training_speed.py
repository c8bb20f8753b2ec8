"""How many images a second does a training step take, with fastnorm, plain NumPy and PyTorch?

The MLP (five affine layers of 256, batches of 128) and the CNN of `cnn.py` (batches of 100), both
with batch norm: forward, loss, backward and gradient descent with momentum, float32, on 1 and 2
threads. Same network, same initial weights, same images (the subset). "NumPy reference" is the same
code on `fastnorm.reference`; PyTorch, if installed, is eager, the CNN in both memory formats.
Each case runs in a process of its own, in turn, several times; its best median counts.

    python bench/studies/training_speed.py --quick
    python bench/studies/training_speed.py --figures docs/studies
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import plots
from speed_worker import LIBRARIES, NETWORKS
from study import Progress, Study, rows_text

COLOURS = {
    "fastnorm": "#0072B2",
    "numpy": "#777777",
    "torch": "#D55E00",
    "torch-channels-last": "#E69F00",
}


def add_options(parser):
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))


def run_worker(library, network, threads, seconds):
    """The worker's result, on so many threads of whatever has threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTNORM_NUM_THREADS")
    command = [sys.executable, str(Path(__file__).with_name("speed_worker.py"))]
    done = subprocess.run(
        [*command, library, network, str(seconds)],
        env=os.environ | dict.fromkeys(names, str(threads)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def cases(networks, counts):
    """(library, network, threads), without PyTorch where there is none."""
    torch = importlib.util.find_spec("torch") is not None
    if not torch:
        print("PyTorch is not installed: its rows are left out", file=sys.stderr)
    return [
        (library, network, threads)
        for network in networks
        for threads in counts
        for library in LIBRARIES
        if (torch or not library.startswith("torch"))
        and (network == "cnn" or library != "torch-channels-last")
    ]


def draw(figure, results):
    networks = list(dict.fromkeys(row["network"] for row in results))
    panels = figure.subplots(1, len(networks), squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        rows = [row for row in results if row["network"] == network]
        counts = sorted({row["threads"] for row in rows})
        libraries = list(dict.fromkeys(row["library"] for row in rows))
        width = 0.8 / len(libraries)
        for i, library in enumerate(libraries):
            speeds = [row["images_per_second"] for row in rows if row["library"] == library]
            at = np.arange(len(counts)) + (i - (len(libraries) - 1) / 2) * width
            label = LIBRARIES[library]
            bars = axes.bar(at, speeds, width * 0.9, color=COLOURS[library], label=label)
            axes.bar_label(bars, [f"{s / 1000:.1f}k" for s in speeds], fontsize=8)
        names = [f"{count} thread{'s' if count > 1 else ''}" for count in counts]
        axes.set_xticks(range(len(counts)), names)
        plots.tidy(axes, "", "images per second", NETWORKS[network])
    plots.legend(figure, panels[-1])


def main(argv=None):
    study = Study(__doc__, argv, add_options)
    counts = [study.args.threads] if study.args.threads else [1, 2]
    rounds, seconds = (1, 0.3) if study.quick else (3, 2.0)

    todo = cases(study.args.networks, counts)
    progress, found = Progress(), {case: [] for case in todo}
    for r in range(rounds):
        for i, case in enumerate(todo):
            library, network, threads = case
            label = f"{NETWORKS[network]}, {LIBRARIES[library]}, threads: {threads}"
            progress.step(label, r * len(todo) + i, rounds * len(todo))
            found[case].append(run_worker(library, network, threads, seconds))
            time.sleep(0.2)
    results = []
    for (library, network, threads), runs in found.items():
        speeds = [run["batch"] / run["seconds"] for run in runs]
        row = {"network": network, "threads": threads, "library": library}
        row |= {"images_per_second": max(speeds), "all": speeds, "losses": runs[0]["losses"]}
        results.append(row)
        name = f"{NETWORKS[network]}, {LIBRARIES[library]}, threads: {threads}"
        progress.say(f"{name}: {max(speeds):.0f} images/s")

    check(study, results)
    study.figure("training_speed", draw, results, size=(9, 3.8))
    speed = {(r["network"], r["threads"], r["library"]): r["images_per_second"] for r in results}
    rows = [
        (
            NETWORKS[network],
            threads,
            LIBRARIES[library],
            f"{images:.0f}",
            f"{speed[network, threads, 'fastnorm'] / images:.2f}",
        )
        for (network, threads, library), images in speed.items()
    ]
    header = ("network", "threads", "library", "images/s", "fastnorm / it")
    return study.finish(results, rows_text(header, rows))


def check(study, results):
    for network in dict.fromkeys(r["network"] for r in results):
        rows = [r for r in results if r["network"] == network]
        losses = np.array([r["losses"] for r in rows])
        study.claim(
            f"{NETWORKS[network]}: all compute the same: the losses of the first steps agree to "
            "1e-3.",
            np.max(np.ptp(losses, axis=0) / losses.mean(axis=0)) < 1e-3,
            largest_relative_difference=np.max(np.ptp(losses, axis=0) / losses.mean(axis=0)),
        )
        for threads in dict.fromkeys(r["threads"] for r in rows):
            speed = {r["library"]: r["images_per_second"] for r in rows if r["threads"] == threads}
            study.claim(
                f"{NETWORKS[network]}, threads: {threads}: fastnorm is faster than plain NumPy.",
                speed["fastnorm"] > speed["numpy"],
                ratio=speed["fastnorm"] / speed["numpy"],
            )


if __name__ == "__main__":
    sys.exit(main())
