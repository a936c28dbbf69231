"""What `disp-llm quantise` can be asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from disp_llm.config.bounds import Sequences, Window, Word, require_declared
from disp_llm.config.checks import require_new, require_outside
from disp_llm.config.effect import Use, require_used
from disp_llm.config.errors import InputError
from disp_llm.config.names import SELF, WeightKind
from disp_llm.config.parts import MachineConfig, TextConfig
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class QuantiseConfig:
    """Copy an exported folder with the linear layers of its blocks in 8 or 4 bits, as transformers
    and vLLM read them."""

    USES: ClassVar = (
        Use(
            "text dataset",
            when=lambda config: config.to == "int4",
            what="calibrates int4; int8 loses next to nothing without",
        ),
        Use(
            "calibration_sequences calibration_length text_field",
            when=lambda config: config.is_calibrated,
            what="is of a calibration, and there is no text for one",
            instead="give `text`",
        ),
    )

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    to: WeightKind
    """int8: a scale for each row, and engines round what a layer reads to 8 bits too, a scale for
    each token. int4: weights alone, a scale for 32 of a row; widths must be multiples of 32
    (`prune --align 32`, `export --align 32`), and layers of other widths stay as they are."""
    output_dir: Path
    """The new folder."""
    text: tuple[Path, ...] = ()
    """Text to calibrate int4 on, such as the model will be used on; read as by `prune`, without its
    last tenth. A number is then rounded with a view to those of its row that were rounded before,
    whose errors it makes up for (GPTQ). Default: each is rounded to the nearest by itself."""
    text_field: Word = "text"
    """Key of .jsonl and .json objects, or column of .csv and .parquet files, that holds the
    text."""
    dataset: str = ""
    """A hub data set in place of --text, as NAME:CONFIG:SPLIT (default split: train)."""
    calibration_sequences: Sequences = 64
    """Number of calibration sequences."""
    calibration_length: Window = 512
    """Tokens of a calibration sequence."""
    machine: MachineConfig = field(default_factory=MachineConfig)

    def validate(self) -> None:
        """Refuses a place that is taken, lies in the folder itself, or cannot be written, and
        calibration text where it changes nothing.

        Raises:
            InputError: naming the field.
        """
        require_declared(self)
        require_used(self)
        require_new(output_dir=self.output_dir)
        require_outside(self.folder, output_dir=self.output_dir)
        self.calibration_text.validate()
        if Path(SELF) in self.text:
            raise InputError(
                "cannot be the model's own words here",
                field="text",
                hint="name the text that it was pruned for",
            )

    @property
    def is_calibrated(self) -> bool:
        """Whether a text is read to round the weights by."""
        return self.calibration_text.learns_from_text

    @property
    def calibration_text(self) -> TextConfig:
        """Where the tokens of the calibration come from."""
        return TextConfig(text=self.text, text_field=self.text_field, dataset=self.dataset)


def begun_dir(output_dir: Path) -> Path:
    """Where a calibration keeps what it has done, until the folder is written."""
    return output_dir.with_name(f"{output_dir.name}.begun")
