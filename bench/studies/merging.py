"""What does it cost the digits to merge the moments of 100,000 parts, in sequence and in a tree?

As many parts of 8 values each as there may be members of a group, their moments merged one after
another, as `fastnorm.Moments.merge` does, and in a binary tree; and in sequence by Chan's formula
with means of one float64 each. The values are integers, so that the exact M2 is known, of which the
errors are parts.

    python bench/studies/merging.py --quick
    python bench/studies/merging.py
"""

import sys
import time
from fractions import Fraction
from functools import reduce

import numpy as np
from study import Study, rows_text

import fastnorm as fn
from fastnorm.reference import merge_moments, moments

MEANS = (0, 10**4, 10**8)  # in standard deviations, about
EACH = 8  # values of a part
BITS = 20  # of a value, beside the mean


def draw(parts, mean, rng):
    """Integers, (parts, EACH, channels), whose standard deviation is 2**BITS."""
    spread = np.rint(2**BITS * rng.standard_normal((parts, EACH, 4))).astype(np.int64)
    return spread + mean * 2**BITS


def exact(values):
    """M2 of each channel as a fraction."""
    n = values.shape[0] * values.shape[1]
    found = []
    for channel in values.reshape(n, -1).T:
        total = sum(channel.tolist())
        squares = sum(v * v for v in channel.tolist())
        found.append(squares - Fraction(total * total, n))
    return found


def in_a_tree(parts):
    while len(parts) > 1:
        odd = [parts[-1]] if len(parts) % 2 else []
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)] + odd
    return parts[0]


def plain(parts):
    """In sequence, a float64 for each mean."""
    return reduce(merge_moments, parts)[2]


def error(m2, truth):
    """The largest relative one of the channels."""
    return max(abs(float((Fraction(v) - t) / t)) for v, t in zip(m2, truth, strict=True))


def main(argv=None):
    study = Study(__doc__, argv)
    counts = (10, 1000) if study.quick else (10, 1000, 100_000)
    rng = np.random.default_rng(study.seed)
    results, rows = {}, []
    for mean in MEANS:
        for count in counts:
            values = draw(count, mean, rng)
            truth = exact(values)
            x = values.astype(np.float64)
            parts = [fn.Moments.of(part) for part in x]
            start = time.perf_counter()
            sequence = fn.Moments.merge(parts)
            seconds = time.perf_counter() - start
            tree = in_a_tree(parts)
            found = {
                "sequence": error(sequence.m2, truth),
                "tree": error(tree.m2, truth),
                "plain": error(plain([moments(part) for part in x]), truth),
            }
            results[f"{mean}, {count}"] = found | {"seconds": seconds}
            rows.append((f"{mean:g}", count, *(f"{found[k]:.1e}" for k in found)))
    study.claim(
        "M2 is right to 1e-12, in sequence and in a tree, whatever the number of parts and the "
        "mean.",
        all(r[k] <= 1e-12 for r in results.values() for k in ("sequence", "tree")),
        largest={k: max(r[k] for r in results.values()) for k in ("sequence", "tree", "plain")},
    )
    most = [f"{m}, {counts[-1]}" for m in MEANS]
    study.claim(
        "With the most parts, a tree's error is not larger than the sequence's.",
        all(results[k]["tree"] <= max(results[k]["sequence"], 1e-15) for k in most),
        sequence=[results[k]["sequence"] for k in most],
        tree=[results[k]["tree"] for k in most],
    )
    header = ("mean / std", "parts", "sequence", "tree", "plain sequence")
    return study.finish(results, "Relative error of M2\n" + rows_text(header, rows))


if __name__ == "__main__":
    sys.exit(main())
