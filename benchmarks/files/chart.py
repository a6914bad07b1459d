"""Draws the rows per second of each contestant, with a panel for each number of rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.summary import OURS

LABELS = {"millrace": "Millrace", "plain_loop": "plain loop, no Beam", "stock_beam": "stock Beam"}
COLOURS = {"millrace": "#1b6ca8", "plain_loop": "#8a8f98", "stock_beam": "#c98a2b"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG. Bars are medians, and whiskers reach from the minimum to the maximum."""
    sizes = results["sizes"]
    figure, panels = plt.subplots(
        len(sizes), 1, figsize=(9, 0.9 + 1.75 * len(sizes)), sharex=True, squeeze=False
    )
    for axes, size in zip(panels[:, 0], sizes, strict=True):
        _draw_size(axes, size)
    panels[-1, 0].set_xlabel("million rows per second, from file to file (median, min and max)")
    machine = results["machine"]
    figure.suptitle(
        f"Parquet in, score + {results['latent']} latent values out, "
        f"{machine['cores']} cores ({machine['cpu']})",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_size(axes: Axes, size: Mapping[str, Any]) -> None:
    """Draw a panel with a bar for each contestant."""
    contestants = size["contestants"]
    names = [name for name in LABELS if name in contestants]
    for place, name in enumerate(names):
        rate = {key: value / 1e6 for key, value in contestants[name]["rows_per_second"].items()}
        median = rate["median"]
        reach = [[median - rate["min"]], [rate["max"] - median]]
        axes.barh(place, median, color=COLOURS[name], xerr=reach, capsize=3, height=0.65)
        axes.annotate(
            _text(name, size),
            (rate["max"], place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, max(axes.get_xlim()[1], axes.dataLim.x1 * 1.6))
    axes.set_title(f"{size['rows']:,} rows", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _text(name: str, size: Mapping[str, Any]) -> str:
    """Return the rate of a contestant, Millrace's multiple of it, and its rows if they differ."""
    contestant = size["contestants"][name]
    text = f"{contestant['rows_per_second']['median']:,.0f} rows/s"
    ratio = size["ratios"].get(f"{OURS}/{name}")
    if ratio:
        text += f", Millrace {ratio:.3g}x that"
    if contestant["rows"] != size["rows"]:
        text += f" (on {contestant['rows']:,} rows)"
    return text
