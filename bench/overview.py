"""Draw the start page's picture from the table "Beside others" of docs/performance.md.

    python bench/overview.py docs/performance.md docs/plots/overview.svg

A line for each of some calls: how many times as long as fastnorm plain NumPy and PyTorch take. The
picture is text, SVG, and has no numbers but those of the table.
"""

import argparse
import math
import re
from pathlib import Path
from xml.sax.saxutils import escape

CALLS = (
    "batch norm inference channels-first 32x64x56x56",
    "batch norm forward channels-first 32x64x56x56",
    "batch norm backward channels-first 32x64x56x56",
    "batch norm forward channels-last 32x56x56x64",
    "batch norm backward channels-last 32x56x56x64",
    "layer norm inference 1x768",
    "layer norm forward 512x768",
    "layer norm backward 512x768",
    "layer norm forward 8192x768",
    "layer norm backward 8192x768",
    "rms norm inference 512x4096",
    "rms norm backward 512x4096",
    "group norm forward channels-first 16x64x56x56 in 32",
    "group norm backward channels-first 16x64x56x56 in 32",
    "weight norm forward 512x4608",
    "weight norm backward 512x4608",
)

# The colours of bench/plot.py.
GREY, ORANGE, BLUE = "#777777", "#D55E00", "#0072B2"
WIDTH, LEFT, RIGHT, TOP, ROW = 760, 330, 30, 58, 24
FIRST, LAST = 0.5, 32  # of the axis


def times(page):
    """Microseconds of reference, PyTorch and fastnorm by call, from the page's text."""
    found = {}
    for call in CALLS:
        row = re.search(rf"^\| {re.escape(call)} \|(.*)$", page, re.MULTILINE)
        if row is None:
            raise ValueError(f"no row for {call!r} in this page")
        found[call] = [float(cell) for cell in row[1].split("|")[:3]]
    return found


def position(ratio):
    """Of a ratio on the axis, which is logarithmic."""
    share = math.log(ratio / FIRST) / math.log(LAST / FIRST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def text(x, y, words, *, anchor="start", colour="#222222", size=13):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def line(x1, y1, x2, y2, colour="#dddddd", width=1):
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width}"/>'
    )


def disc(x, y, colour):
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'


def square(x, y, colour):
    return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" fill="{colour}"/>'


def triangle(x, y, colour):
    points = f"{x:.1f},{y - 6:.1f} {x - 6:.1f},{y + 5:.1f} {x + 6:.1f},{y + 5:.1f}"
    return f'<polygon points="{points}" fill="{colour}"/>'


def legend():
    entries = ((disc, BLUE, "fastnorm"), (triangle, ORANGE, "PyTorch"), (square, GREY, "NumPy"))
    x = LEFT
    for mark, colour, name in entries:
        yield mark(x, 22, colour)
        yield text(x + 12, 26.5, name)
        x += 110


def axis(bottom):
    ratio = FIRST
    while ratio <= LAST:
        x = position(ratio)
        yield line(x, TOP - 8, x, bottom, "#999999" if ratio == 1 else "#e4e4e4")
        yield text(x, TOP - 14, f"{ratio:g}", anchor="middle", colour="#666666", size=11)
        ratio *= 2


def draw(found):
    """The picture of what `times` returns."""
    bottom = TOP + ROW * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 14}" '
        f'font-family="sans-serif" role="img">',
        "<title>Time of a call, fastnorm's being 1</title>",
        f'<rect width="{WIDTH}" height="{bottom + 14}" rx="6" fill="#ffffff"/>',
        text(14, 26.5, "Time of a call, fastnorm's being 1"),
        *legend(),
        *axis(bottom),
    ]
    for number, (call, (reference, pytorch, fastnorm)) in enumerate(found.items()):
        y = TOP + ROW * (number + 0.5)
        slow, other = reference / fastnorm, pytorch / fastnorm
        ends = position(min(1, other)), position(max(slow, other))
        label = call.replace("rms", "RMS").replace("-", " ")
        label = re.sub(r"(?<=\d)x(?=\d)", "\N{MULTIPLICATION SIGN}", label)
        parts += [
            text(14, y + 4, label[0].upper() + label[1:], size=12),
            line(ends[0], y, ends[1], y, "#cccccc", 2),
            square(position(slow), y, GREY),
            triangle(position(other), y, ORANGE),
            disc(position(1), y, BLUE),
        ]
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path, help="docs/performance.md")
    parser.add_argument("picture", type=Path, help="where the SVG goes")
    arguments = parser.parse_args()
    found = times(arguments.page.read_text(encoding="utf-8"))
    arguments.picture.write_text(draw(found), encoding="utf-8")


if __name__ == "__main__":
    main()
