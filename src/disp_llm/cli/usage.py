"""The parser's framed complaint about arguments -> one line.

tyro has no stable interface to its errors but what it prints, a box of sections (of +, - and |
where the output is not Unicode):

    ╭─ Unrecognized options ──────────────────╮
    │ Unrecognized options: --stepz, 5        │
    │ ─────────────────────────────────────── │
    │ Perhaps you meant:                      │
    │     --steps INT                         │
    ...
"""

import re
from itertools import groupby

from disp_llm.config.errors import InputError

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
RULE = re.compile(r"[─╰╯+-]*")
FLAG = re.compile(r"--[a-z][a-z_-]*")

PRUNED_SHARES = {
    *("--sparsity", "--sparsity-ratio", "--ratio", "--amount"),
    *("--pruning-ratio", "--prune-ratio", "--compression-ratio"),
}
"""What other tools call the share that is pruned."""


def usage_error(box: str, program: str) -> InputError:
    """What is wrong with the arguments: the first section of the box, and the flag that may have
    been meant.

    Args:
        program: how the command is called, such as `disp-llm prune`.
    """
    complaint, *others = _sections(box) or [["unusable arguments"]]
    what = " ".join(complaint).rstrip(".")
    given = FLAG.findall(what)
    offered = [line.split()[0] for lines in others for line in lines if line.startswith("--")]
    hint = f"see {program} --help"
    if PRUNED_SHARES & {flag.replace("_", "-") for flag in given}:
        hint = "give the share that stays: a sparsity of 0.3 is --keep 0.7"
    elif given and offered and offered[0] not in given:
        hint = f"perhaps {offered[0]} was meant; {hint}"
    return InputError(what, field=given[0] if given else program, hint=hint)


def _sections(box: str) -> list[list[str]]:
    """The lines between the rules of a box, without its frame and title."""
    lines = [line.strip("│| ") for line in COLOUR.sub("", box).splitlines()[1:]]
    grouped = groupby(lines, key=lambda line: not RULE.fullmatch(line))
    return [list(section) for is_text, section in grouped if is_text]
