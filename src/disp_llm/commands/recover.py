"""Recovery after pruning: trains the kept weights to make up for the pruned ones.

A compact (or dense) model and text -> an exported model folder, as `prune` writes them. The loss is
cross-entropy, the divergence from the original model (arXiv 1503.02531), or a mix of both.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from disp_llm.commands.api import Inputs, Model, called_with, takes
from disp_llm.commands.engines import converted, require_readable
from disp_llm.commands.recovery_models import (
    Dtypes,
    dtypes_of,
    load_models,
    trained_model,
)
from disp_llm.commands.report import RecoverResult
from disp_llm.commands.session import (
    as_begun,
    begin,
    end,
    first_alone,
    input_hashes,
    load_texts,
    run_in_folder,
)
from disp_llm.config.errors import model_is
from disp_llm.config.recover import RecoverConfig
from disp_llm.config.schema import as_type
from disp_llm.data.sources import Needs, Sources, held_out, read_sources
from disp_llm.data.spelling import Spelling
from disp_llm.data.tokens import Texts
from disp_llm.evaluation.measuring import Measuring, scoreboard_of
from disp_llm.evaluation.suites import against, difference
from disp_llm.exporter.card import write_recovered_card
from disp_llm.exporter.facts import BEHIND, FACTS, read_facts, size_of, tokens_measured
from disp_llm.exporter.folders import weight_bytes, write_folder
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import Loaded
from disp_llm.models.trimming import trimmed_like
from disp_llm.models.windows import require_pieces, require_positions, within_positions
from disp_llm.runs.files import atomic
from disp_llm.runs.folder import Run
from disp_llm.runs.job import Job
from disp_llm.runs.results import MeasuredResult, OriginalResult, as_json
from disp_llm.runs.scores import Scores
from disp_llm.runs.sums import CHANGED_FOLDER, write_sums
from disp_llm.training.checkpoints import gathered
from disp_llm.training.losses import Teacher, in_fewer_tokens
from disp_llm.training.rounding import require_fit, rounded
from disp_llm.training.weights import train_weights

logger = logging.getLogger(__name__)


@takes(RecoverConfig)
def recover(
    model: Model | None = None,
    tokenizer: Any = None,
    *,
    teacher: Model | None = None,
    config: RecoverConfig | None = None,
    **options: Any,
) -> RecoverResult:
    """Trains a pruned model, by default with the original as teacher.

    Args:
        model: an exported folder, any other model, or a model in memory, which is trained in place.
        tokenizer: of a model in memory.
        teacher: the original, by name or in memory. Default: the one that the folder names.
        config: all settings at once; `options` override them.
        options: settings by the names of their flags (`text=`, `tokens=100_000`, ...) and
            `progress`. Without `output_dir` and `config` the run lies in a temporary folder.

    Raises:
        InputError: something that the caller can correct.
        Interrupted: the task was asked to stop while training; `resume` continues it.
    """
    models = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    call = called_with(RecoverConfig, models, tokenizer, config, options)
    return run_in_folder(call, run_stages, RecoverResult)


def run_stages(job: Job[RecoverConfig], inputs: Inputs) -> None:
    """Runs the stages from an empty folder to an exported model, skipping those already done."""
    files = input_hashes(job.config) | inputs.hashes if job.process.is_main else {}
    if "model" not in inputs.models:
        require_readable(Path(job.config.model), job.config.demands)
    job, board = as_begun(job), scoreboard_of(job.config.suite, _original_scores(job.run))
    sources = read_texts(job, inputs)
    student, original = load_models(job, inputs, sources.writes)
    require_fit(PrunableModel.of(student), job.config.bits)
    spelling = spelling_of(student, original)
    job = with_windows(job, student, original, fewer_tokens=spelling is not None)
    texts = write_texts(job, student, original, sources, spelling)
    source, distill = student.source | texts.names, job.config.training.distill
    measuring = Measuring.of(job, texts, (original or student).tokenizer, board)
    corpus, teacher = texts.corpus, None
    if original is not None:
        source["teacher_revision"] = original.source["revision"]
        if distill:
            with model_is("teacher"):
                teaching = PrunableModel.of(trimmed_like(original, student.tokenizer))
            head = None
            if spelling is not None:
                whole = PrunableModel.of(original).head
                head = in_fewer_tokens(whole, spelling.first, len(student.tokenizer))
            teacher = Teacher(teaching, distill, head=head)
        if spelling is not None:
            corpus = spelling.corpus(corpus, student.bos_token_id)
            corpus.require_length(job.config.training.length, "length")
            measuring = replace(measuring, spelling=spelling)
    measuring.require_suite(PrunableModel.of(student))
    begin(job, student, files, **source)
    teaches = original if distill else None
    first_alone(job, student, measure_before, job, student, measuring, teaches)
    dtypes, target = dtypes_of(student.model), PrunableModel.of(student)
    before = tokens_before(job.config)
    if "model" not in inputs.models and job.run.has(job.run.model_folder):
        steps = job.config.steps(job.process.count)  # trained: its checkpoints are gone
    else:
        steps = train_weights(job, target, teacher, corpus, student.dtype, before)
    job.process.wait()
    parts = {} if student.sharding is None else student.model.state_dict()
    tensors = gathered(parts, job.process.is_main)
    first_alone(job, student, export, job, student, dtypes, tensors, measuring, steps)
    place = converted(job, job.run.model_folder) if job.process.is_main else None
    if place is not None:
        told = job.run.result()["model"] | {"converted": str(place)}
        job.run.update(place, model=told)
    end(job, steps)


def read_texts(job: Job[RecoverConfig], inputs: Inputs) -> Sources:
    """Reads the texts, from files or from memory, before a model is loaded.

    Reads large data sets at least as far as earlier runs, which learned from all of it but the end
    that they measured on. Reading less would hold out an end that was learned from.
    """
    config = job.config
    learned = read_facts(config.model).get("tokens_seen", 0)
    wanted = max(tokens_before(config) + config.tokens, learned)
    folders = filter(None, (config.model, config.weights_from))
    before = max(map(tokens_measured, folders))
    return read_sources(config.text, inputs.texts, wanted, config.evaluation.tokens, before)


def with_windows(
    job: Job[RecoverConfig], student: Loaded, original: Loaded | None, fewer_tokens: bool
) -> Job[RecoverConfig]:
    """Returns the job with windows that every model can read; refuses longer ones asked for."""
    models = [one.model for one in (student, original) if one is not None]
    described = (model.config for model in models)
    config = within_positions(job.config, *described, fewer_tokens=fewer_tokens)
    for model in models:
        require_positions(model, config.training.length, "length")
    return replace(job, config=config)


def write_texts(
    job: Job[RecoverConfig],
    student: Loaded,
    original: Loaded | None,
    sources: Sources,
    spelling: Spelling | None,
) -> Texts:
    """Returns learning and evaluation text; the original writes the synthetic part. If the student
    has fewer tokens, the text is in the original's tokens."""
    config, training = job.config, job.config.training
    learning = config.steps(job.process.count) * training.tokens_per_step * job.process.count
    needs = Needs(learning, held_out(config.text, config.evaluation, learning))
    # Masks and earlier recoveries have read other text: the gain is measured on unseen text.
    noise = "recovery words", config.machine.seed, tokens_before(config)
    reader = student if spelling is None else original
    texts = load_texts(job, reader or student, sources, original or student, needs, *noise)
    texts.corpus.require_length(training.length, "length")
    for one in (student, original or student):
        require_positions(one.model, texts.longest_window(config.evaluation), "context")
    if spelling is not None:
        require_pieces(student.model, spelling.longest_window(texts.evaluation, config.evaluation))
    return texts


