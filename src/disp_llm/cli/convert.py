"""`disp-llm convert`."""

from typing import Any

from disp_llm.commands.convert import convert
from disp_llm.config.convert import ConvertConfig
from disp_llm.reporting.terminal import progress_bar, say


def run(config: ConvertConfig) -> dict[str, Any]:
    """Writes the folder and says how large it is."""
    with progress_bar(plain_lines=True) as progress:
        result = convert(config, progress=progress)
    say(f"{result['folder']}: {result['to']}, {result['bytes'] / 1e6:,.1f} MB")
    return result
