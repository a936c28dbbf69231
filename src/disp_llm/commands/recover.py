"""After pruning: the weights that were kept learn to make up for those that were pruned.

A compact (or dense) model and text -> a folder of the same contract. The loss is cross-entropy, the
divergence from the original model (arXiv 1503.02531), or both.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from disp_llm.commands.api import (
    Caller,
    Inputs,
    Model,
    TemporaryFolder,
    inputs_of,
    job_of,
    located,
    require_valid,
    with_folder,
    with_options,
)
from disp_llm.commands.caller import of_kind
from disp_llm.commands.inputs import input_files, require_same_files
from disp_llm.commands.larger import take_weights
from disp_llm.commands.measuring import Measuring, scoreboard_of
from disp_llm.commands.original_scores import scores_of_original
from disp_llm.commands.outcome import RecoverResult
from disp_llm.commands.placement import as_begun, first_alone
from disp_llm.commands.student import (
    dtypes_of,
    load_student,
    merged,
    put_together,
    sharding_of,
    to_measure,
    with_dtypes,
)
from disp_llm.commands.teaching import load_original, teacher_of
from disp_llm.config.recover import RecoverConfig
from disp_llm.data.named import read_sources
from disp_llm.data.tokens import Texts, texts_for
from disp_llm.data.written import Needs, Writer, held_out
from disp_llm.evaluation.suites import against
from disp_llm.export.card import write_recovered_card
from disp_llm.export.facts import BEHIND, read_facts, size_of
from disp_llm.export.folders import weight_bytes, write_folder
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.devices import dtype_name, start_tracking
from disp_llm.models.loading import Loaded
from disp_llm.models.sharding import Sharding, gathered
from disp_llm.models.source import fingerprint_of
from disp_llm.models.windows import require_positions, within_positions
from disp_llm.runs.files import atomic
from disp_llm.runs.folder import Run, clock
from disp_llm.runs.identity import stamped
from disp_llm.runs.job import Job
from disp_llm.runs.lock import locked
from disp_llm.runs.provenance import peak_memory_bytes
from disp_llm.runs.results import MeasuredResult, as_json
from disp_llm.runs.scores import Scores
from disp_llm.runs.settings import available, begin_run
from disp_llm.runs.sums import write_sums
from disp_llm.training.losses import Teacher
from disp_llm.training.weights import add_adapters, train_weights


def recover(
    student: Model | None = None,
    tokenizer: Any = None,
    *,
    teacher: Model | None = None,
    config: RecoverConfig | None = None,
    **options: Any,
) -> RecoverResult:
    """Trains a pruned model, with the original as teacher.

    Args:
        student: an exported folder, any other model, or one in memory, whose weights are trained in
            place.
        tokenizer: of a student in memory.
        teacher: the original, by name or in memory. Default: the one that the folder's card names.
        config: all settings at once, which `options` change.
        options: settings by the names of their flags (`text=`, `tokens=100_000`, `how="lora"`, ...)
            and `progress`. Without an `output_dir` the run lies in a temporary folder.

    Raises:
        InputError: something that the caller can correct.
        Interrupted: the task was asked to stop while training; `resume` goes on.
    """
    caller = Caller.of(options)
    name, inputs = inputs_of(student, tokenizer)
    taught = Inputs()
    if teacher is not None:
        options["teacher"], taught = inputs_of(teacher, tokenizer)
    temporary = None
    if config is None:
        temporary = with_folder(options)
        config = RecoverConfig(name)
    config = replace(of_kind(config, RecoverConfig), folder=name)
    inputs, config = with_options(inputs, config, options)
    require_valid(config, inputs)
    config = available(located(config))  # before anything is touched
    with locked(config.output_dir, "recover"):
        return _in_its_folder(caller, available(config), (inputs, taught), temporary)


def _in_its_folder(
    caller: Caller,
    config: RecoverConfig,
    inputs: tuple[Inputs, Inputs],
    temporary: TemporaryFolder | None,
) -> RecoverResult:
    """Everything, in a folder that is locked and fits the settings.

    Args:
        inputs: what of the student and of the teacher lies in memory.
    """
    run = Run(config.output_dir, config.anyway)
    require_same_files(config, run)
    if run.is_done:
        run.require_whole()
        inputs[0].require_same(run)
        if (taught := inputs[1].model) is not None:
            now = {"teacher_revision": fingerprint_of(taught)}
            run.require_same_source(now, run.result()["dtype"])
        return RecoverResult(run.folder, run.result(), config.machine.device, temporary)
    with job_of(caller, config, *inputs) as job, clock(run, "seconds", job.process.is_main):
        run_stages(job, *inputs)
    process = job.process
    if not process.is_main:
        return RecoverResult(run.folder, {})
    figures = run.finish(peak_memory_bytes=peak_memory_bytes(process.device))
    return RecoverResult(run.folder, figures, str(process.device), temporary)


def run_stages(job: Job[RecoverConfig], inputs: Inputs, taught: Inputs) -> None:
    """Everything between an empty folder and an exported model, as far as it is not there."""
    asked, run, process = job.config, job.run, job.process
    files = stamped(input_files(asked)) if process.is_main else {}
    board = scoreboard_of(asked.suite, _original_scores(run))
    job, loaded, original, texts = _load(as_begun(job), inputs, taught)
    config = job.config
    teacher = teacher_of(config, original)
    student = PrunableModel.of(loaded)
    measuring = Measuring(
        texts.evaluation, config.evaluation, loaded.tokenizer, job.progress, board
    )
    if process.is_main:
        _begin(job, asked, loaded)
    process.wait()
    start_tracking(process, config.track, run.folder)
    source = loaded.source | texts.names
    if original is not None:
        source["teacher_revision"] = original.source["revision"]
    run.require_same_source(source, dtype_name(loaded.dtype))

    def measure() -> None:
        found = run.result()
        if not {"before", "source"} <= found.keys():
            before = _measured_before(job, measuring, student, teacher, loaded.sharding)
            run.update(source=source, inputs=files, **before)
        if teacher is not None and "teacher" not in found:
            of_teacher = measuring.perplexity(teacher.target, "perplexity of the teacher")
            run.update(teacher=as_json(of_teacher))

    first_alone(job, loaded, measure)
    dtypes, adapted = dtypes_of(loaded.model), None
    if config.how == "lora":
        adapted = add_adapters(student, config.rank, config.machine.seed)
    before = tokens_before(config)
    steps = train_weights(job, student, teacher, texts.corpus, loaded.dtype, before)
    process.wait()
    divided = loaded.sharding is not None
    tensors = gathered(loaded.model.state_dict(), process.is_main) if divided else {}

    def export() -> None:
        if not run.has(run.model_folder):
            if divided:
                made = put_together(config, loaded, tensors)
            else:
                made = with_dtypes(merged(loaded.model, adapted), dtypes)
            tokens = steps * config.training.tokens_per_step * process.count
            _export(job, made, loaded, measuring, tokens)

    first_alone(job, loaded, export)
    process.accelerator.end_training()


def _begin(job: Job[RecoverConfig], asked: RecoverConfig, loaded: Loaded) -> None:
    """Opens the run folder; its settings are as asked."""
    dtype, count = dtype_name(loaded.dtype), job.process.count
    begin_run(asked, job.command, dtype=dtype, processes=count)


def _original_scores(run: Run) -> Scores | None:
    """What the original scores on the suite, once that is known."""
    found = run.figures
    return found.original if found else None


def _measured_before(
    job: Job,
    measuring: Measuring,
    student: PrunableModel,
    teacher: Teacher | None,
    sharding: Sharding | None,
) -> dict[str, Any]:
    """What the model is before it is trained and, with a suite, what the original scores."""
    measured = measuring.perplexity(student, "perplexity before")
    scores, known = measuring.scores(student, "before"), {}
    if scores is not None:
        original = scores_of_original(job, measuring, scores, teacher, sharding)
        scores, known = against(scores, original, "suite"), {"original": original.as_json()}
    return {"before": as_json(MeasuredResult(measured, scores))} | known


def _load(
    job: Job[RecoverConfig], inputs: Inputs, taught: Inputs
) -> tuple[Job[RecoverConfig], Loaded, Loaded | None, Texts]:
    """Student, original and texts, and the job with windows that both models can read.

    Raises:
        InputError: one of them is unusable.
    """
    asked, run = job.config, job.run
    progress = job.count("loading models and text")
    progress(0, 2)
    sharding = sharding_of(job, (inputs, taught))
    loaded = _student(job, inputs, sharding)
    before = tokens_before(asked)
    # Large data sets are read as far as masks or weights have learned from them: the end of less
    # would be held out.
    read = max(before + asked.tokens, read_facts(asked.folder).get("tokens_seen", 0))
    sources = read_sources(asked.text, inputs.texts, read, asked.evaluation.tokens)
    load_taught = taught.load if sharding is None else sharding.load
    original = load_original(job, loaded, load_taught, writes=sources.writes)
    progress(1, 2)
    models = [loaded.model, *([original.model] if original else [])]
    usual = RecoverConfig(asked.folder)
    config = within_positions(asked, usual, *(model.config for model in models))
    job, length = replace(job, config=config), config.training.length
    for model in models:
        require_positions(model, length, "length")

    def begin() -> None:
        run.require_same_source(loaded.source, dtype_name(loaded.dtype))
        _begin(job, asked, loaded)

    steps = config.steps(job.process.count)
    learning = steps * config.training.tokens_per_step * job.process.count
    needs = Needs(learning, held_out(config.text, config.evaluation, learning))
    # Masks were learned from what a run of this seed has written: other words measure what is won.
    author, whose = original or loaded, "the original's"
    stream, skipped = "recovery words", -(-before // length)
    writer = Writer.of(job, author, needs, length, begin, whose, stream=stream, skipped=skipped)

    def tokens() -> Texts:
        return texts_for(loaded, config.text, sources, writer.write, config.evaluation.context)

    texts = first_alone(job, loaded, tokens) or tokens()
    progress(2, 2)
    texts.corpus.require_length(length, "length")
    window = texts.longest_window(config.evaluation)
    for model in models:
        require_positions(model, window, "context")
    return job, loaded, original, texts


def _student(job: Job[RecoverConfig], inputs: Inputs, sharding: Sharding | None) -> Loaded:
    """What is trained, with the weights that training begins with."""
    config = job.config
    machine = replace(config.machine, device=str(job.process.device))
    loaded = load_student(config, machine, inputs, sharding)
    loaded = loaded.as_recorded(job.run.result().get("source", {}))
    return take_weights(config, loaded) if config.weights_from else loaded


def _export(
    job: Job[RecoverConfig],
    made: PreTrainedModel,
    loaded: Loaded,
    measuring: Measuring,
    tokens: int,
) -> None:
    """Writes the trained model with its figures and its card.

    Args:
        tokens: how many it was trained on.
    """
    config, run = job.config, job.run
    folder = run.model_folder
    with atomic(folder) as written:
        write_folder(made, loaded.tokenizer, written, loaded.processor)
        with to_measure(config, made, loaded, written) as model:
            measured = measuring.perplexity(model, "perplexity after")
            scores = measuring.scores(model, "after", _original_scores(run))
            sizes = _sizes(model, written, read_facts(config.folder).get("dense", {}))
        figures = as_json(MeasuredResult(measured, scores)) | sizes
        write_recovered_card(
            Path(config.folder), written, figures, _training(config, run.result(), tokens)
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
    told = read_facts(config.weights_from or config.folder).get("recovered") or {}
    return told.get("tokens_before", 0) + told.get("tokens_seen", 0)


def _training(config: RecoverConfig, result: dict[str, Any], tokens: int) -> dict[str, Any]:
    """What the card tells of the training."""
    on_suite, source = ("general_ratio", "kept"), result["source"]
    larger = config.weights_from
    before = {f"before_{key}": result["before"].get(key) for key in on_suite}
    pruned_from = read_facts(config.folder).get("source", {}).get("revision")
    if "teacher" in result and source["teacher_revision"] == pruned_from:
        teacher = {key: of for key, of in result["teacher"].items() if key not in BEHIND}
        before |= {"original": teacher}
    return before | {
        "how": config.how,
        "distill": config.training.distill,
        "tokens_before": tokens_before(config),
        "weights_from": larger and size_of(Path(larger)),
        "tokens_seen": tokens,
        "text": source["text"],
        "eval_text": source["eval_text"],
        "eval_text_sha256": source["eval_text_sha256"],
        "before": result["before"]["perplexity"],
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
