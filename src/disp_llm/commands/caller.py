"""Who asks for a task, and watches it: the command line or a program."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import transformers

from disp_llm.config.errors import InputError
from disp_llm.config.recipes import with_settings
from disp_llm.config.settings import settings_of
from disp_llm.reporting.terminal import progress_bar
from disp_llm.runs.job import never
from disp_llm.runs.progress import ProgressCallback

Settings = TypeVar("Settings")
Command = TypeVar("Command", bound=Any)


@dataclass(frozen=True)
class Caller:
    """Who asked for a task."""

    progress: ProgressCallback | None = None
    """Called as work goes on; None = a bar in terminals and notebooks."""
    stop_requested: Callable[[], bool] = never
    """Asked after every step: whether to write a checkpoint and end."""
    command: str = "disp_llm, from Python"
    """How the task was asked for, for provenance."""

    @classmethod
    def of(cls, options: dict[str, Any]) -> "Caller":
        """Takes its own fields out of the options of a task; settings are left.

        Raises:
            InputError: one of them is no function.
        """
        taken = {f.name: options.pop(f.name, None) for f in fields(cls)}
        given = {name: value for name, value in taken.items() if value is not None}
        for name, value in given.items():
            if name != "command" and not callable(value):
                what = f"cannot be a {type(value).__name__}"
                raise InputError(what, field=name, hint="give a function, or leave it out")
        return cls(**given)

    @classmethod
    def asking(cls, kind: Any, asked: Any, options: dict[str, Any]) -> tuple["Caller", Any]:
        """The caller, and the settings of a task: as they are, or made from the name of a model and
        the options.

        Raises:
            InputError: an option that is no setting.
        """
        caller = cls.of(options)
        if isinstance(asked, kind):
            return caller, with_settings(asked, options)
        needed = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]
        if asked is None and needed[0] in options:
            asked = options.pop(needed[0])
        if not isinstance(asked, str | Path):
            raise InputError(
                "is missing" if asked is None else f"is a {type(asked).__name__} in memory",
                field=needed[0],
                hint="name it" if asked is None else "save it, and name its folder",
            )
        given = {name: options.pop(name) for name in needed[1:] if name in options}
        if len(given) < len(needed) - 1:
            raise InputError("is missing", field=needed[-1], hint="give it")
        return caller, with_settings(kind(**{needed[0]: str(asked)} | given), options)

    @contextlib.contextmanager
    def watching(self) -> Iterator[ProgressCallback]:
        """The callback that this task reports to."""
        with _quiet_libraries():
            if self.progress is not None:
                yield self.progress
            else:
                with progress_bar() as progress:
                    yield progress


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """While the context lasts, transformers draws no bars of its own, which would tear ours."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def takes(kind: type) -> Callable[[Command], Command]:
    """Shows the settings of a command in its signature, so that editors, notebooks and `help`
    complete them with their types and defaults."""

    def with_signature(command: Command) -> Command:
        signature = inspect.signature(command)
        shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {parameter.name for parameter in shown}
        by_name = inspect.Parameter.KEYWORD_ONLY
        for one in settings_of(kind).values():
            if one.name not in known:
                default = inspect.Parameter.empty if one.is_required else one.default
                shown.append(
                    inspect.Parameter(one.name, by_name, default=default, annotation=one.kind)
                )
        progress = ProgressCallback | None
        shown.append(inspect.Parameter("progress", by_name, default=None, annotation=progress))
        command.__signature__ = signature.replace(parameters=shown)
        return command

    return with_signature


def of_kind(config: Any, kind: type[Settings]) -> Settings:
    """All settings at once, as a program has given them.

    Raises:
        InputError: they are those of another task, or none.
    """
    if not isinstance(config, kind):
        raise InputError(
            f"is a {type(config).__name__}, not a {kind.__name__}",
            field="config",
            hint="give settings by their names",
        )
    return config
