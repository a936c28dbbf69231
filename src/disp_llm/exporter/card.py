"""Writes an exported folder's model card: the template `card.md.j2` filled from `card.json`."""

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from disp_llm.config.names import ATTENTION
from disp_llm.exporter.facts import CARD, FACTS, Facts, Told, facts_in, facts_of, typed_facts
from disp_llm.runs.files import atomic, write_json
from disp_llm.runs.markdown import all_escaped, in_code, printable
from disp_llm.runs.results import NOT_MEASURED, SizeResult, dropped_said
from disp_llm.runs.scores import kept_said, ratio_said, with_error

PLACE = "FOLDER"
"""Placeholder in the card for the model's place, replaced when it is converted or pushed."""


def write_card(folder: Path, size: SizeResult, result: dict[str, Any]) -> None:
    """Writes the card and `card.json` into an exported folder, from the figures of its size and
    the content of the run's `result.json`."""
    facts = facts_of(size, result)
    write_json(folder / FACTS, facts)
    text = filled(facts, str(folder / FACTS), "folder")
    with atomic(folder / CARD) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_recovered_card(
    before: Path, folder: Path, figures: dict[str, Any], recovered: dict[str, Any]
) -> None:
    """Writes the card of a folder that was trained after pruning, with the figures since. Writes
    none if training began with a folder (`before`) without `card.json`, such as an original."""
    if (before / FACTS).is_file():
        facts = facts_in(before / FACTS)
        facts["figures"].pop("scores", None)  # measured before training
        facts["figures"] |= figures
        facts["result"]["recovered"] = recovered
        size = typed_facts(facts, str(before / FACTS)).figures
        write_card(folder, size, facts["result"])


def filled(facts: dict[str, Any], path: str, form: str) -> str:
    """Returns the text of a card. Names from outside are escaped, so that they show as text."""
    header = _header(typed_facts(facts, path))
    shown = typed_facts(all_escaped(facts, code=("command", "package", "revision")), path)
    size, told = shown.figures, shown.result
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["thousands"] = "{:,}".format
    environment.filters["percent"] = lambda share, places=2: f"{share:.{places}%}"
    source = (resources.files("disp_llm.exporter") / "card.md.j2").read_text(encoding="utf-8")
    errors = size.logit_errors
    return environment.from_string(source).render(
        vars(told),
        header=header,
        form=form,
        place=PLACE,
        size=size,
        measured=size.measured or told.original.measured,
        not_measured=NOT_MEASURED,
        eval_text=told.eval_text,
        perplexity_of_original=_perplexity_of_original(size, told),
        ratio=ratio_said(size.scores),
        kept=kept_said(size.scores),
        limit=f", for {size.asked} at most" if size.asked else "",
        logit_error=errors.get("max_logit_error", next(iter(errors.values()), None)),
        logit_type="float32" if "max_logit_error" in errors else "the dtype of the run",
        dropped=dropped_said(size),
        served=served_by_vllm(size),
        parts=in_code("|".join(size.other_parameters)),
    )


def served_by_vllm(size: SizeResult) -> bool:
    """Whether stock vLLM serves the model. Its Transformers backend needs a usual attention in
    every block; wrappers and mixtures of experts were not tried with it."""
    untried = size.other_parameters or not size.usual_blocks
    return not (size.dropped.get(ATTENTION) or untried)


def _perplexity_of_original(size: SizeResult, told: Told) -> str:
    """Returns the original's perplexity on the windows of the model's own, or `NOT_MEASURED`: after
    pruning, training may have measured on another text and without the original."""
    did, was, now = told.recovered, told.original.measured, size.measured
    if did is None or now is None:
        return str(was)
    if did.original:
        return with_error(did.original.perplexity, did.original.perplexity_stderr)
    same = told.source.get("eval_text_sha256") == did.eval_text_sha256
    same = same and (was.tokens, was.window, was.stride) == (now.tokens, now.window, now.stride)
    return str(was) if same else NOT_MEASURED


def _header(facts: Facts) -> str:
    """Returns the hub's metadata: licence, base model and perplexity, as far as known."""
    from huggingface_hub import EvalResult, ModelCardData

    size, told = facts.figures, facts.result
    measured: dict[str, Any] = {}
    if size.measured is not None:
        result = EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=printable(told.eval_text),
            metric_type="perplexity",
            metric_value=round(size.measured.perplexity, 4),
        )
        measured = {"model_name": f"keep {size.keep:.4f}", "eval_results": [result]}
    task = "text-generation"
    if size.other_parameters:
        hears = any("audio" in part for part in size.other_parameters)
        task = "audio-text-to-text" if hears else "image-text-to-text"
    data = ModelCardData(
        base_model=printable(told.source.get("base_model", "")) or None,
        license=printable(told.source.get("license", "")) or None,
        library_name="transformers",
        pipeline_tag=task,
        tags=["disp-llm", "structural-pruning"],
        **measured,
    )
    return data.to_yaml().strip()
