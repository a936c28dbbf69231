"""The flags that `disp-llm COMMAND --help` lists, from what each command declares: a part of
docs/commands.md."""

from textwrap import wrap

from disp_llm.cli.flags import usual_settings_of
from disp_llm.cli.parsing import all_settings
from disp_llm.config.settings import settings_of


def settings_table() -> list[str]:
    """A line a command: what it is given by place, then its flags."""
    lines = []
    for command, kind in all_settings().items():
        settings = settings_of(kind)
        by_place = [name for name in settings if settings[name].is_positional]
        named = [name for name in usual_settings_of(kind) or settings if name not in by_place]
        flags = (settings[name].flag for name in by_place + named)
        line = " ".join([f"{command:7}", *flags])
        lines += wrap(line, 100, subsequent_indent=" " * 8, break_on_hyphens=False)
    return ["```", *lines, "```"]
