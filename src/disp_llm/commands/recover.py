"""After pruning: the weights that were kept learn to make up for those that were pruned.

A compact (or dense) model and text -> a folder of the same contract. The loss is cross-entropy, the
divergence from the original model (arXiv 1503.02531), or both.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from disp_llm.commands.api import Inputs, Model, inputs_of, with_options
from disp_llm.commands.caller import Caller, takes
from disp_llm.commands.inputs import input_hashes
from disp_llm.commands.measuring import Measuring, scoreboard_of, scores_of_original
from disp_llm.commands.placement import as_begun, first_alone
from disp_llm.commands.recovery_models import (
    Models,
    dtypes_of,
    load_models,
    put_together,
    teacher_of,
    to_measure,
    with_dtypes,
    with_windows,
)
from disp_llm.commands.results import RecoverResult
from disp_llm.commands.session import begin, load_texts, run_in_folder, with_folder
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.sources import Needs, Sources, held_out, read_sources
from disp_llm.data.tokens import Texts
from disp_llm.exporter.card import write_recovered_card
from disp_llm.exporter.facts import BEHIND, read_facts, size_of
from disp_llm.exporter.folders import weight_bytes, write_folder
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.windows import require_positions
from disp_llm.runs.files import atomic
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.runs.results import MeasuredResult, as_json
from disp_llm.runs.scores import Scores
from disp_llm.runs.sums import write_sums
from disp_llm.training.checkpoints import gathered
from disp_llm.training.losses import Teacher
from disp_llm.training.weights import train_weights


@takes(RecoverConfig)
def recover(
    model: Model | None = None,
    tokenizer: Any = None,
    *,
    teacher: Model | None = None,
    config: RecoverConfig | None = None,
    **options: Any,
) -> RecoverResult:
    """Trains a pruned model, with the original as teacher.

    Args:
        model: an exported folder, any other model, or one in memory, whose weights are trained in
            place.
        tokenizer: of a model in memory.
        teacher: the original, by name or in memory. Default: the one that the folder's card names.
        config: all settings at once, which `options` change.
        options: settings by the names of their flags (`text=`, `tokens=100_000`, ...)
            and `progress`. Without an `output_dir` the run lies in a temporary folder.

    Raises:
        InputError: something that the caller can correct.
        Interrupted: the task was asked to stop while training; `resume` goes on.
    """
    caller = Caller.of(options)
    taught, temporary = Inputs(), None
    if teacher is not None:
        options["teacher"], taught = inputs_of(teacher, tokenizer)
    if config is None:
        temporary = with_folder(options)
    inputs, config = with_options(RecoverConfig, config, model, tokenizer, options)
    run, figures, device = run_in_folder(caller, config, (inputs, taught), run_stages)
    return RecoverResult(run.folder, figures, device, temporary)


def run_stages(job: Job[RecoverConfig], inputs: Inputs, taught: Inputs) -> None:
    """Everything between an empty folder and an exported model, as far as it is not there."""
    files = input_hashes(job.config) if job.process.is_main else {}
    job, board = as_begun(job), scoreboard_of(job.config.suite, _original_scores(job.run))
    sources = read_texts(job, inputs)
    models = load_models(job, inputs, taught, sources.writes)
    job = with_windows(job, models)
    texts = write_texts(job, models, sources)
    source = models.student.source | texts.names
    if models.original is not None:
        source["teacher_revision"] = models.original.source["revision"]
    begin(job, models.student, job.asked or job.config, files, **source)
    measuring = Measuring.of(job, texts, models.student.tokenizer, board)
    teacher = teacher_of(job.config, models.original)
    first_alone(job, models.student, measure_before, job, models, measuring, teacher)
    made, tokens = train(job, models, teacher, texts)
    first_alone(job, models.student, export, job, models, made, measuring, tokens)
    job.process.accelerator.end_training()


def read_texts(job: Job[RecoverConfig], inputs: Inputs) -> Sources:
    """The texts that are named or lie in memory, before a model is loaded.

    Large data sets are read as far as masks or weights have learned from them: the end of less
    would be held out.
    """
    config = job.config
    learned = read_facts(config.model).get("tokens_seen", 0)
    wanted = max(tokens_before(config) + config.tokens, learned)
    return read_sources(config.text, inputs.texts, wanted, config.evaluation.tokens)


def write_texts(job: Job[RecoverConfig], models: Models, sources: Sources) -> Texts:
    """Learning and evaluation text, of which the original writes what is its own."""
    config, student, length = job.config, models.student, job.config.training.length
    learning = config.steps(job.process.count) * config.training.tokens_per_step * job.process.count
    needs = Needs(learning, held_out(config.text, config.evaluation, learning))

    # Masks and earlier trainings have read other text: this one measures what is won.
    noise = "recovery words", config.machine.seed, tokens_before(config)
    author, stored = models.original or student, job.asked or config
    texts = load_texts(job, student, sources, stored, author, needs, *noise)
    texts.corpus.require_length(length, "length")
    for model in models:
        require_positions(model, texts.longest_window(config.evaluation), "context")
    return texts


def _original_scores(run: Run) -> Scores | None:
    """What the original scores on the suite, once that is known."""
    found = run.figures
    return found.original_scores if found else None


def measure_before(
    job: Job[RecoverConfig], models: Models, measuring: Measuring, teacher: Teacher | None
) -> None:
    """What the model is before it is trained, what its teacher is and, with a suite, what the
    original scores; measured once a run."""
    student, found = PrunableModel.of(models.student), job.run.result()
    if "before" not in found:
        measured = measuring.perplexity(student, "perplexity before")
        scores, known = measuring.scores(student, "before"), {}
        if scores is not None:
            original = scores_of_original(measuring, Path(job.config.model), scores, teacher)
            if original is not None:
                from disp_llm.evaluation.suites import against

                scores = against(scores, original)
                known = {"original_scores": original}
        job.run.update(before=MeasuredResult(measured, scores), **known)
    if teacher is not None and "teacher" not in found:
        job.run.update(teacher=measuring.perplexity(teacher.target, "perplexity of the teacher"))


def train(
    job: Job[RecoverConfig], models: Models, teacher: Teacher | None, texts: Texts
) -> tuple[Callable[[], PreTrainedModel], int]:
    """Trains the student in place.

    Returns:
        What puts the trained model together, whole, and the number of tokens that it has read.
    """
    config, loaded = job.config, models.student
    dtypes, student = dtypes_of(loaded.model), PrunableModel.of(loaded)
    before = tokens_before(config)
    steps = train_weights(job, student, teacher, texts.corpus, loaded.dtype, before)
    job.process.wait()
    tokens = steps * config.training.tokens_per_step * job.process.count
    if loaded.sharding is None:
        return lambda: with_dtypes(loaded.model, dtypes), tokens
    tensors = gathered(loaded.model.state_dict(), job.process.is_main)
    return lambda: put_together(config, loaded, tensors), tokens


def export(
    job: Job[RecoverConfig],
    models: Models,
    make: Callable[[], PreTrainedModel],
    measuring: Measuring,
    tokens: int,
) -> None:
    """Writes the trained model with its figures and its card, unless it is there.

    Args:
        make: puts the trained model together.
        tokens: how many it was trained on.
    """
    config, run = job.config, job.run
    folder, loaded = run.model_folder, models.student
    if run.has(folder):
        return
    made = make()
    with atomic(folder) as written:
        write_folder(made, loaded.tokenizer, written, loaded.processor)
        with to_measure(config, made, loaded, written) as model:
            measured = measuring.perplexity(model, "perplexity after")
            scores = measuring.scores(model, "after", _original_scores(run))
            sizes = _sizes(model, written, read_facts(config.model).get("original", {}))
        figures = as_json(MeasuredResult(measured, scores)) | sizes
        write_recovered_card(
            Path(config.model), written, figures, _training(config, run.result(), tokens)
        )
        write_sums(written)
    run.update(
        folder,
        *run.log,
        model=figures | {"folder": str(folder)},
        tokens_seen=tokens,
        tokens_before=tokens_before(config),
    )


def tokens_before(config: RecoverConfig) -> int:
    """How many tokens the weights that training begins with were trained on before, by earlier
    recoveries: of this folder, or of the larger size that they are from."""
    told = read_facts(config.weights_from or config.model).get("recovered") or {}
    return told.get("tokens_before", 0) + told.get("tokens_seen", 0)


def _training(config: RecoverConfig, result: dict[str, Any], tokens: int) -> dict[str, Any]:
    """What the card tells of the training."""
    on_suite, source = ("general_ratio", "kept"), result["source"]
    larger = config.weights_from
    scores = result["before"].get("scores", {})
    before = {f"before_{key}": scores.get(key) for key in on_suite}
    pruned_from = read_facts(config.model).get("source", {}).get("revision")
    if "teacher" in result and source["teacher_revision"] == pruned_from:
        teacher = {key: of for key, of in result["teacher"].items() if key not in BEHIND}
        before |= {"original": teacher}
    return before | {
        "distill": config.training.distill,
        "tokens_before": tokens_before(config),
        "weights_from": larger and size_of(Path(larger)),
        "tokens_seen": tokens,
        "text": source["text"],
        "eval_text": source["eval_text"],
        "eval_text_sha256": source["eval_text_sha256"],
        "before": result["before"]["measured"]["perplexity"],
        "command": result["command"],
    }


def _sizes(model: PrunableModel, folder: Path, dense: dict[str, Any]) -> dict[str, Any]:
    """Sizes of the result, and as shares of the original's (of its own, if it was not pruned)."""
    blocks, parameters = model.block_parameters, model.parameters
    return {
        "keep": blocks / dense.get("block_parameters", blocks),
        "keep_total": parameters / dense.get("parameters", parameters),
        "parameters": parameters,
        "block_parameters": blocks,
        "bytes": weight_bytes(folder),
    }
