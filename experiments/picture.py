"""Draws the masks of a run as docs/masks.png.

python experiments/picture.py RUN/selection.safetensors 0.5 [--model smollm2-135m]
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from disp_lab.reporting.canvas import COUNTED, OTHERS, PRUNED, canvas, save
from disp_llm.config.parts import MachineConfig
from disp_llm.masks.layout import STREAM_SITES
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks
from disp_llm.masks.selection_file import load_masks
from disp_llm.models.loading import load


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


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("selection", type=Path)
parser.add_argument("size")
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--to", type=Path, default=Path(__file__).parent.parent / "docs" / "masks.png")
arguments = parser.parse_args()
dense = PrunableModel.of(load(arguments.model, MachineConfig()))
draw_masks(load_masks(arguments.selection, dense.layout, arguments.size), arguments.to)
