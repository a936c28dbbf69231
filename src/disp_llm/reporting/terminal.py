"""Prints results to standard output, and progress to standard error or into a notebook."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from disp_llm.config.errors import printable
from disp_llm.runs.progress import ProgressCallback, downloads, silent


class LineConsole(Console):
    """Console that prints names unchanged, and moves the cursor only in a real terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Makes text printable; every word and table cell passes through here."""
        return super().render_str(printable(text), **options)

    @property
    def is_terminal(self) -> bool:
        """Whether the output is a real terminal, whatever `FORCE_COLOR` says."""
        return self.file.isatty() and not self.is_jupyter


# Names may contain brackets and colons, so markup and emoji codes are off.
messages = LineConsole(stderr=True, highlight=False, markup=False, emoji=False)
"""Console for progress."""

results = LineConsole(highlight=False, markup=False, emoji=False)
"""Console for the results of a command. With `--json`, standard output holds only the JSON object,
and this console writes to standard error."""

if not (results.is_terminal or results.is_jupyter):
    results.width = 1000  # a file has no width: do not wrap tables


def say(line: str) -> None:
    """Prints one line of a result without line breaks; a terminal may still wrap it."""
    results.print(line, soft_wrap=True)


def pieces() -> Callable[[str, str], None]:
    """Returns a function that prints pieces (name, piece) of several texts as they arrive, one text
    after another, each below its name."""
    last = ""

    def show(name: str, piece: str) -> None:
        nonlocal last
        if name != last:
            last = name
            say(f"[{name}]")
        if not results.quiet:
            results.file.write("".join(one for one in piece if one.isprintable() or one in "\n\t"))
            results.file.flush()

    return show


def typed_lines() -> Iterator[str]:
    """Yields the lines of standard input, with a prompt for each in a terminal."""
    if sys.stdin is None:  # closed, as by `<&-`
        return
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "")
            yield said.encode(errors="surrogateescape").decode(errors="replace")
        except EOFError:
            return


@contextmanager
def progress_bar(plain_lines: bool = False) -> Iterator[ProgressCallback]:
    """Yields a callback that draws a bar per stage, with loss, keep and tokens/s during training.

    Args:
        plain_lines: whether to print, outside of terminals and notebooks, a line when a stage
            begins and at each tenth of it; otherwise nothing is shown there.
    """
    drawn = nullcontext(_lines() if plain_lines else silent)
    if messages.is_terminal:
        drawn = _bars()
    elif messages.is_jupyter:
        drawn = _notebook_line()
    with drawn as callback:
        before = downloads.set(None if callback is silent else callback)
        try:
            yield callback
        finally:
            downloads.reset(before)


@contextmanager
def _notebook_line() -> Iterator[ProgressCallback]:
    """Redraws one line and clears it at the end. Without ipywidgets, rich's own bar would print
    a new line for every update."""
    from IPython.display import display

    line: Any = display({"text/plain": ""}, raw=True, display_id=True)
    drawn = 0.0

    def draw(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
        nonlocal drawn
        if done == total or time.monotonic() - drawn > 0.1:  # each update is a message
            drawn = time.monotonic()
            line.update({"text/plain": _line(stage, done, total, figures)}, raw=True)

    try:
        yield draw
    finally:
        line.update({"text/plain": ""}, raw=True)


@contextmanager
def _bars() -> Iterator[ProgressCallback]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=messages) as drawn:

        def draw(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
            if stage not in bars:
                bars[stage] = drawn.add_task(printable(stage), total=total, figures="")
            drawn.update(bars[stage], completed=done, total=total, figures=_beside_bar(figures))

        yield draw


def _lines() -> ProgressCallback:
    tenths: dict[str, int] = {}

    def print_line(stage: str, done: int, total: int, figures: dict[str, Any]) -> None:
        tenth = done * 10 // total
        if stage not in tenths or done == total or tenth > tenths[stage]:
            tenths[stage] = tenth
            messages.print(_line(stage, done, total, figures), soft_wrap=True)

    return print_line


def _line(stage: str, done: int, total: int, figures: dict[str, Any]) -> str:
    return f"{stage} {done}/{total} {_beside_bar(figures)}".rstrip()


def _beside_bar(figures: dict[str, Any]) -> str:
    """Returns `loss 3.214  keep 0.5000  812 tokens/s`; empty for stages without a loss."""
    if "loss" not in figures:
        return ""
    parts = [f"loss {figures['loss']:.3f}"]
    if "keep" in figures:
        parts.append(f"keep {figures['keep']:.4f}")
    return "  ".join([*parts, f"{figures['tokens_per_s']:.0f} tokens/s"])
