"""The main job: a model and text -> a run folder with one smaller model a size, each one proven.

Stages, each of which leaves a file and is skipped when a resumed run finds it: dense perplexity,
scores, mask learning, and for every size masks, export, and the measurement of what was exported.
"""

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm import export as exporter
from disp_llm.bench import Work
from disp_llm.budget import Budget, byte_prices, flop_prices, project
from disp_llm.card import write_card
from disp_llm.config import (
    HEADS,
    BudgetConfig,
    EvalConfig,
    InputError,
    PruneConfig,
    size_name,
)
from disp_llm.estimators import likely
from disp_llm.evaluate import perplexity
from disp_llm.latency import (
    chosen_alignment,
    corrected,
    latency_prices,
    measured_share,
)
from disp_llm.learn import Task
from disp_llm.masks import Choice, Masks, layout_of, load_masks, masked
from disp_llm.methods import METHODS
from disp_llm.methods.context import Context
from disp_llm.models import Loaded, base_and_license, load, load_model, start_process
from disp_llm.runs import MetricsLog, Report, Run, open_run, peak_memory_bytes, provenance, silent
from disp_llm.text import Corpus, load_tokens, require_length

logger = logging.getLogger(__name__)

PROMPT_TOKENS, SAMPLE_TOKENS = 32, 48
"""Of the text that shows what a model writes."""

CHECK_TOKENS = 256
"""Length of the window on which the exported logits are held against the masked model's."""


@dataclass(frozen=True)
class Session:
    """What every stage of one run shares."""

    loaded: Loaded
    budget: Budget
    eval_stream: Tensor
    evaluation: EvalConfig
    run: Run
    settings: BudgetConfig
    first: str
    """Name of the run's first size."""
    align: int
    max_shard_size: str
    report: Report

    def measure(self, model: PreTrainedModel, stage: str) -> dict[str, Any]:
        """Perplexity on the evaluation text."""
        measured = perplexity(
            model,
            self.loaded.family,
            self.eval_stream,
            self.evaluation,
            lambda done, total: self.report(stage, done, total, {}),
        )
        return asdict(measured)

    @property
    def prompt(self) -> Tensor:
        """The first tokens of the evaluation text."""
        return self.eval_stream[:PROMPT_TOKENS]

    def sample(self, model: PreTrainedModel) -> str:
        """What a model writes after them, always taking the likeliest token."""
        prompt = self.prompt[None].to(model.device)
        generate: Any = model.generate
        made = generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=SAMPLE_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        return self.loaded.tokenizer.decode(made[0, prompt.shape[1] :])


def prune(config: PruneConfig, report: Report = silent) -> dict[str, Any]:
    """Runs every stage that has not run yet; returns what `result.json` then holds.

    Raises:
        InputError: something the user can mend.
        Interrupted: a signal arrived while learning; `resume` goes on.
    """
    began = time.perf_counter()
    run = Run(config.output_dir)
    if run.result().get("status") == "done":
        return run.result()
    accelerator, device = start_process(config.machine)
    processes = accelerator.num_processes
    session, corpus, sources = start(
        config, device, report if accelerator.is_main_process else silent
    )
    loaded, budget = session.loaded, session.budget
    refuse_impossible(config, session, corpus)
    if accelerator.is_main_process:
        open_run(config)
    accelerator.wait_for_everyone()
    task = Task(
        loaded.model,
        loaded.family,
        corpus,
        budget,
        config.learned_shares,
        session.align,
        config.machine.seed,
    )
    if accelerator.is_main_process:
        if not run.result():
            run.update(status="running", run=str(run.folder), **provenance(config.machine.seed))
        base, terms = base_and_license(config.model)
        source = loaded.source | sources | {"base_model": base, "license": terms}
        run.update(source=source, dense=dense_figures(session))
    started = time.perf_counter()
    chosen = run.logits_file().exists()
    choice = choose(config, task, session, accelerator)
    choosing = time.perf_counter() - started
    accelerator.wait_for_everyone()
    accelerator.end_training()  # the others have nothing more to do and may leave
    if not accelerator.is_main_process:
        return {}
    run.update(tokens_seen=tokens_seen(config, processes))
    if not chosen:
        run.update(choosing_s=round(choosing, 1))
    if config.method == "learned" and config.learn.penalty:
        run.update(keep_by_penalty=keep_by_penalty(config, budget, choice.logits))
    models = make_models(session, choice, config.shares)
    if config.keep_range:
        measure_curve(session, choice, config.curve_shares)
    return run.update(
        models=models,
        status="done",
        seconds=round(time.perf_counter() - began, 1),
        peak_memory_bytes=peak_memory_bytes(),
    )


