"""Perplexity, tasks, or a suite of both, of a model, a folder, or a model in memory."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from disp_llm.commands.api import IN_MEMORY, Inputs, Model, inputs_of, machine_of
from disp_llm.commands.caller import Caller, of_kind, takes
from disp_llm.commands.results import RecoverResult
from disp_llm.config.checks import check_settings
from disp_llm.config.commands import EvalConfig
from disp_llm.config.errors import model_is
from disp_llm.config.names import SPEECHES
from disp_llm.config.parts import MachineConfig, TextConfig
from disp_llm.config.recipes import with_settings
from disp_llm.config.texts import load_suite
from disp_llm.data.example_tokens import ExampleStream
from disp_llm.data.examples import read_examples, read_input_examples
from disp_llm.data.given import read_input
from disp_llm.data.sources import Given, characters_for, read_given
from disp_llm.data.tokens import Stream, load_tokens, require_length, stream_of
from disp_llm.evaluation.answers import scored, written_answers
from disp_llm.evaluation.perplexity import perplexity
from disp_llm.evaluation.suites import Scoreboard, against
from disp_llm.exporter.exported import original_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import Loaded, load_config
from disp_llm.models.windows import within_positions
from disp_llm.runs.progress import ProgressCallback, counting
from disp_llm.runs.results import as_json
from disp_llm.runs.scores import Scores


@takes(EvalConfig)
def eval(
    model: Model | RecoverResult | None = None,
    tokenizer: Any = None,
    *,
    text: Any = None,
    examples: Any = None,
    config: EvalConfig | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Perplexity, size and accuracies of a model: what `disp-llm eval --json` prints.

    Args:
        model: a hub id, a folder, `smollm2-135m`, a model in memory, or what `recover` returned.
        tokenizer: of a model in memory.
        text: what to measure on: paths, strings, a `datasets.Dataset` or token ids. Default: the
            held-out tenth of the embedded speeches.
        examples: of a task, whose answers are measured in place of a text: paths, rows of prompt
            and answer, or a `datasets.Dataset` of them.
        config: all settings at once, which `options` change.
        options: settings by the names of their flags (`context=2048`, `windows=0`, `tasks=`,
            `suite="general"`, ...) and `progress`.

    Raises:
        InputError: the model or the text is unusable.
    """
    caller = Caller.of(options)
    trained_in = ""
    if isinstance(model, RecoverResult):
        trained_in = model.figures["dtype"]
        model = model.folder / "model"
    name, inputs = inputs_of(model, tokenizer)
    config = EvalConfig(name) if config is None else of_kind(config, EvalConfig)
    config = replace(config, model=name)
    settings: EvalConfig = with_settings(config, options)
    if trained_in and settings.machine.dtype == "auto":
        settings = with_settings(settings, {"dtype": trained_in})
    settings = replace(settings, machine=machine_of(inputs, settings.machine))
    given: Given | None = None
    if text is not None:
        found = read_input(text, column=settings.text_field)
        given, paths = (None, found) if isinstance(found, tuple) else (found, (IN_MEMORY,))
        settings = replace(settings, text=paths)
    if examples is not None:
        read = read_input_examples(examples, settings.template)
        given, paths = (None, read) if isinstance(read, tuple) else (read, (IN_MEMORY,))
        settings = replace(settings, examples=paths)
    check_settings(settings)
    with caller.watching() as progress, inputs.frozen():
        if settings.suite:
            return _on_suite(settings, inputs, progress)
        return _evaluated(settings, inputs, given, progress)


def _evaluated(
    config: EvalConfig, inputs: Inputs, given: Given | None, progress: ProgressCallback
) -> dict[str, Any]:
    on_window, on_request = (counting(progress, stage) for stage in ("perplexity", "answers"))
    loaded = inputs.load(config.model, config.machine)
    target = PrunableModel.of(loaded)
    result = _facts_of(loaded, target)
    if config.reads_text:
        stream, names = _evaluation_stream(config, loaded, given)
        config = within_positions(config, loaded.model.config)
        measured = perplexity(target, stream, config.evaluation, on_window)
        result |= names | as_json(measured)
        if isinstance(stream, ExampleStream) and not any(one.loss for one in stream.examples):
            result["answers"] = _answered(config, target, loaded.tokenizer, stream, on_request)
    if config.tasks:
        from disp_llm.evaluation.tasks import average, run_tasks

        result["tasks"] = run_tasks(loaded, config.tasks, config.limit, config.shots, on_request)
        result["average"] = average(result["tasks"])
    return result


def _facts_of(loaded: Loaded, target: PrunableModel) -> dict[str, Any]:
    """Which model it is that was measured, in what data type, and its size."""
    return {
        "model": loaded.source["model"],
        "revision": loaded.source["revision"],
        "dtype": dtype_name(target.dtype),
        "parameters": target.parameters,
        "block_parameters": target.block_parameters,
    }


def _answered(
    config: EvalConfig,
    target: PrunableModel,
    tokenizer: Any,
    stream: ExampleStream,
    on_answer: Callable[[int, int], None],
) -> dict[str, Any]:
    """What the model's own answers score, to the examples that perplexity is measured on."""
    asked = stream.within(config.evaluation.tokens)
    asked = asked.first(config.limit) if config.limit else asked
    answers = written_answers(target, tokenizer, asked, on_answer)
    return scored(answers, [one.answer for one in asked.examples])


def _evaluation_stream(
    config: EvalConfig, loaded: Loaded, given: Given | None
) -> tuple[Stream, dict[str, str]]:
    """The tokens that are measured on, and where they come from: `text` and `text_sha256`."""
    characters = characters_for(config.evaluation.tokens)
    text = (
        given
        or read_given(config.text, config.dataset, config.text_field, "test", characters=characters)
        or read_examples(config.examples, config.template)
    )
    if text is None:
        texts = load_tokens(TextConfig(text=(Path(SPEECHES),)), loaded.tokenizer)
        source, digest = texts.names["eval_text"], texts.names["eval_text_sha256"]
        return texts.evaluation, {"text": source, "text_sha256": digest}
    stream = stream_of(text, loaded.tokenizer, loaded.bos_token_id)
    if not isinstance(stream, ExampleStream):
        require_length(stream, 2, text.field, text.name)
    return stream, {"text": text.measured_name, "text_sha256": text.sha256}


def _on_suite(config: EvalConfig, inputs: Inputs, progress: ProgressCallback) -> dict[str, Any]:
    """What a model scores on its suite.

    What can be wrong with the suite and with the original is found before the model is measured;
    the two models are never in memory together.
    """
    board = Scoreboard.of(load_suite(config.suite))
    folder = Path(config.model)
    known = original_of(folder) if inputs.model is None and folder.is_dir() else ""
    original = config.against or known
    if original:
        with model_is("against"):
            load_config(original)
    facts, scores = _scored(board, inputs, config.model, config.machine, progress)
    if original:
        with model_is("against"):
            of_original, dense = _scored(board, Inputs(), original, config.machine, progress)
        scores = against(scores, dense)
        facts["original"] = {name: of_original[name] for name in ("model", "revision", "dtype")}
    return facts | as_json(scores)


def _scored(
    board: Scoreboard,
    inputs: Inputs,
    name: str,
    machine: MachineConfig,
    progress: ProgressCallback,
) -> tuple[dict[str, Any], Scores]:
    """Facts about a model, and its scores."""
    gc.collect()  # of the model before
    loaded = inputs.load(name, machine)
    target = PrunableModel.of(loaded)
    return _facts_of(loaded, target), board.measure(target, loaded.tokenizer, progress)
