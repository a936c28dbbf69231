"""`disp-llm verify`."""

from typing import Any

from disp_llm.cli.errors import flags_of, with_flags
from disp_llm.commands.verify import verify
from disp_llm.config.verify import VerifyConfig
from disp_llm.reporting.terminal import say


def run(config: VerifyConfig) -> dict[str, Any]:
    """Checks a folder and names what is wrong with it."""
    result = verify(config)
    flags = flags_of("verify")
    for problem in result["problems"]:
        say(f"{problem['file']}: {problem['what']}; {with_flags(problem['hint'], flags)}")
    if result["ok"]:
        say(f"{config.folder}: whole, {result['files']} files ({result['kind']})")
    return result
