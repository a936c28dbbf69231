"""The model card of an exported folder: what it is, how it was made, what was measured, and how it
is loaded in each engine.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from disp_llm.config.names import ATTENTION
from disp_llm.export.facts import FACTS, facts_in, write_facts
from disp_llm.runs.files import atomic
from disp_llm.runs.markdown import all_escaped, in_code, printable
from disp_llm.runs.results import (
    NOT_MEASURED,
    OriginalResult,
    SizeResult,
    as_json,
    dropped_said,
    from_json,
    kept_said,
    percent_with_error,
    perplexity_said,
    ratio_said,
    served_by_vllm,
    with_error,
)

PLACE = "FOLDER"
"""Stands in the card for where the model lies, until it is saved or pushed somewhere."""

SERVE = "vllm serve {place}                        # without disp-llm: add --trust-remote-code\n"

ONLY_OURS = (
    "# With disp-llm installed: `import disp_llm` first, and no flag. Without it:\n",
    ", trust_remote_code=True",
    ",trust_remote_code=True",
    "                        # without disp-llm: add --trust-remote-code",
)
"""What the card says of loading that holds of our own architecture alone."""

TEMPLATE = """---
{header}
---

# {base} at keep {keep:.4f}

{base} (revision `{revision}`), made smaller by disp-llm {version}: every block reads, works in and
writes dimensions of its own choice ([DISP-LLM](https://arxiv.org/abs/2410.11988)). {trained}

|  | dense | this model | share |
|---|---:|---:|---:|
| block parameters (`keep`) | {dense_block:,} | {block:,} | {keep:.2%} |
| all parameters | {dense_all:,} | {all:,} | {keep_total:.2%} |
{others}| weight files, bytes | {dense_bytes:,} | {bytes:,} | {keep_bytes:.2%} |
{scores}| perplexity | {dense_ppl} | {ppl} | |
{budget}
Perplexity ± standard error over {tokens:,} tokens of {eval_text}, windows of {window}, stride
{stride}. Masks were chosen on {text}: {tokens_seen:,} tokens. {checked}
Widths are multiples of {align}. {cache}

## Load

```python
from transformers import {model_class}, {reader_class}

# With disp-llm installed: `import disp_llm` first, and no flag. Without it:
model = {model_class}.from_pretrained("{place}", trust_remote_code=True)
{reader} = {reader_class}.from_pretrained("{place}", trust_remote_code=True)
```

```
{serve}lm_eval --model hf --model_args pretrained={place},trust_remote_code=True --tasks arc_easy
```

LoRA: `peft.LoraConfig({targets})`, or layers by the names that they have in
{base}.

## Made by

```
{command}
```

{hardware}; {versions}. {terms}
"""


def write_card(folder: Path, size: SizeResult, result: dict[str, Any]) -> None:
    """Writes the card, `README.md`, and the figures behind it into an exported folder.

    Args:
        size: the figures of the exported model.
        result: what the run's `result.json` holds.

    Raises:
        InputError: the dense model's figures are incomplete, or the folder cannot be written.
    """
    told = write_facts(folder, size, result)
    dense = from_json(OriginalResult, told["original"], str(folder / FACTS))
    header = _header(size, told)
    shown = from_json(SizeResult, all_escaped(as_json(size)), str(folder / FACTS))
    told = all_escaped(told, code=("command", "revision"))
    text = TEMPLATE.format(header=header, **_of_models(shown, dense), **_of_run(shown, dense, told))
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _of_models(size: SizeResult, dense: OriginalResult) -> dict[str, Any]:
    """Values of the template that tell the dense and the exported model apart."""
    measured = size.measured or dense.measured
    return {
        "keep": size.keep,
        "keep_total": size.keep_total,
        "keep_bytes": size.bytes / dense.bytes,
        "budget": _budget(size),
        "scores": _scores(size),
        "others": _others(size),
        **_loading(size),
        "dense_block": dense.block_parameters,
        "dense_all": dense.parameters,
        "dense_bytes": dense.bytes,
        "block": size.block_parameters,
        "all": size.parameters,
        "ppl": perplexity_said(size),
        "bytes": size.bytes,
        "tokens": measured.tokens,
        "window": measured.window,
        "stride": measured.stride,
        "align": size.align,
        "cache": _cache(size),
        "serve": SERVE.format(place=PLACE) if served_by_vllm(size) else "",
    }


def _of_run(size: SizeResult, dense: OriginalResult, told: dict[str, Any]) -> dict[str, Any]:
    """Values of the template that tell where the model comes from, and on what it was measured."""
    source, versions = told["source"], told["versions"]
    return {
        "dense_ppl": _perplexity_of_original(size, dense, told),
        "place": PLACE,
        "base": source["model"],
        "revision": source["revision"],
        "version": versions["disp-llm"],
        "trained": _weights(size)
        + _trained(told.get("recovered"))
        + _stored(told.get("quantised")),
        "text": source["text"],
        "tokens_seen": told["tokens_seen"],
        "eval_text": _measured_on(told),
        "checked": _checked(size.logit_errors, "recovered" in told),
        "command": told["command"],
        "hardware": told["hardware"]["cpu"],
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "terms": _terms(source),
    }


def write_recovered_card(
    before: Path, folder: Path, figures: dict[str, Any], recovered: dict[str, Any]
) -> None:
    """Writes the card of a folder that was trained after pruning; a dense model has none.

    Args:
        before: the folder that training began with.
        figures: perplexity after training with what it was measured over, and sizes.
        recovered: what was done, as `_trained` tells it.
    """
    if (before / FACTS).is_file():
        _write_anew(before, folder, figures, {"recovered": recovered}, gone=("scores",))


def write_quantised_card(before: Path, folder: Path, size: int, did: dict[str, Any]) -> None:
    """Writes the card of a folder whose layers were quantised.

    Args:
        before: the folder that was quantised.
        size: bytes of the weight files.
        did: what was done, as `_stored` tells it.

    Raises:
        InputError: the figures behind the card are missing or damaged.
    """
    _write_anew(before, folder, {"bytes": size}, {"quantised": did})


def _write_anew(
    before: Path,
    folder: Path,
    figures: dict[str, Any],
    told: dict[str, Any],
    gone: Collection[str] = (),
) -> None:
    """Writes the card that a folder had before, with other figures, and what else was done.

    Args:
        gone: figures that no longer hold.

    Raises:
        InputError: the figures behind the card are missing or damaged.
    """
    path = before / FACTS
    facts = facts_in(path)
    known = {key: value for key, value in facts["figures"].items() if key not in gone}
    size = from_json(SizeResult, known | figures, str(path))
    write_card(folder, size, facts["result"] | told)


def _perplexity_of_original(size: SizeResult, dense: OriginalResult, told: dict[str, Any]) -> str:
    """`22.75 ± 3.14` on the same windows as the model's own. Training after pruning may have
    measured on another text than pruning, and without the original."""
    did, source = told.get("recovered"), told["source"]
    if did is None:
        return str(dense.measured)
    if did.get("original"):
        return with_error(did["original"]["perplexity"], did["original"].get("perplexity_stderr"))
    was, now = dense.measured, size.measured
    assert now is not None, "training ends with a measurement"
    same = source.get("eval_text_sha256") == did["eval_text_sha256"]
    same = same and (was.tokens, was.window, was.stride) == (now.tokens, now.window, now.stride)
    return str(was) if same else NOT_MEASURED


def _weights(size: SizeResult) -> str:
    """How the kept weights differ from the original's."""
    told = "The kept weights\nare the original's"
    if size.learned_weights:
        told = (
            "The kept weights\nof the blocks' linear layers, experts apart, were trained with the "
            "masks, for all sizes of the run at once"
        )
    if size.adapter_rank:
        rank = size.adapter_rank
        told += f", plus low-rank adapters (rank {rank}) that were learned with the masks"
    if size.scaled:
        told += ", each row and column times a factor that was learned with the masks"
    if size.biased:
        told += ", with biases for the mean of what is pruned"
    return told + "."


def _trained(recovered: dict[str, Any] | None) -> str:
    """What training after pruning did, if there was any."""
    if recovered is None:
        return ""
    was = f"perplexity from {recovered['before']:.2f}"
    if recovered.get("before_general_ratio"):
        was += f", that of the suite from ×{recovered['before_general_ratio']:.3f}"
    if recovered.get("before_kept") is not None:
        was += (
            f", what is kept of its tasks from {percent_with_error(recovered['before_kept'], None)}"
        )
    how = {"full": "whole", "lora": "through merged LoRA adapters"}[recovered["how"]]
    began = ""
    if recovered.get("weights_from"):
        began = f", beginning with the weights of the size {recovered['weights_from']}"
    if recovered.get("tokens_before"):
        began += f", after {recovered['tokens_before']:,} tokens of earlier training"
    return (
        f" The blocks were then trained {how}{began}: {recovered['tokens_seen']:,} tokens of "
        f"{recovered['text']}, {recovered['distill']:.0%} of the loss the divergence from the "
        f"original, which took {was} to what stands below\n"
        f"(`{recovered['command']}`)."
    )


def _stored(quantised: dict[str, Any] | None) -> str:
    """How the layers are quantised, if they are."""
    if quantised is None:
        return ""
    how = {
        "int4": "4 bits, a scale for 32 inputs",
        "int8": "8 bits, a scale for each row, and what they read is rounded to 8 bits as they run",
    }[quantised["weights"]]
    if "calibrated_on" in quantised:
        how += f", calibrated on {quantised['calibrated_on']} (GPTQ)"
    left, layers = quantised["left"], quantised["layers"]
    which = f"{layers} of {layers + left} linear layers" if left else "linear layers"
    return (
        f" The {which} of the blocks\nwere then rounded to {how}: perplexity and logits below are "
        "those before that. transformers needs\nthe package `compressed-tensors` to load them."
    )


def _checked(errors: dict[str, float], recovered: bool) -> str:
    """How far the exported model was held against the masked one."""
    if not errors:
        return (
            "This size was exported\nwithout running it: its logits were not held against those of "
            "the masked original."
        )
    against = "Against the masked original"
    if recovered:
        against = "As exported, before that training and against the masked original"
    worst = errors.get("max_logit_error", next(iter(errors.values())))
    dtype = "float32" if "max_logit_error" in errors else "the dtype of the run"
    return f"{against}, logits\ndiffer by at most {worst:.1e} of the largest one in {dtype}."


def _cache(size: SizeResult) -> str:
    """Which branches are gone, and what is left of the KV cache."""
    told = f"Blocks have lost {gone}.\n" if (gone := dropped_said(size)) else ""
    if size.kv_cache == 1:
        alone = ", and\nheads of linear attention alone are pruned" if size.heads_pruned else ""
        return f"{told}The KV cache has the original's size{alone}."
    told += f"The KV cache has {size.kv_cache:.1%} of the original's size"
    if size.heads_pruned:
        told += ": KV heads are pruned"
    gone = size.dropped.get(ATTENTION)
    return told + (". vLLM serves no block without an attention." if gone else ".")


def _others(size: SizeResult) -> str:
    """Rows for the parts of a wrapper beside its language model."""
    parts = size.other_parameters.items()
    return "".join(f"| {name} | {n:,} | {n:,} | 100 % |\n" for name, n in parts)


def _loading(size: SizeResult) -> dict[str, str]:
    """By which classes the model and what reads for it are loaded, and where adapters go."""
    parts, targets = in_code("|".join(size.other_parameters)), 'target_modules="all-linear"'
    if not parts:
        return {
            "model_class": "AutoModelForCausalLM",
            "reader_class": "AutoTokenizer",
            "reader": "tokenizer",
            "targets": targets,
        }
    return {
        "model_class": "AutoModelForMultimodalLM",
        "reader_class": "AutoProcessor",
        "reader": "processor",
        "targets": rf'{targets}, exclude_modules=r".*\.({parts})\..*"',
    }


def _task(size: SizeResult) -> str:
    """What the hub calls what the model does."""
    if not size.other_parameters:
        return "text-generation"
    hears = any("audio" in part for part in size.other_parameters)
    return "audio-text-to-text" if hears else "image-text-to-text"


def _measured_on(told: dict[str, Any]) -> str:
    return told.get("recovered", told["source"])["eval_text"]


def _header(size: SizeResult, told: dict[str, Any]) -> str:
    """The hub's metadata: licence, base model and perplexity, where they are known."""
    from huggingface_hub import EvalResult, ModelCardData

    source = told["source"]
    measured: dict[str, Any] = {}
    if size.measured is not None:
        result = EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name=printable(_measured_on(told)),
            metric_type="perplexity",
            metric_value=round(size.measured.perplexity, 4),
        )
        measured = {"model_name": f"keep {size.keep:.4f}", "eval_results": [result]}
    data = ModelCardData(
        base_model=printable(source.get("base_model", "")) or None,
        license=printable(source.get("license", "")) or None,
        library_name="transformers",
        pipeline_tag=_task(size),
        tags=["disp-llm", "structural-pruning"],
        **measured,
    )
    return data.to_yaml().strip()


def _budget(size: SizeResult) -> str:
    """A row for what the budget limited, where that was not block parameters."""
    asked = f", for {size.asked} at most" if size.asked else ""
    if size.latency:
        work = f"time of {size.latency['work']}, measured{asked}"
        return f"| {work} | | | {size.share_measured:.2%} |\n"
    if size.budget == "params":
        return ""
    return f"| {size.budget}, counted{asked} | | | {size.share_of_budget:.2%} |\n"


def _scores(size: SizeResult) -> str:
    """Rows for what is lost and kept on the suite of the run, if it has one."""
    found, rows = size.scores, ""
    lost, kept = ratio_said(found), kept_said(found)
    if found and lost:
        texts = ", ".join(found.texts)
        rows += f"| perplexity / the original's, geometric mean over {texts} | ×1 | {lost} | |\n"
    if found and kept:
        tasks = ", ".join(
            f"{name} ({task.shots}-shot)" if task.shots else name
            for name, task in found.tasks.items()
        )
        rows += f"| accuracy above chance that is kept, mean over {tasks} | 100.0 % | {kept} | |\n"
    return rows


def _terms(source: dict[str, str]) -> str:
    known = source.get("license")
    return f"The licence of {source['model']} applies{f': {known}' if known else ''}."
