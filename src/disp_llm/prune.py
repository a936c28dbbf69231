"""The main job: a model and text -> a run folder with one smaller model a size, each one proven.

Stages, each of which leaves a file and is skipped when a resumed run finds it: dense perplexity,
scores, mask learning, and for every size masks, export, and the measurement of what was exported.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from disp_llm import export as exporter
from disp_llm.budget import Budget, byte_prices, flop_prices, project
from disp_llm.config import (
    HEADS,
    BudgetConfig,
    InputError,
    PruneConfig,
    size_name,
)
from disp_llm.estimators import likely
from disp_llm.latency import (
    chosen_alignment,
    latency_prices,
)
from disp_llm.learn import Task
from disp_llm.masks import Choice, layout_of, load_masks
from disp_llm.methods import METHODS
from disp_llm.methods.context import Context
from disp_llm.models import Loaded, base_and_license, load, require_positions, start_process
from disp_llm.runs import (
    MetricsLog,
    Report,
    Run,
    clock,
    open_run,
    peak_memory_bytes,
    provenance,
    silent,
)
from disp_llm.sizes import Session, make_models, masks_of, measure_curve, workload
from disp_llm.text import Corpus, load_tokens, require_length


def prune(config: PruneConfig, report: Report = silent) -> dict[str, Any]:
    """Runs every stage that has not run yet; returns what `result.json` then holds.

    Raises:
        InputError: something the user can mend.
        Interrupted: a signal arrived while learning; `resume` goes on.
    """
    run = Run(config.output_dir)
    if run.result().get("status") == "done":
        return run.result()
    accelerator, device = start_process(config.machine)
    main = accelerator.is_main_process
    with clock(run, "seconds", main):
        run_stages(config, run, accelerator, device, report if main else silent)
    if not main:
        return {}
    return run.update(status="done", peak_memory_bytes=peak_memory_bytes(device))


def run_stages(
    config: PruneConfig, run: Run, accelerator: Accelerator, device: torch.device, report: Report
) -> None:
    """Everything between an empty folder and a finished run, as far as it is not there."""
    with accelerator.main_process_first():  # which measures, where time is the budget
        session, corpus, sources = start(config, device, report)
    loaded, budget = session.loaded, session.budget
    refuse_impossible(config, session, corpus)
    if accelerator.is_main_process:
        open_run(replace(config, export=replace(config.export, align=session.align)))
    accelerator.wait_for_everyone()
    seed, keeps = config.machine.seed, config.learned_shares
    task = Task(loaded.model, loaded.family, corpus, budget, keeps, session.align, seed)
    if accelerator.is_main_process:
        if not run.result():
            run.update(status="running", run=str(run.folder), **provenance(seed))
        base, terms = base_and_license(config.model)
        source = loaded.source | sources | {"base_model": base, "license": terms}
        run.update(source=source, dense=dense_figures(session))
    choice = choose(config, task, session, accelerator)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # the others have nothing more to do and may leave
    if not accelerator.is_main_process:
        return
    run.update(tokens_seen=tokens_seen(config, accelerator.num_processes))
    if config.method == "learned" and config.learn.penalty:
        run.update(keep_by_penalty=keep_by_penalty(config, budget, choice.logits))
    run.update(models=make_models(session, choice, config.shares))
    if config.keep_range:
        measure_curve(session, choice, config.curve_shares)


def refuse_impossible(config: PruneConfig, session: Session, corpus: Corpus) -> None:
    """Refuses, before any work and before a folder exists, a size below the smallest model and text
    that is shorter than a window."""
    budget = session.budget
    require_size(config, config.learned_shares)
    for share in config.learned_shares:
        project(torch.zeros(budget.layout.entries), budget, share, session.align)
    model = session.loaded.model
    window = min(config.evaluation.context, len(session.eval_stream))
    require_positions(model, window, "--context")
    read = {"--length": config.learn.length} if METHODS[config.method].learns else {}
    if scores_text(config):
        read["--calibration-length"] = config.scores.calibration_length
    for flag, tokens in read.items():
        corpus.require_length(tokens, flag)
        require_positions(model, tokens, flag)


def require_size(config: PruneConfig, shares: tuple[float, ...]) -> None:
    """Refuses what a method that chooses for one size cannot give.

    Raises:
        InputError: several sizes, another budget than parameters, or too few sites.
    """
    method = METHODS[config.method]
    missing = set(method.sites) - set(config.sites or method.sites)
    if method.every_site and missing:
        raise InputError(
            f"--method {config.method} drops {', '.join(sorted(missing))} too",
            flag="--sites",
            mend="leave it out",
        )
    if method.one_size and len(shares) > 1:
        raise InputError(
            f"--method {config.method} chooses for one size at a time",
            flag="--keep",
            mend="give one, and a run for each",
        )
    if method.one_size and config.budget.budget != "params":
        raise InputError(
            f"--method {config.method} counts parameters", flag="--budget", mend="give --keep"
        )


def start(
    config: PruneConfig, device: torch.device, report: Report
) -> tuple[Session, Corpus, dict[str, str]]:
    """Loads model and text; also returns the learning text and the names of the texts."""
    report("loading model and text", 0, 2, {})
    loaded = load(config.model, replace(config.machine, device=str(device)), dense_only=True)
    report("loading model and text", 1, 2, {})
    corpus, eval_stream, sources = load_tokens(config.text, loaded.tokenizer, loaded.opening)
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
    return size_name(config.budget, config.shares[0])


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


def default_align(device: torch.device) -> int:
    """Widths that GPU kernels like; a CPU takes any."""
    return 1 if device.type == "cpu" else 64


def tokens_seen(config: PruneConfig, processes: int) -> int:
    """Tokens that were read to choose the masks: those of the scores, and every process's own."""
    learn = config.learn.steps * config.learn.length * config.learn.batch * config.learn.accumulate
    return (
        config.scores.tokens * scores_text(config)
        + learn * processes * METHODS[config.method].learns
    )


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
    with clock(session.run, "choosing_s", accelerator.is_main_process):
        found = METHODS[config.method].choose(task, context)
    parts = {name: part for name, part in vars(found).items() if part is not None}
    choice = Choice(**{name: part.float().cpu() for name, part in parts.items()})
    if accelerator.is_main_process:
        masks_of(session, choice, config.shares[0]).save(path)
    return choice


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
    settled = (*config.learned_shares, *shares)
    require_size(replace(config, budget=budget), tuple(dict.fromkeys(settled)))
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
    sizes = [size_name(budget, share) for share in shares]
    asked = [entry for entry in models if entry["size"] in sizes]
    return result | {
        "models": asked,
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_bytes": peak_memory_bytes(device),
    }
