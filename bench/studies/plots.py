"""How the studies' pictures look."""

import numpy as np

# The colours of Okabe and Ito, which the colour-blind can tell apart; the markers differ too.
STYLES = {
    "none": {"color": "#777777", "marker": "s", "label": "no norm"},
    "batch": {"color": "#0072B2", "marker": "o", "label": "batch norm"},
    "layer": {"color": "#D55E00", "marker": "^", "label": "layer norm"},
    "group": {"color": "#009E73", "marker": "v", "label": "group norm"},
    "weight": {"color": "#CC79A7", "marker": "D", "label": "weight norm"},
}


def style(norm):
    return STYLES[norm] | {"markersize": 4, "linewidth": 1.5}


def tidy(axes, xlabel, ylabel, title=None):
    from matplotlib.ticker import NullFormatter

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            axis.set_minor_formatter(NullFormatter())  # they would write over one another


def means(axes, x, repeats, **line):
    """The mean of the repeats, (len(x), repeats), and their range as a band."""
    repeats = np.asarray(repeats)
    (drawn,) = axes.plot(x, repeats.mean(axis=1), **line)
    low, high = repeats.min(axis=1), repeats.max(axis=1)
    axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
    return drawn


def legend(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    options = {"loc": "outside upper right", "ncols": len(labels), "frameon": False}
    figure.legend(handles, labels, fontsize=9, **options)
