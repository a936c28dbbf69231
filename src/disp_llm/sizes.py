"""A choice -> models of every size: masks, a folder each, and the proof of what lies in it.

What is exported is loaded again and measured; its logits are held against the masked model's and
its parameters are counted on the model itself.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from disp_llm import export as exporter
from disp_llm.bench import Work
from disp_llm.budget import Budget, project
from disp_llm.card import write_card
from disp_llm.config import (
    HEADS,
    BudgetConfig,
    EvalConfig,
    size_name,
)
from disp_llm.evaluate import perplexity
from disp_llm.latency import TOLERANCE, corrected, measured_share
from disp_llm.masks import Choice, Masks, masked
from disp_llm.models import Loaded, load_model
from disp_llm.runs import Report, Run

logger = logging.getLogger(__name__)

PROMPT_TOKENS, SAMPLE_TOKENS = 32, 48
"""Of the text that shows what a model writes."""

WRONG = 1e-3
"""A float32 error of logits, relative to the largest, that rounding does not explain."""

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


def workload(settings: BudgetConfig) -> Work:
    """What a latency budget times."""
    return Work(settings.workload, settings.workload_length, 1)


def masks_of(session: Session, choice: Choice, share: float) -> Masks:
    """The masks of a size: the logits' projection onto its budget."""
    kept = project(choice.logits, session.budget, share, session.align).kept
    return Masks(session.budget.layout, kept, choice)


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
    if abs(measured / target - 1) > TOLERANCE:
        logger.warning(
            "asked for %.1f %% of the time, the nearest of %d tries takes %.1f %%",
            100 * target, len(attempts), 100 * measured,
        )  # fmt: skip
    figures = {"work": work.name, "measured_share": measured, "attempts": attempts}
    return masks_of(session, choice, share), figures


def make_models(
    session: Session, choice: Choice, shares: tuple[float, ...]
) -> list[dict[str, Any]]:
    """Exports and measures every size that the run does not have yet; one entry a size."""
    have = {entry["size"]: entry for entry in session.run.result().get("models", [])}
    for share in shares:
        size = size_name(session.settings, share)
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
    size = size_name(session.settings, share)
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
    warn_of_error(errors, folder)
    of_compact = session.measure(compact, f"{name}: compact perplexity")
    layout = budget.layout
    counts = layout.counts(masks.kept.long())
    dense = run.result()["dense"]
    block_parameters = exporter.count_block_parameters(compact, loaded.family)
    predicted = dense["parameters"] - budget.removed_parameters(counts)
    predicted += exporter.added_biases(masks, loaded.family, loaded.model)
    parameters = exporter.count_parameters(compact)
    assert predicted == parameters, (predicted, parameters)
    figures = {
        "size": size,
        "budget": kind,
        "keep_asked" if kind == "params" else "target": share,
        "keep": block_parameters / budget.full,
        "keep_total": parameters / dense["parameters"],
        **of_compact,
        "perplexity_masked": of_masked["perplexity"],
        **errors,
        "parameters": parameters,
        "block_parameters": block_parameters,
        "bytes": exported.bytes,
        "share_of_budget": float(budget.share(counts)),
        "align": session.align,
        "kv_cache": share_of_heads(masks),
        "scaled": masks.compensation.scales is not None,
        "biased": masks.compensation.means is not None,
        "widths_full": dict(zip(layout.sites, layout.blocks[0].lengths, strict=True)),
        "sample": session.sample(compact),
        "folder": str(folder),
    }
    if timing:
        figures["latency"] = timing
    write_card(folder, figures, run.result())
    return figures


def warn_of_error(errors: dict[str, float], folder: Path) -> None:
    """Says so where an export does something else than the masked model."""
    error = errors.get("max_logit_error", 0.0)
    if not error <= WRONG:
        logger.warning(
            "the logits of %s differ from the masked model's by %.1e of the largest; please report "
            "it with its card.json", folder, error,
        )  # fmt: skip


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
