"""Plots of one run: its curve of perplexity against keep, and its masks."""

from pathlib import Path
from typing import Any

import numpy as np

from disp_llm.masks.layout import STREAM_SITES
from disp_llm.masks.selection import Masks
from disp_llm.reporting.canvas import COUNTED, OTHERS, PRUNED, canvas, save


def draw_masks(masks: Masks, path: Path) -> None:
    """The share of every site that every block keeps, and which dimensions of the residual stream
    it reads and writes (the paper's Fig. 6).

    Raises:
        InputError: the file cannot be written.
    """
    sites = masks.layout.sites
    parts = [part.numpy() for part in masks.layout.split(masks.kept)]
    of_site: dict[str, list[np.ndarray]]
    of_site = {site: parts[place :: len(sites)] for place, site in enumerate(sites)}
    stream = [site for site in STREAM_SITES if site in of_site]
    figure = canvas(9.6, 6.4)
    grid = figure.add_gridspec(2, len(stream), height_ratios=(1.1, 1))
    _draw_shares(figure.add_subplot(grid[0, :]), of_site)
    for place, site in enumerate(stream):
        axis = figure.add_subplot(grid[1, place])
        _draw_stream(axis, site, np.stack(of_site[site]))
        axis.set_ylabel("block") if place == 0 else axis.set_yticks([])
    save(figure, path)


def _draw_shares(axes: Any, of_site: dict[str, list[np.ndarray]]) -> None:
    """A line for each site: the share of its entries that every block keeps."""
    axes.spines[["top", "right"]].set_visible(False)
    for (site, parts), color in zip(of_site.items(), (PRUNED, COUNTED, *OTHERS), strict=False):
        kept = [part.mean() for part in parts]
        axes.plot(kept, label=site, color=color, linewidth=1.8, marker="o", markersize=3)
    axes.set_ylim(0, 1)
    axes.set_xlabel("block")
    axes.set_ylabel("share that is kept")
    axes.legend(frameon=False, ncols=len(of_site), loc="lower center", bbox_to_anchor=(0.5, 1))


def _draw_stream(axes: Any, site: str, kept: np.ndarray) -> None:
    """A row for each block, a column for each dimension of the residual stream."""
    from matplotlib.colors import ListedColormap

    colors = ListedColormap(["white", PRUNED])
    axes.imshow(kept, aspect="auto", interpolation="nearest", cmap=colors)
    axes.set_title(site, fontsize=9)
    axes.set_xlabel("dimension of the stream")
