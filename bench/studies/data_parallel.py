"""Is a network that several processes train together the one that a single process trains?

The MLP of `training_speed.py`, with batch norm, trained by `mpiexec -n 1, 2, 4`: each process has
its part of every batch, the gradients are added up, and batch norm is synchronised by
`fastnorm.distributed.mpi`. The single process, without MPI, is what the losses and the running
statistics of every step are compared with. Beside it, batch norm that is left local, at few images
per process; and images per second, with the time that goes into exchanges.

Needs mpi4py and an MPI with mpiexec (`pip install mpi4py mpich`).

    python bench/studies/data_parallel.py --quick
    python bench/studies/data_parallel.py --figures docs/studies
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import parallel_worker
import plots
from study import Progress, Study, rows_text

COUNTS = (1, 2, 4)  # processes
FEW = (2, 4, 8, 16, 32)  # images per process
SYNCHRONISED, LOCAL = "#0072B2", "#D55E00"
COLOURS = (LOCAL, "#009E73", SYNCHRONISED)
NETWORKS = {
    "float32": ("float32", "relu"),
    "float32, tanh": ("float32", "tanh"),
    "float64": ("float64", "relu"),
}
NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTNORM_NUM_THREADS")


def mpiexec():
    """The command, beside this interpreter if it is there, or None."""
    beside = str(Path(sys.executable).parent)
    path = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which("mpiexec", path=path) if importlib.util.find_spec("mpi4py") else None


def run(processes, options, timeout=900):
    """What the processes' first one found; processes 0: one, without MPI."""
    if not processes:
        return parallel_worker.train(options, parallel_worker.Alone())
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "result.npz")
        worker = str(Path(__file__).with_name("parallel_worker.py"))
        python = [sys.executable, "-m", "mpi4py", worker, json.dumps(options | {"file": file})]
        subprocess.run(
            [mpiexec(), "-n", str(processes), *python],
            env=os.environ | dict.fromkeys(NAMES, "1"),
            timeout=timeout,
            check=True,
        )
        with np.load(file) as found:
            result = {name: found[name] for name in found.files}
    return {k: v if v.ndim else v.item() for k, v in result.items()}


def differences(result, alone):
    """Of every step: how far the loss, and the running statistics, are from the single process's,
    relative to these."""
    scale = np.abs(alone["statistics"]).max(axis=1)
    statistics = np.abs(result["statistics"] - alone["statistics"]).max(axis=1) / scale
    losses = np.array(alone["losses"])
    return {"loss": np.abs(result["losses"] - losses) / losses, "statistics": statistics}


def draw(figure, results):
    panels = figure.subplots(1, 3)
    for (name, found), colour in zip(results["equality"].items(), COLOURS, strict=True):
        values = np.maximum(found[COUNTS[-1]]["loss"], 1e-17)
        panels[0].plot(np.arange(1, len(values) + 1), values, color=colour, label=name, lw=1)
    panels[0].set_yscale("log")
    panels[0].legend(fontsize=8, frameon=False)
    title = f"loss of {COUNTS[-1]} processes, from that of one"
    plots.tidy(panels[0], "step", "relative difference", title)

    few = results["few"]
    for norm, colour in (("synchronised", SYNCHRONISED), ("local", LOCAL)):
        plots.means(panels[1], few["images"], few[norm], color=colour, marker="o", ms=4, label=norm)
    panels[1].set_xscale("log")
    panels[1].set_xticks(few["images"], [str(n) for n in few["images"]])
    panels[1].minorticks_off()
    panels[1].legend(fontsize=8, frameon=False)
    plots.tidy(panels[1], "images per process, 4 processes", "", "test accuracy")

    speed = results["speed"]
    batches = list(speed)
    width = 0.8 / len(COUNTS)
    for i, count in enumerate(COUNTS):
        values = [speed[batch][count]["images_per_second"] for batch in batches]
        at = np.arange(len(batches)) + (i - 1) * width
        bars = panels[2].bar(at, values, width * 0.9, label=f"{count} processes")
        panels[2].bar_label(bars, [f"{v / 1000:.0f}k" for v in values], fontsize=7)
    panels[2].set_xticks(range(len(batches)), [f"batches of {batch}" for batch in batches])
    panels[2].legend(fontsize=7, frameon=False)
    plots.tidy(panels[2], "", "", "images per second")


def main(argv=None):
    study = Study(__doc__, argv)
    if mpiexec() is None:
        print("no mpi4py, or no mpiexec: nothing is measured", file=sys.stderr)
        return 0
    base = {
        "seed": study.seed, "quick": study.quick, "data": study.args.data, "lr": 0.02,
        "activation": "relu",
        "accuracy": False, "keep_statistics": False, "images": 4000 if study.quick else 60_000,
    }  # fmt: skip
    study.data()  # its source, and an error soon where it is not there
    progress, results = Progress(), {}
    results["equality"] = equality(study, base, progress)
    results["few"] = few_images(study, base, progress)
    results["speed"] = speeds(study, base, progress)
    check(study, results)
    study.figure("data_parallel", draw, results, size=(11, 3.6))
    return study.finish(results, tables(results))


def equality(study, base, progress):
    options = base | {"batch": 128, "steps": 20 if study.quick else 500, "keep_statistics": True}
    results = {}
    for name, (dtype, activation) in NETWORKS.items():
        options |= {"dtype": dtype, "activation": activation}
        alone = run(0, options | {"norm": "single"})
        results[name] = {}
        for count in COUNTS:
            result = run(count, options | {"norm": "synchronised"})
            results[name][count] = differences(result, alone) | {"states": result["bits"]}
            worst = results[name][count]["loss"].max()
            progress.say(f"{name}, {count} processes: largest difference of a loss {worst:.1e}")
    return results


