"""The dial of quasi-rejection as a figure: the distance to q* against the texts that one returned text costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dinado.errors import DataError

INK, LINE = "#1b1b1b", "#c2410c"


def check_figure(file: str) -> None:
    """Raise :class:`DataError` unless a figure can be written to this file."""
    path = Path(file)
    if path.suffix not in (".svg", ".png", ".pdf") or path.is_dir() or not path.absolute().parent.is_dir():
        raise DataError(f"--figure {file}: name a .svg, .png or .pdf file in a folder that exists")


def draw_dial(points: Sequence[Mapping[str, float]], file: str) -> None:
    """Draw the points of a dial.

    Args:
        points: ``log_beta``, ``rate`` and ``kl`` of each.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.edgecolor": INK, "svg.hashsalt": "dial"})
    figure, axis = plt.subplots(figsize=(4.6, 3.0))
    costs, distances = [1 / point["rate"] for point in points], [point["kl"] for point in points]
    axis.plot(costs, distances, "o-", color=LINE, markersize=5)
    for point, cost, distance in zip(points, costs, distances, strict=True):
        axis.annotate(
            f"{point['log_beta']:.1f}", (cost, distance), (4, 5), textcoords="offset points", fontsize=8, color=INK
        )
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("texts of the model for one that is accepted")
    axis.set_ylabel("KL(q*||accepted), nats")
    axis.set_title("cost and distance by log beta", loc="left", fontsize=10)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)
    plt.close(figure)
