"""Draws the masks of a run as docs/masks.png.

python experiments/picture.py RUN/selection.safetensors 0.5 [--model smollm2-135m]
"""

import argparse
from pathlib import Path

from disp_llm.config.parts import MachineConfig
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection_file import load_masks
from disp_llm.models.loading import load
from disp_llm.reporting.run_plots import draw_masks

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("selection", type=Path)
parser.add_argument("size")
parser.add_argument("--model", default="smollm2-135m")
parser.add_argument("--to", type=Path, default=Path(__file__).parent.parent / "docs" / "masks.png")
arguments = parser.parse_args()
dense = PrunableModel.of(load(arguments.model, MachineConfig()))
draw_masks(load_masks(arguments.selection, dense.layout, arguments.size), arguments.to)