def refuse_impossible(config: PruneConfig, session: Session, corpus: Corpus) -> None:
    """Refuses, before any work and before a folder exists, a size below the smallest model and text
    that is shorter than a window."""
    budget = session.budget
    if METHODS[config.method].one_size and len(config.learned_shares) > 1:
        raise InputError(
            f"--method {config.method} learns for one size at a time",
            flag="--keep",
            mend="give one, and a run for each",
        )
    for share in config.learned_shares:
        project(torch.zeros(budget.layout.entries), budget, share, session.align)
    if METHODS[config.method].learns:
        corpus.require_length(config.learn.length, "--length")
    if scores_text(config):
        corpus.require_length(config.scores.calibration_length, "--calibration-length")


def start(
    config: PruneConfig, device: torch.device, report: Report
) -> tuple[Session, Corpus, dict[str, str]]:
    """Loads model and text; also returns the learning text and the names of the texts."""
    report("loading model and text", 0, 2, {})
    loaded = load(config.model, replace(config.machine, device=str(device)), dense_only=True)
    report("loading model and text", 1, 2, {})
    corpus, eval_stream, sources = load_tokens(config.text, loaded.tokenizer)
    report("loading model and text", 2, 2, {})
    given = config.text.eval_text or config.text.eval_dataset
    require_length(eval_stream, 2, "--eval-text" if given else "--text")
    align = config.export.align or chosen_alignment(loaded.model) or default_align(device)
    session = Session(
        loaded,
        budget_of(config, loaded, align, report),
        eval_stream,
        config.evaluation,
        Run(config.output_dir),
        config.budget,
        first_size(config),
        align,
        config.export.max_shard_size,
        report,
    )
    return session, corpus, sources


def first_size(config: PruneConfig) -> str:
    """Name of the size whose masks file carries the logits of the run."""
    return size_name(config.budget.budget, config.shares[0])


def budget_of(config: PruneConfig, loaded: Loaded, align: int, report: Report) -> Budget:
    """Counts what the settings name; times compact models first where that is latency."""
    sites = config.sites or METHODS[config.method].sites
    settings, layout = config.budget, layout_of(loaded.model, loaded.family, HEADS in sites)
    parameters = exporter.count_parameters(loaded.model)
    head = exporter.head_weight(loaded.model)
    if settings.budget == "flops":
        prices = flop_prices(layout, head.numel())
    elif settings.budget == "bytes":
        prices = byte_prices(layout, parameters, head.element_size())
    elif settings.budget == "latency":
        prices = latency_prices(
            loaded.model,
            loaded.family,
            layout,
            workload(settings),
            align,
            lambda done, total: report("timing compact models", done, total, {}),
        )
    else:
        prices = None
    return Budget(layout, prices, sites)


def workload(settings: BudgetConfig) -> Work:
    """What a latency budget times."""
    return Work(settings.workload, settings.workload_length, 1)


def default_align(device: torch.device) -> int:
    """Widths that GPU kernels like; a CPU takes any."""
    return 1 if device.type == "cpu" else 64


def tokens_seen(config: PruneConfig, processes: int) -> int:
    """Tokens that were read to choose the masks: those of the scores, and every process's own."""
    scores = config.scores.calibration_sequences * config.scores.calibration_length
    learn = config.learn.steps * config.learn.length * config.learn.batch * config.learn.accumulate
    return scores * scores_text(config) + learn * processes * METHODS[config.method].learns


def scores_text(config: PruneConfig) -> bool:
    """Whether the method reads calibration sequences."""
    if config.method == "learned":
        return config.learn.start == "scores"
    return METHODS[config.method].reads_text


def keep_by_penalty(config: PruneConfig, budget: Budget, logits: Tensor) -> float:
    """The size that learning arrived at by itself, before the cut to the exact budget."""
    chosen = likely(logits, config.learn.estimator, config.learn.shift) | budget.fixed
    return float(budget.keep(budget.layout.counts(chosen.long())))


def dense_figures(session: Session) -> dict[str, Any]:
    """Perplexity and size of the model as it came; measured once a run."""
    found = session.run.result().get("dense")
    if found:
        return found
    model = session.loaded.model
    parameters = exporter.count_parameters(model)
    return session.measure(model, "dense perplexity") | {
        "prompt": session.loaded.tokenizer.decode(session.prompt),
        "sample": session.sample(model),
        "parameters": parameters,
        "block_parameters": session.budget.full,
        "bytes": parameters * next(model.parameters()).element_size(),
    }


