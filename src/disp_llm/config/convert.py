"""What `disp-llm convert` and `disp-llm push` can be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from disp_llm.config.bounds import Word
from disp_llm.config.checks import require_new, require_outside
from disp_llm.config.effect import Use, check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.names import SELF
from disp_llm.config.parts import TextConfig
from disp_llm.config.settings import POSITIONAL

Format = Literal["folder", "plain", "gguf", "int8", "int4"]
"""Names of formats; each is a module of `disp_llm.exporter.formats`."""


@dataclass(frozen=True)
class ConvertConfig:
    """Write an exported folder in another format, into a folder of its own."""

    USES: ClassVar = (
        Use(
            "text",
            when=lambda config: config.to == "int4",
            what="calibrates int4 alone",
        ),
    )

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    to: Format
    """folder is a copy to share. plain has the original's own class (prune with --uniform). gguf is
    for llama.cpp (prune with --sites mlp_mid heads). int8 and int4 are for transformers and vLLM;
    int4 needs widths that are multiples of 32 (--align 32)."""
    output_dir: Path
    """The new folder."""
    text: tuple[Path, ...] = ()
    """Text that int4 is calibrated on, by GPTQ. Default: each weight is rounded to the nearest."""
    text_field: Word = "text"
    """Key or column that holds the text, in .jsonl, .json, .csv and .parquet files."""
    device: str = "auto"
    """Device that calibrates: cpu, cuda, ..."""

    def validate(self) -> None:
        """Refuses a place that is taken or lies in the folder, and text that changes nothing."""
        check_settings(self)
        require_new(output_dir=self.output_dir)
        require_outside(self.folder, output_dir=self.output_dir)
        self.calibration.validate()
        if Path(SELF) in self.text:
            raise InputError(
                "cannot be the model's own text here",
                field="text",
                hint="name the text that it was pruned for",
            )

    @property
    def calibration(self) -> TextConfig:
        """Where the tokens of the calibration come from."""
        return TextConfig(text=self.text, text_field=self.text_field)


@dataclass(frozen=True)
class PushConfig:
    """Upload an exported folder to the hub, in one commit."""

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    name: Annotated[Word, POSITIONAL]
    """OWNER/NAME on the hub; it is made where there is none. HF_ENDPOINT names another hub."""
    to: Format = "folder"
    """Format that is uploaded, as `convert` has them."""
    private: bool = False
    """Make the repository private."""

    def validate(self) -> None:
        """Refuses names that no file can have."""
        check_settings(self)
