"""The front door of every task: what a program hands over in memory.

A task is asked for by settings alone (the command line), or by a model, a tokenizer and text that
lie in memory (Python); both go the same way from here on.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from disp_llm.commands.caller import of_kind
from disp_llm.config.checks import check_settings
from disp_llm.config.errors import InputError
from disp_llm.config.parts import Dtype, MachineConfig, TextConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import apply_recipe, with_settings
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.examples import read_input_examples
from disp_llm.data.given import read_input
from disp_llm.data.sources import InMemory
from disp_llm.models.architectures import family_of
from disp_llm.models.devices import dtype_name
from disp_llm.models.in_memory import (
    frozen,
    require_as_configured,
    require_gradients,
    require_loaded,
)
from disp_llm.models.loading import Loaded, family_of_any, load, require_unquantised
from disp_llm.models.source import fingerprint_of, processor_files
from disp_llm.models.wholeness import require_finite
from disp_llm.runs.folder import Run
from disp_llm.runs.scores import Perplexity

logger = logging.getLogger(__name__)

Model = str | Path | PreTrainedModel

Settings = TypeVar("Settings", bound=PruneConfig | RecoverConfig)


@dataclass(frozen=True)
class Inputs:
    """What lies in memory; None where the settings name it."""

    model: PreTrainedModel | None = None
    tokenizer: Any = None
    texts: InMemory = InMemory()  # noqa: RUF009  (frozen)
    measured: Perplexity | None = None
    """How well the model predicts the evaluation text, where a comparison has measured it."""

    def load(self, name: str, machine: MachineConfig, dense_only: bool = False) -> Loaded:
        """The model in memory, or the one of that name."""
        if self.model is None:
            return load(name, machine, dense_only)
        config = self.model.config
        family = family_of(config) if dense_only else family_of_any(config)
        require_finite(name, self.model)
        source = {"model": name, "revision": fingerprint_of(self.model)}
        beside = processor_files(Path(name), None) if family.tower and Path(name).is_dir() else ()
        if family.tower and not beside:
            logger.warning("%s has no processor beside it: save one into what is exported", name)
        return Loaded(self.model, self.tokenizer, family, source, self.model.dtype, beside)

    def require_same(self, run: Run, revision: str) -> None:
        """Refuses a finished run of another model or text than those in memory, which its settings
        cannot tell apart.

        Args:
            revision: where results keep the hash of the model.
        """
        now, dtype = {}, run.result()["dtype"]
        if self.model is not None:
            now[revision] = fingerprint_of(self.model)
            dtype = dtype_name(self.model.dtype) if revision == "revision" else dtype
        if self.texts.text is not None:
            now["text_sha256"] = self.texts.text.sha256
        if self.texts.eval_text is not None:
            now["eval_text_sha256"] = self.texts.eval_text.sha256
        run.require_same_source(now, dtype)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """While the context lasts, the model in memory has no dropout and takes no gradients, and
        no other task takes it."""
        with contextlib.nullcontext() if self.model is None else frozen(self.model):
            yield


def inputs_of(model: Model | None, tokenizer: Any) -> tuple[str, Inputs]:
    """The name of a model, and what of it lies in memory.

    Raises:
        InputError: something that is no model or has no weights, or a model in memory without its
            tokenizer.
    """
    named = isinstance(model, str | Path)
    if not (named or isinstance(model, PreTrainedModel)):
        is_a = f"is a {type(model).__name__}, and neither a name nor a model of transformers"
        raise InputError(
            "is missing" if model is None else is_a,
            field="model",
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
        return str(model), Inputs()
    require_loaded(model)
    name = str(getattr(model.config, "_name_or_path", "") or f"{model.config.model_type} in memory")
    return name, Inputs(model, tokenizer)


def with_options(
    kind: type[Settings],
    config: Any,
    model: Any,
    tokenizer: Any,
    options: dict[str, Any],
    recipe: dict[str, Any] | None = None,
) -> tuple[Inputs, Settings]:
    """What of a call from Python lies in memory, and its settings.

    Args:
        config: settings of this kind, which the options change; None = those of the recipe.
        recipe: its tables.
    """
    name, inputs = inputs_of(model, tokenizer)
    if config is None:
        config = apply_recipe(kind(name), recipe or {})
    config = replace(of_kind(config, kind), model=name)
    require_gradients(inputs.model)
    if inputs.model is not None:
        family_of_any(inputs.model.config)
        require_unquantised("the model", inputs.model.config)
        require_as_configured(inputs.model)
    given = {name: options.pop(name, None) for name in (*TEXTS, *EXAMPLES)}
    config = with_settings(config, options)
    inputs, named = _with_texts(inputs, config.text, given)
    config = replace(config, text=named, machine=machine_of(inputs, config.machine))
    require_valid(config, inputs)
    return inputs, config


def require_valid(config: PruneConfig | RecoverConfig, inputs: Inputs) -> None:
    """Refuses settings that no run can use, together with what lies in memory."""
    held: dict[str, Any] = {
        field: (IN_MEMORY,)
        for field in (*TEXTS, *EXAMPLES)
        if getattr(inputs.texts, field) is not None
    }
    check_settings(replace(config, text=replace(config.text, **held)))


IN_MEMORY = Path("in memory")
"""Stands in settings for what a program hands over, where they are checked or named."""

TEXTS = ("text", "eval_text")
EXAMPLES = ("examples", "eval_examples")
"""Settings that name files, in place of which a program may hand over what they would hold."""


def _with_texts(
    inputs: Inputs, config: TextConfig, given: dict[str, Any]
) -> tuple[Inputs, TextConfig]:
    """Texts and examples by their setting: files become settings, the rest stays in memory."""
    paths: dict[str, Any] = {}
    held: dict[str, Any] = {}
    for field, what in given.items():
        if what is not None:
            found: Any
            if field in TEXTS:
                found = read_input(what, field, config.text_field)
            else:
                found = read_input_examples(what, config.template, field)
            (paths if isinstance(found, tuple) else held)[field] = found
    inputs = replace(inputs, texts=replace(inputs.texts, **held))
    return inputs, with_settings(config, paths)


LOCAL_NAMES = ("model", "teacher", "weights_from")
"""Settings that name a model of the hub or a local one."""


def machine_of(inputs: Inputs, machine: MachineConfig) -> MachineConfig:
    """The machine settings; a model in memory stays on its device and in its data type, in which
    it is then loaded again where a later command needs it."""
    if inputs.model is None:
        return machine
    if machine.device == "auto":
        machine = replace(machine, device=str(inputs.model.device))
    dtype: Any = dtype_name(inputs.model.dtype)
    if machine.dtype == "auto" and dtype in get_args(Dtype):
        machine = replace(machine, dtype=dtype)
    return machine