def spelling_of(student: Loaded, original: Loaded | None) -> Spelling | None:
    """Returns how a student of fewer tokens spells the original's; None in other cases."""
    if original is None or len(student.tokenizer) >= len(original.tokenizer):
        return None
    return Spelling.between(original.tokenizer, student.tokenizer, original.bos_token_id)


def _original_scores(run: Run) -> Scores | None:
    """Returns the original's suite scores; None before they are measured."""
    found = run.figures
    return found.original_scores if found else None


def measure_before(
    job: Job[RecoverConfig],
    loaded: Loaded,
    measuring: Measuring,
    teacher: Loaded | None,
) -> None:
    """Measures, once a run, the untrained student, the teacher's perplexity and, with a suite, the
    original's scores."""
    student, found = PrunableModel.of(loaded), job.run.result()
    if "before" not in found:
        measured = measuring.perplexity(student, "perplexity before")
        scores, known = measuring.scores(student, "before"), {}
        if scores is not None:
            folder = Path(job.config.model)
            original = scores_of_original(measuring, folder, scores, teacher)
            if original is not None:
                scores = against(scores, original)
                known = {"original_scores": original}
        job.run.update(before=MeasuredResult(measured, scores), **known)
    if teacher is not None and "teacher" not in found:
        whole = PrunableModel.of(teacher)
        measured = measuring.of_original.perplexity(whole, "perplexity of the teacher")
        job.run.update(teacher=measured)


