"""`disp-llm gguf`."""

from typing import Any

from disp_llm.config.gguf import GgufConfig
from disp_llm.export.gguf_file import write_gguf
from disp_llm.reporting.terminal import say


def run(config: GgufConfig) -> dict[str, Any]:
    """Writes a GGUF file and says what is in it."""
    result = write_gguf(config)
    say(f"{result['file']}: {result['architecture']}, {result['bytes'] / 1e6:,.1f} MB")
    return result
