"""How a task is called: its settings, what a program hands over in memory, and its callbacks.

The command line gives settings only. A program may also hand over models, a tokenizer and text in
memory. From here on both go the same way.
"""

import contextlib
import inspect
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.parts import PlaceConfig
from disp_llm.config.recipes import apply_recipe, load_recipe, with_settings
from disp_llm.config.settings import settings_of
from disp_llm.data.in_memory import read_input, read_input_examples
from disp_llm.models import in_memory
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import Loaded, load
from disp_llm.models.source import fingerprint_of
from disp_llm.reporting.terminal import progress_bar
from disp_llm.runs.folder import SOURCES, Run, other_source
from disp_llm.runs.job import never
from disp_llm.runs.progress import ProgressCallback
from disp_llm.runs.scores import Perplexity

Model = str | Path | PreTrainedModel

Settings = TypeVar("Settings", bound=Any)
Command = TypeVar("Command", bound=Any)

TEXTS = ("text", "eval_text")
EXAMPLES = ("examples", "eval_examples")
"""Settings that name files; a program may hand over their contents instead."""

Hashes = dict[str, dict[str, str]]
"""SHA-256 of every file that was read, by the setting that names it, then by its path."""

IN_MEMORY = Path("in memory")
"""Stands for what a program hands over: in settings while they are checked, and among the files in
a run's record."""


@dataclass(frozen=True)
class Inputs:
    """What a program hands over in memory, in place of what the settings name."""

    models: Mapping[str, PreTrainedModel] = field(default_factory=dict)
    """Models by the setting that names them: `model`, `teacher`."""
    tokenizer: Any = None
    texts: Mapping[str, Any] = field(default_factory=dict)
    """Texts and examples by the setting that they replace."""
    measured: Perplexity | None = None
    """The model's perplexity on the evaluation text, if a comparison has measured it."""

    def load(
        self, name: str, machine: PlaceConfig, dense_only: bool = False, setting: str = "model"
    ) -> Loaded:
        """Returns the model in memory, or loads the one of that name."""
        model = self.models.get(setting)
        if model is None:
            return load(name, machine, dense_only)
        return in_memory.loaded(name, model, self.tokenizer, dense_only)

    def require_same(self, run: Run) -> None:
        """Refuses a finished run of other models, texts or examples than those in memory: its
        settings cannot tell them apart."""
        had = run.result().get("inputs", {})
        for name, now in self.hashes.items():
            if not run.anyway and had.get(name, now) != now:
                raise other_source(name, run.folder, "it has changed")
        now = {SOURCES[name]: fingerprint_of(model) for name, model in self.models.items()}
        model = self.models.get("model")
        dtype = run.result()["dtype"] if model is None else dtype_name(model.dtype)
        run.require_same_source(now, dtype)

    @property
    def hashes(self) -> Hashes:
        """Hashes of the texts and examples in memory."""
        return {name: {str(IN_MEMORY): given.sha256} for name, given in self.texts.items()}

    def missing_of(self, run: Run) -> list[str]:
        """Returns which texts and examples lay in memory when a run began, and do not now; none if
        the run is to go on `anyway`."""
        had = {} if run.anyway else run.result().get("inputs", {})
        return [name for name in had if str(IN_MEMORY) in had[name] and name not in self.texts]

    def require_learnable(self) -> None:
        """Refuses to learn while gradients are off, and a model whose export would not load."""
        model = self.models.get("model")
        made = model is not None and any(part.is_inference() for part in model.parameters())
        if made or not torch.is_grad_enabled():
            raise InputError(
                "are off here, or were where the weights were made, and learning needs them",
                field="gradients",
                hint="do that outside of torch.no_grad() and torch.inference_mode()",
            )
        if model is not None:
            in_memory.require_as_configured(model)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freezes models in memory while the context lasts: no dropout, no gradients, and no use by
        another task."""
        with contextlib.ExitStack() as stack:
            for model in self.models.values():
                stack.enter_context(in_memory.frozen(model))
            yield


@dataclass(frozen=True)
class Call(Generic[Settings]):
    """One call of a task."""

    config: Settings
    inputs: Inputs = Inputs()
    progress: ProgressCallback | None = None
    """Called as work goes on; None = a bar in terminals and notebooks."""
    stop_requested: Callable[[], bool] = never
    """Called after every step; True = write a checkpoint and end."""
    command: str = "disp_llm, from Python"
    """How the task was started, for provenance."""
    temporary: "TemporaryFolder | None" = None
    """Owner of the run folder, if nobody has named one."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[ProgressCallback]:
        """Yields the callback that the task reports to. Meanwhile transformers draws no bars, which
        would tear ours."""
        bars = transformers.utils.logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            given = self.progress
            with progress_bar() if given is None else contextlib.nullcontext(given) as progress:
                yield progress
        finally:
            if shown:
                bars.enable_progress_bar()


def called(kind: type[Settings], asked: Any, options: dict[str, Any]) -> Call[Settings]:
    """Returns the call of a task, from all of its settings or the value of its first required one.
    Options override settings, or are `progress`, `stop_requested` and `command`."""
    chosen = {*options}
    call = _called(kind, asked, options)
    check_settings(call.config, chosen)
    return call