def scores_of_original(
    measuring: Measuring, folder: Path, student: Scores, teacher: Loaded | None
) -> Scores | None:
    """Returns the scores to compare a trained model with: those in its folder's card if they are of
    this suite, else the teacher's if the teacher is the original, else None. A model without a card
    was not pruned: without a teacher it is its own original.

    Args:
        student: scores of the pruned model before training.
    """
    told = read_facts(folder)
    if told:
        file = str(folder / FACTS)
        original = as_type(told["original"], OriginalResult, field=file, hint=CHANGED_FOLDER).scores
        if original is not None and not difference(student, original):
            return original
    revision = told["source"]["revision"] if told else None
    if teacher is not None and revision in (None, teacher.source["revision"]):
        return measuring.of_original.scores(PrunableModel.of(teacher), "original")
    if not told:
        return student
    logger.warning("nothing tells what the original scores on the suite: name it as the teacher")
    return None


def export(
    job: Job[RecoverConfig],
    loaded: Loaded,
    dtypes: Dtypes,
    tensors: dict[str, Tensor],
    measuring: Measuring,
    steps: int,
) -> None:
    """Writes the trained model with its figures and card, unless it is there. A model that
    processes hold together is measured from its folder, divided again."""
    config, run, sharding = job.config, job.run, loaded.sharding
    if run.has(run.model_folder):
        return
    tokens = steps * config.training.tokens_per_step * job.process.count
    made = trained_model(config, loaded, dtypes, tensors)
    with atomic(run.model_folder) as written:
        write_folder(made, loaded.tokenizer, written, loaded.processor)
        if sharding is not None:
            machine = loaded.machine(config.machine, loaded.model.device)
            made = sharding.load(str(written), machine).model
        model = PrunableModel(made, loaded.family)
        with rounded(model, config.bits, loaded.dtype):
            measured = measuring.perplexity(model, "perplexity after")
            scores = measuring.scores(model, "after", _original_scores(run))
        warn_if_worse(config, run.result()["before"]["measured"]["perplexity"], measured.perplexity)
        blocks, parameters = model.block_parameters, model.parameters
        if sharding is not None:
            sharding.drop(made)
        dense = read_facts(config.model).get("original", {})  # no card: its own original
        figures = as_json(MeasuredResult(measured, scores)) | {
            "keep": blocks / dense.get("block_parameters", blocks),
            "keep_total": parameters / dense.get("parameters", parameters),
            "parameters": parameters,
            "block_parameters": blocks,
            "bytes": weight_bytes(written),
        }
        training = _training(config, run.result(), tokens)
        write_recovered_card(Path(config.model), written, figures, training)
        write_sums(written)
    run.update(
        run.model_folder,
        *run.log,
        model=figures | {"folder": str(run.model_folder)},
        tokens_seen=tokens,
        tokens_before=tokens_before(config),
    )


def warn_if_worse(config: RecoverConfig, before: float, after: float) -> None:
    """Warns if training has raised the perplexity, other than by rounding."""
    if config.bits == "as-is" and not after <= before:
        logger.warning(
            "training has made it worse, perplexity %.4g after %.4g: give a `learning_rate` below "
            "%g, or more tokens", after, before, config.training.learning_rate,
        )  # fmt: skip


def tokens_before(config: RecoverConfig) -> int:
    """Returns how many tokens earlier recoveries trained the starting weights on: those of this
    folder, or of the larger size that the weights come from."""
    told = read_facts(config.weights_from or config.model).get("recovered") or {}
    return told.get("tokens_before", 0) + told.get("tokens_seen", 0)


def _training(config: RecoverConfig, result: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Returns what the card says about the training."""
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
        "bits": config.bits,
        "tokens_seen": tokens,
        "text": source["text"],
        "eval_text": source["eval_text"],
        "eval_text_sha256": source["eval_text_sha256"],
        "before": result["before"]["measured"]["perplexity"],
        "command": result["command"],
    }
