"""`disp-llm quantise`."""

from typing import Any

from disp_llm.commands.quantise import quantise_folder
from disp_llm.config.quantise import QuantiseConfig
from disp_llm.reporting.terminal import progress_bar, say


def run(config: QuantiseConfig) -> dict[str, Any]:
    """Writes the quantised folder and says how large its weights are."""
    with progress_bar(plain_lines=True) as progress:
        result = quantise_folder(config, progress)
    size, before = (result[key] / 1e6 for key in ("bytes", "bytes_before"))
    say(f"{result['folder']}: {result['weights']}, {before:,.1f} -> {size:,.1f} MB")
    return result