def _called(kind: type[Settings], asked: Any, options: dict[str, Any]) -> Call[Settings]:
    watching = {name: options.pop(name, None) for name in ("progress", "stop_requested", "command")}
    watching = {name: value for name, value in watching.items() if value is not None}
    for name, value in watching.items():
        if name != "command" and not callable(value):
            what = f"cannot be a {type(value).__name__}"
            raise InputError(what, field=name, hint="give a function, or leave it out")
    if not isinstance(asked, kind):
        first, *others = (one.name for one in settings_of(kind).values() if one.is_required)
        asked = options.pop(first, None) if asked is None else asked
        if not isinstance(asked, str | Path):
            raise InputError(
                "is missing" if asked is None else f"is a {type(asked).__name__} in memory",
                field=first,
                hint="name it" if asked is None else "save it, and name its folder",
            )
        for name in others:
            if name not in options:
                raise InputError("is missing", field=name, hint="give it")
        asked = kind(**{first: str(asked)}, **{name: options.pop(name) for name in others})
    return Call(with_settings(asked, options), **watching)


def called_with(
    kind: type[Settings],
    models: dict[str, Model | None],
    tokenizer: Any,
    config: Settings | None,
    options: dict[str, Any],
) -> Call[Settings]:
    """Returns the call of a task whose models, tokenizer and texts may lie in memory.

    Args:
        models: by the setting that names them.
        config: all settings at once, which the options override; None = those of the recipe, and a
            temporary folder for a run that names none.
    """
    known, temporary = settings_of(kind), None
    names = {field: name_of(model, tokenizer, field) for field, model in models.items()}
    if config is None:
        config = kind(**names)
        if "recipe" in known:
            recipe = load_recipe(str(options.get("recipe", kind.recipe)))
            config = apply_recipe(config, recipe)
        if "output_dir" in known and "output_dir" not in options:
            temporary = TemporaryFolder()
            options["output_dir"] = temporary.path / "run"
    elif not isinstance(config, kind):
        raise InputError(
            f"is a {type(config).__name__}, not a {kind.__name__}",
            field="config",
            hint="give settings by their names",
        )
    elif "recipe" in options:
        config = apply_recipe(replace(config, **names), load_recipe(str(options["recipe"])))
    given = {name: options.pop(name, None) for name in (*TEXTS, *EXAMPLES) if name in known}
    chosen = {*options}
    call = _called(kind, replace(config, **names), options)
    held = {name: model for name, model in models.items() if isinstance(model, PreTrainedModel)}
    named, texts = _read(call.config, given)
    inputs = Inputs(held, tokenizer, texts)
    config = with_settings(call.config, named)
    if "model" in held:
        config = replace(config, machine=in_memory.machine_of(held["model"], config.machine))
    check_settings(with_settings(config, dict.fromkeys(texts, (IN_MEMORY,))), chosen)
    return replace(call, config=config, inputs=inputs, temporary=temporary)


class TemporaryFolder:
    """A folder that is deleted with this object, which the result of a task holds."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="disp-llm-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def name_of(model: Any, tokenizer: Any, field: str) -> str:
    """Returns a model's name. Refuses what is no model or lacks weights or head, and a model in
    memory without its tokenizer."""
    named = isinstance(model, str | Path)
    if not (named or isinstance(model, PreTrainedModel)):
        is_a = f"is a {type(model).__name__}, and neither a name nor a model of transformers"
        raise InputError(
            "is missing" if model is None else is_a,
            field=field,
            hint="name it, or give the model inside it, with adapters merged",
        )
    if not (isinstance(tokenizer, PreTrainedTokenizerBase) or (named and tokenizer is None)):
        kind = "name" if isinstance(tokenizer, str | Path) else type(tokenizer).__name__
        raise InputError(
            "is missing" if tokenizer is None else f"is a {kind}",
            field="tokenizer",
            hint="give the tokenizer of the model in memory, as AutoTokenizer loads it",
        )
    if not isinstance(model, PreTrainedModel):
        return str(model)
    in_memory.require_loaded(model)
    return str(getattr(model.config, "_name_or_path", "") or f"{model.config.model_type} in memory")


def _read(config: Any, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns texts and examples by their settings: those named by files, and those in memory."""
    known = settings_of(type(config))
    files: dict[str, Any] = {}
    held: dict[str, Any] = {}
    for name, what in given.items():
        if what is None:
            continue
        found: Any
        if name in TEXTS:
            found = read_input(what, name, known["text_field"].of(config))
        else:
            found = read_input_examples(what, known["template"].of(config), name)
        (files if isinstance(found, tuple) else held)[name] = found
    return files, held


def takes(kind: type) -> Callable[[Command], Command]:
    """Adds a command's settings to its signature as options, so that editors, notebooks and `help`
    complete them with types and defaults. A settings object may take the place of the first
    argument, or of `config` if there is one."""

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