def few_images(study, base, progress):
    sizes, seeds = (FEW[:2], 1) if study.quick else (FEW, 3)
    images = 1000 if study.quick else 10_000
    results = {"images": list(sizes)}
    for norm in ("synchronised", "local"):
        grid = np.empty((len(sizes), seeds))
        for i, r in np.ndindex(grid.shape):
            batch = 4 * sizes[i]
            options = base | {
                "batch": batch, "steps": images * (1 if study.quick else 2) // batch,
                "images": images, "accuracy": True, "dtype": "float32", "norm": norm,
                "seed": study.seed + r,
            }  # fmt: skip
            grid[i, r] = run(4, options)["accuracy"]
            progress.step(f"{norm}, {sizes[i]} images per process", i * seeds + r, grid.size)
        results[norm] = grid
        progress.say(f"{norm}: {', '.join(f'{a:.3f}' for a in grid.mean(axis=1))}")
    return results


def speeds(study, base, progress):
    results = {}
    for batch in (128, 1024):
        results[batch] = {}
        for count in COUNTS:
            steps = 20 if study.quick else 200
            options = base | {"batch": batch, "steps": steps, "dtype": "float32"}
            runs = [
                run(count, options | {"norm": "synchronised"})
                for _ in range(1 if study.quick else 5)
            ]
            best = min(runs, key=lambda result: result["seconds"])
            results[batch][count] = {
                "images_per_second": batch / best["seconds"],
                "step": best["seconds"],
                "exchange": best["exchange"],
                "gradients": best["gradients"],
            }
            progress.say(
                f"batches of {batch}, {count} processes: {batch / best['seconds']:.0f} images/s"
            )
    return results


def tables(results):
    rows = [
        (
            dtype, count, *(f"{found[k][i]:.1e}" for k in ("loss", "statistics") for i in (0, 9)),
            *(f"{found[k].max():.1e}" for k in ("loss", "statistics")),
        )
        for dtype, by_count in results["equality"].items()
        for count, found in by_count.items()
    ]  # fmt: skip
    header = (
        "dtype", "processes", "loss, step 1", "step 10", "statistics, step 1", "step 10",
        "loss, largest", "statistics, largest",
    )  # fmt: skip
    few = results["few"]
    means = [np.mean(few[norm], axis=1) for norm in ("synchronised", "local")]
    accuracy = [
        (
            n,
            *(f"{m[i]:.3f}" for m in means),
            *(f"{np.ptp(few[k][i]):.3f}" for k in ("synchronised", "local")),
        )
        for i, n in enumerate(few["images"])
    ]
    speed = [
        (
            batch, count, f"{r['images_per_second']:.0f}", f"{1e3 * r['step']:.2f}",
            f"{1e3 * r['exchange']:.2f}", f"{1e3 * r['gradients']:.2f}",
        )
        for batch, by_count in results["speed"].items()
        for count, r in by_count.items()
    ]  # fmt: skip
    return "\n\n".join(
        (
            "Relative difference from the single process\n" + rows_text(header, rows),
            "Test accuracy, 4 processes\n"
            + rows_text(
                ("images each", "synchronised", "local", "range", "range, local"), accuracy
            ),
            rows_text(
                ("batch", "processes", "images/s", "step, ms", "exchanges", "gradients"), speed
            ),
        )
    )


# A rounding is some epsilons, and stays so, but for this: in float32 it turns the sign of one input
# of ReLU in ten million, a step has a hundred thousand, and from the first that turns on, two
# networks go apart, whoever computes them. tanh has no such step.
FIRST = 3
ROUNDING = {"float32": 1e-5, "float32, tanh": 1e-5, "float64": 1e-13}


def check(study, results):
    for name, found in results["equality"].items():
        steps = FIRST if name == "float32" else None
        largest = {
            n: max(r[k][:steps].max() for k in ("loss", "statistics")) for n, r in found.items()
        }
        study.claim(
            f"{name}: over {f'the first {steps}' if steps else 'all'} steps, losses and running "
            f"statistics are the single process's to {ROUNDING[name]:.0e}.",
            max(largest.values()) <= ROUNDING[name],
            largest_difference=largest,
        )
    states = {
        f"{d}, {n}": r["states"]
        for d, found in results["equality"].items()
        for n, r in found.items()
    }
    study.claim(
        "After all steps, weights and running statistics have the same bits in all processes.",
        set(states.values()) == {1},
        different_states=states,
    )
    few = results["few"]
    synchronised, local = (np.mean(few[norm], axis=1) for norm in ("synchronised", "local"))
    study.claim(
        "With 2 images per process, local batch norm is behind the synchronised one, by 0.05 at "
        "least.",
        synchronised[0] - local[0] >= 0.05,
        synchronised=synchronised[0],
        local=local[0],
    )
    study.claim(
        "The more images per process, the less it is behind: with the most, by 0.01 at most.",
        synchronised[-1] - local[-1] <= 0.01,
        behind=synchronised - local,
    )
    found = results["speed"][1024]
    study.claim(
        "With batches of 1024, two processes train at least 1.5 times as many images a second as "
        "one, and exchanges take a tenth of their step at most, waiting included.",
        found[2]["images_per_second"] >= 1.5 * found[1]["images_per_second"]
        and found[2]["exchange"] <= found[2]["step"] / 10,
        ratio=found[2]["images_per_second"] / found[1]["images_per_second"],
        share={n: r["exchange"] / r["step"] for n, r in found.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
