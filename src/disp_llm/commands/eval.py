"""Perplexity, tasks, or a suite of both, of a named model, a folder, or a model in memory."""

import gc
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from disp_llm.commands.api import Inputs, Model, called_with, takes
from disp_llm.commands.report import RecoverResult
from disp_llm.config.commands import EvalConfig
from disp_llm.config.errors import model_is
from disp_llm.config.names import SPEECHES
from disp_llm.config.parts import PlaceConfig, TextConfig
from disp_llm.config.texts import load_suite
from disp_llm.data.example_tokens import ExampleStream
from disp_llm.data.sources import Given, characters_for, named_examples, read_given
from disp_llm.data.spelling import Spelling, byte_lengths
from disp_llm.data.tokens import load_tokens, stream_of
from disp_llm.data.windows import Stream
from disp_llm.evaluation.answers import scored, written_answers
from disp_llm.evaluation.perplexity import perplexity, windows_of
from disp_llm.evaluation.suites import Scoreboard, against
from disp_llm.evaluation.tasks import average, require_tasks, run_tasks
from disp_llm.exporter.exported import original_of
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name
from disp_llm.models.loading import Loaded, load_config, load_tokenizer
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
    """Returns perplexity, size and accuracies of a model: what `disp-llm eval --json` prints.

    Args:
        model: a hub id, a folder, `smollm2-135m`, a model in memory, or what `recover` returned.
        tokenizer: of a model in memory.
        text: what to measure on: paths, strings, a `datasets.Dataset` or token ids. Default: the
            held-out tenth of the embedded speeches.
        examples: a task's examples, whose answers are measured in place of a text: paths, rows of
            prompt and answer, or a `datasets.Dataset` of them.
        config: all settings at once; `options` override them.
        options: settings by the names of their flags (`context=2048`, `windows=0`, `tasks=`,
            `suite="general"`, ...) and `progress`.

    Raises:
        InputError: the model or the text is unusable.
    """
    if isinstance(model, RecoverResult):
        if config is None or config.machine.dtype == "auto":
            options.setdefault("dtype", model.figures["dtype"])
        model = model.folder / "model"
    options |= {"text": text, "examples": examples}
    call = called_with(EvalConfig, {"model": model}, tokenizer, config, options)
    with call.watching() as progress, call.inputs.frozen():
        if call.config.suite:
            return _on_suite(call.config, call.inputs, progress)
        return _evaluated(call.config, call.inputs, progress)


def _evaluated(config: EvalConfig, inputs: Inputs, progress: ProgressCallback) -> dict[str, Any]:
    on_request = counting(progress, "answers")
    tasks = require_tasks(config.tasks) if config.tasks else []
    loaded = inputs.load(config.model, config.machine)
    target = PrunableModel.of(loaded)
    result = _facts_of(loaded, target)
    given = inputs.texts.get("text") or inputs.texts.get("examples")
    if given or config.reads_text:
        stream, names = _evaluation_stream(config, loaded, given)
        config = within_positions(config, loaded.model.config)
        measured = perplexity(target, stream, config.evaluation, counting(progress, "perplexity"))
        result |= names | as_json(measured)
        if isinstance(stream, Tensor):
            windows = windows_of(target, stream, config.evaluation)
            scored_bytes = int(byte_lengths(loaded.tokenizer)[windows[:, 1:]].sum())
            nats = math.log(measured.perplexity) * measured.tokens
            if scored_bytes:  # special tokens have none
                result["bits_per_byte"] = nats / math.log(2) / scored_bytes
        if isinstance(stream, ExampleStream) and not any(one.loss for one in stream.examples):
            asked = stream.within(config.evaluation.tokens).first(config.limit)
            answers = written_answers(target, loaded.tokenizer, asked, on_request)
            result["answers"] = scored(answers, [one.answer for one in asked.examples])
    if tasks:
        result["tasks"] = run_tasks(
            target, loaded.tokenizer, tasks, config.limit, config.shots, on_request
        )
        result["average"] = average(result["tasks"])
    return result


def _facts_of(loaded: Loaded, target: PrunableModel) -> dict[str, Any]:
    """Returns name, revision, data type and size of the measured model."""
    return {
        "model": loaded.source["model"],
        "revision": loaded.source["revision"],
        "dtype": dtype_name(target.dtype),
        "parameters": target.parameters,
        "block_parameters": target.block_parameters,
    }


def _evaluation_stream(
    config: EvalConfig, loaded: Loaded, given: Given | None
) -> tuple[Stream, dict[str, str]]:
    """Returns the tokens to measure on, and where they come from: `text` and `text_sha256`."""
    characters = characters_for(config.evaluation.tokens)
    text = (
        given
        or read_given(config.text, config.dataset, config.text_field, "test", characters=characters)
        or named_examples(config, "examples")
    )
    if text is None:
        texts = load_tokens(TextConfig(text=(Path(SPEECHES),)), loaded.tokenizer, rows=loaded.rows)
        source, digest = texts.names["eval_text"], texts.names["eval_text_sha256"]
        return texts.evaluation, {"text": source, "text_sha256": digest}
    stream = stream_of(text, loaded.tokenizer, loaded.bos_token_id, loaded.rows)
    return stream, {"text": text.measured_name, "text_sha256": text.sha256}


def _on_suite(config: EvalConfig, inputs: Inputs, progress: ProgressCallback) -> dict[str, Any]:
    """Returns a model's suite scores, against its original's if that is known.

    Problems with the suite and with the original are found before the model is measured. The two
    models are never in memory together.
    """
    board = Scoreboard.of(load_suite(config.suite))
    folder = Path(config.model)
    known = original_of(folder) if not inputs.models and folder.is_dir() else ""
    original = config.against or known
    whole = None
    if original:
        with model_is("against"):
            load_config(original)
            whole = load_tokenizer(original)
    facts, scores = _scored(board, inputs, config.model, config.machine, progress, whole)
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
    machine: PlaceConfig,
    progress: ProgressCallback,
    whole: Any = None,
) -> tuple[dict[str, Any], Scores]:
    """Returns facts about a model, and its scores.

    Args:
        whole: the original's tokenizer; if it has more tokens, it divides texts into windows.
    """
    gc.collect()  # frees the model measured before
    loaded = inputs.load(name, machine)
    target, tokenizer, spelling = PrunableModel.of(loaded), loaded.tokenizer, None
    if whole is not None and len(tokenizer) < len(whole):
        tokenizer = whole
        bos = whole.bos_token_id if loaded.family.requires_bos else None
        spelling = Spelling.between(whole, loaded.tokenizer, bos)
    return _facts_of(loaded, target), board.measure(target, tokenizer, progress, spelling)
