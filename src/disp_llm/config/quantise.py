"""What `disp-llm quantise` can be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from disp_llm.config.checks import require_new, require_outside, require_paths
from disp_llm.config.names import WeightKind


@dataclass(frozen=True)
class QuantiseConfig:
    """Copy an exported folder with the linear layers of its blocks in 8 or 4 bits, as transformers
    and vLLM read them."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """An exported folder, such as run/model."""
    to: WeightKind
    """int8: a scale for each row, and engines round what a layer reads to 8 bits too, a scale for
    each token. int4: weights alone, a scale for 32 of a row; widths must be multiples of 32
    (`prune --align 32`, `export --align 32`), and layers of other widths stay as they are."""
    output_dir: Path
    """The new folder."""
    json: bool = False
    """Print one JSON object on standard output."""

    def validate(self) -> None:
        """Refuses a place that is taken, lies in the folder itself, or cannot be written.

        Raises:
            InputError: naming the field.
        """
        require_paths(self)
        require_new(output_dir=self.output_dir)
        require_outside(self.folder, output_dir=self.output_dir)
