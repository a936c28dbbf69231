"""What `disp-llm save` and `disp-llm push` can be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from disp_llm.config.bounds import License, Word, require_declared
from disp_llm.config.checks import require_new, require_outside
from disp_llm.config.settings import POSITIONAL


@dataclass(frozen=True)
class SaveConfig:
    """Copy what belongs in an exported folder to a place of its own, with a card that names it."""

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    to: Path
    """The new folder."""
    plain: bool = False
    """Write the original's own architecture, which any engine loads: possible where blocks differ
    from the original by one and the same intermediate width, number of KV heads and, in mixtures,
    number of experts (--uniform)."""
    license: License = ""
    """Licence by the hub's name for it, such as apache-2.0. Default: that of the original."""

    def validate(self) -> None:
        """Refuses a place that is taken, lies in the folder itself, or cannot be written.

        Raises:
            InputError: naming the field.
        """
        require_declared(self)
        require_new(to=self.to)
        require_outside(self.folder, to=self.to)


@dataclass(frozen=True)
class PushConfig:
    """Upload what belongs in an exported folder to the hub, with its card, in one commit."""

    folder: Annotated[Path, POSITIONAL]
    """An exported folder, such as run/keep-0.5."""
    name: Annotated[Word, POSITIONAL]
    """OWNER/NAME on the hub; created where there is none. HF_ENDPOINT names another hub."""
    private: bool = False
    """Make the repository private."""
    license: License = ""
    """Licence by the hub's name for it, such as apache-2.0. Default: that of the original."""
    message: Word = "Upload a model pruned by disp-llm"
    """Message of the commit."""

    def validate(self) -> None:
        """Refuses names that no file can have.

        Raises:
            InputError: naming the field.
        """
        require_declared(self)