def choose(config: PruneConfig, task: Task, session: Session, accelerator: Accelerator) -> Choice:
    """Logits and scales: from the masks file if the run has one, else by the method."""
    path = session.run.logits_file()
    if path.exists():
        return load_masks(path, task.budget.layout).choice
    log = MetricsLog(session.run.metrics_file)

    def on_step(metrics: dict[str, Any]) -> None:
        if accelerator.is_main_process:
            log.append(metrics)
            session.report("learning masks", metrics["step"], config.learn.steps, metrics)

    def on_sequence(done: int, total: int) -> None:
        session.report("scoring", done, total, {})

    context = Context(
        config.scores, config.learn, session.run.folder, accelerator, on_sequence, on_step
    )
    found = METHODS[config.method].choose(task, context)
    parts = {name: part for name, part in vars(found).items() if part is not None}
    choice = Choice(**{name: part.float().cpu() for name, part in parts.items()})
    if accelerator.is_main_process:
        masks_of(session, choice, config.shares[0]).save(path)
    return choice


def masks_of(session: Session, choice: Choice, share: float) -> Masks:
    """The masks of a size: the logits' projection onto its budget.

    Where nothing is dropped there is nothing for scales to make up for: the model is the original
    to the bit.
    """
    layout = session.budget.layout
    kept = project(choice.logits, session.budget, share, session.align).kept
    return Masks(layout, kept, Choice(choice.logits) if kept.all() else choice)


def masks_in_time(session: Session, choice: Choice, target: float) -> tuple[Masks, dict[str, Any]]:
    """Masks whose compact model, measured, takes the asked share of the dense one's time."""
    loaded, work = session.loaded, workload(session.settings)

    def measure(share: float) -> float:
        session.report(f"latency {target:g}: measuring", 0, 1, {})
        masks = masks_of(session, choice, share)
        compact = exporter.compact_model(loaded.model, loaded.family, masks)
        return measured_share(loaded.model, compact, work)

    share, attempts = corrected(target, measure)
    session.report(f"latency {target:g}: measuring", 1, 1, {})
    measured = next(a["measured"] for a in attempts if a["share"] == share)
    figures = {"work": work.name, "measured_share": measured, "attempts": attempts}
    return masks_of(session, choice, share), figures


