"""`--dry-run` of `disp-llm prune` and `disp-llm recover`."""

from typing import Any

from disp_llm.commands.dry_run import dry_run
from disp_llm.reporting.terminal import say


def run(config: Any) -> dict[str, Any]:
    """Says what a command would do."""
    result = dry_run(config)
    for stage, tokens in result["stages"].items():
        say(f"{stage}: {f'{tokens:,} tokens' if tokens else 'as many tokens as there is time for'}")
    memory, free = (result[key] / 2**30 for key in ("memory_bytes", "memory_free_bytes"))
    fits = "fits" if result["fits"] else "does not fit"
    say(f"memory: {memory:.2f} GiB of {free:.2f} on {result['device']}, {fits}")
    if "learning_s" in result:
        say(f"time of learning: at least {result['learning_s']:,.0f} s")
    say(f"nothing was done; {result['output_dir']} would be the run folder")
    return result