def make_models(
    session: Session, choice: Choice, shares: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Exports and measures every size that the run does not have yet; one entry a size."""
    have = {entry["size"]: entry for entry in session.run.result().get("models", [])}
    for share in shares:
        size = size_name(session.settings.budget, share)
        folder = session.run.model_folder(size, session.first)
        made = have.get(size, {}).get("align") == session.align and folder.is_dir()
        if not made:
            if session.settings.budget == "latency":
                masks, timing = masks_in_time(session, choice, share)
            else:
                masks, timing = masks_of(session, choice, share), {}
            have[size] = make_model(session, masks, share, timing)
            session.run.update(models=list(have.values()))
    return list(have.values())


def measure_curve(session: Session, choice: Choice, shares: tuple[float, ...]) -> None:
    """Perplexity of the masked model at every size, added to `curve` in `result.json`."""
    loaded, budget, run = session.loaded, session.budget, session.run
    device = next(loaded.model.parameters()).device
    points = run.result().get("curve", [])
    with masked(loaded.model, loaded.family, budget.layout) as masking:
        for share in shares[len(points) :]:
            masks = masks_of(session, choice, share)
            masking.set(masks.kept.float().to(device))
            counts = budget.layout.counts(masks.kept.long())
            with exporter.folded(loaded.model, loaded.family, masks):
                figures = session.measure(loaded.model, f"curve at keep {share:g}")
            points.append({"keep_asked": share, "keep": float(budget.keep(counts))} | figures)
            run.update(curve=points)


def make_model(
    session: Session, masks: Masks, share: float, timing: dict[str, Any]
) -> dict[str, Any]:
    """One size: masks file, folder, and the figures of what lies in the folder."""
    loaded, budget, run = session.loaded, session.budget, session.run
    kind = session.settings.budget
    size = size_name(kind, share)
    name = f"keep {share:g}" if kind == "params" else f"{kind} {share:g}"
    masks.save(run.masks_file(size, session.first))
    device = next(loaded.model.parameters()).device
    with (
        exporter.folded(loaded.model, loaded.family, masks),
        masked(loaded.model, loaded.family, budget.layout) as masking,
    ):
        masking.set(masks.kept.float().to(device))
        of_masked = session.measure(loaded.model, f"{name}: masked perplexity")
        folder = run.model_folder(size, session.first)
        session.report(f"{name}: export", 0, 1, {})
        exported = exporter.export(
            loaded.model, loaded.tokenizer, loaded.family, masks, folder, session.max_shard_size
        )
        session.report(f"{name}: export", 1, 1, {})
        compact = load_model(str(folder), device, loaded.model.dtype)
        errors = logit_errors(loaded.model, compact, session.eval_stream[:CHECK_TOKENS])
    of_compact = session.measure(compact, f"{name}: compact perplexity")
    layout = budget.layout
    counts = layout.counts(masks.kept.long())
    dense = run.result()["dense"]
    block_parameters = exporter.count_block_parameters(compact, loaded.family)
    predicted = dense["parameters"] - budget.removed_parameters(counts)
    predicted += exporter.added_biases(masks, loaded.family, loaded.model)
    assert predicted == exported.parameters, (predicted, exported.parameters)
    figures = {
        "size": size,
        "budget": kind,
        "keep_asked" if kind == "params" else "target": share,
        "keep": block_parameters / budget.full,
        "keep_total": exported.parameters / dense["parameters"],
        **of_compact,
        "perplexity_masked": of_masked["perplexity"],
        **errors,
        "parameters": exported.parameters,
        "block_parameters": block_parameters,
        "bytes": exported.bytes,
        "share_of_budget": float(budget.share(counts)),
        "align": session.align,
        "kv_cache": share_of_heads(masks),
        "scaled": masks.choice.scales is not None,
        "biased": masks.choice.means is not None,
        "widths_full": dict(zip(layout.sites, layout.blocks[0].lengths, strict=True)),
        "sample": session.sample(compact),
        "folder": str(folder),
    }
    if timing:
        figures["latency"] = timing
    write_card(folder, figures, run.result())
    return figures


def share_of_heads(masks: Masks) -> float:
    """KV heads that stay, and with them the KV cache, as a share of the dense model's."""
    names, parts = masks.layout.names, masks.layout.split(masks.kept)
    heads = [part for name, part in zip(names, parts, strict=True) if name.endswith(HEADS)]
    return float(torch.cat(heads).double().mean()) if heads else 1.0


@torch.no_grad()
def logit_errors(
    dense: PreTrainedModel, compact: PreTrainedModel, tokens: Tensor
) -> dict[str, float]:
    """max|Δlogit| / max|logit| of the compact model against the masked one that is now active.

    In the dtype of the run and in float32 (weights cast there and back, which loses nothing). The
    float32 figure is left out, with a warning, where the memory for it is missing.
    """
    device = next(dense.parameters()).device
    tokens = tokens[None].to(device)
    dtype = dense.dtype
    errors = {
        f"max_logit_error_{str(dtype).removeprefix('torch.')}": _error(dense, compact, tokens)
    }
    extra = 2 * sum(p.numel() for model in (dense, compact) for p in model.parameters())
    if dtype != torch.float32:
        if extra > free_memory(device):
            logger.warning("no memory to check the export in float32: only %s was checked", dtype)
            return errors
        for model in (dense, compact):
            _cast(model, torch.float32)
        errors["max_logit_error_float32"] = _error(dense, compact, tokens)
        for model in (dense, compact):
            _cast(model, dtype)
    return errors | {"max_logit_error": errors["max_logit_error_float32"]}


def _error(dense: PreTrainedModel, compact: PreTrainedModel, tokens: Tensor) -> float:
    wanted, got = (model(tokens, use_cache=False).logits.float() for model in (dense, compact))
    return float((wanted - got).abs().max() / wanted.abs().max())


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Parameters only: rotary frequencies and the like are float32 buffers and stay so."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def more_sizes(
    folder: Path,
    config: PruneConfig,
    shares: tuple[float, ...],
    budget: BudgetConfig,
    report: Report = silent,
) -> dict[str, Any]:
    """Other sizes of a run that has chosen its logits, without choosing again.

    Args:
        config: of the run.
        budget: what `shares` are shares of; it may be another one than the run learned under.

    Raises:
        InputError: the run has not got that far.
    """
    began = time.perf_counter()
    run = Run(folder)
    if not run.logits_file().exists():
        raise InputError(
            "this run has not finished learning",
            flag=str(folder),
            mend=f"run `disp-llm prune {config.model} --output-dir {folder} --resume` first",
        )
    _, device = start_process(config.machine)
    first = first_size(config)
    config = replace(config, output_dir=folder, budget=replace(budget, target=shares), keep=shares)
    session, _, _ = start(config, device, report)
    session = replace(session, first=first)
    choice = load_masks(run.logits_file(), session.budget.layout).choice
    models = make_models(session, choice, shares)
    result = run.update(models=models)
    sizes = [size_name(budget.budget, share) for share in shares]
    asked = [entry for entry in models if entry["size"] in sizes]
    return result | {
        "models": asked,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_bytes": peak_memory_bytes(),
    }
