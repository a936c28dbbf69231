"""The model card of an exported folder: what it is, how it was made, what was measured, how to
load it in each engine."""

from pathlib import Path
from typing import Any

from disp_llm.evaluate import with_error
from disp_llm.files import atomic, read_json, write_json

FACTS = "card.json"
"""Beside the card: the figures behind it, from which a later stage writes it anew."""

TOLD = ("dense", "source", "versions", "tokens_seen", "command", "hardware", "recovered")
"""Parts of a run's result that the card tells; the folder carries no others."""

PLACE = "FOLDER"
"""Stands in the card for where the model lies, until it is saved or pushed somewhere."""

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
| weight files, bytes | {dense_bytes:,} | {bytes:,} | {keep_bytes:.2%} |
| perplexity | {dense_ppl} | {ppl} | |
{budget}
Perplexity ± standard error over {tokens:,} tokens of {eval_text}, windows of {window}, stride
{stride}. Masks were chosen on {text}: {tokens_seen:,} tokens. {against}, logits
differ by at most {error} of the largest one in {checked}. Widths are multiples of {align}.
{cache}

## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

# With disp-llm installed: `import disp_llm` first, and no flag. Without it:
model = AutoModelForCausalLM.from_pretrained("{place}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{place}", trust_remote_code=True)
```

```
{serve}lm_eval --model hf --model_args pretrained={place},trust_remote_code=True --tasks arc_easy
```

LoRA: `peft.LoraConfig(target_modules="all-linear")`, or layers by the names that they have in
{base}.

## Made by

```
{command}
```

{hardware}; {versions}. {terms}
"""


SERVE = "vllm serve {place}                        # without disp-llm: add --trust-remote-code\n"


def write_card(folder: Path, figures: dict[str, Any], result: dict[str, Any]) -> None:
    """Writes `README.md` into an exported folder.

    Args:
        figures: of the exported model.
        result: what the run's `result.json` holds.
    """
    dense, source = result["dense"], result["source"]
    figures = {key: value for key, value in figures.items() if key not in ("folder", "sample")}
    result = {key: result[key] for key in TOLD if key in result}
    write_json(folder / FACTS, {"figures": figures, "result": result})
    checked = "float32" if "max_logit_error" in figures else "the dtype of the run"
    errors = [value for key, value in figures.items() if key.startswith("max_logit_error")]
    text = TEMPLATE.format(
        header=_header(figures, source),
        place=PLACE,
        base=source["model"],
        trained=_weights(figures) + _trained(result.get("recovered")),
        revision=source["revision"],
        version=result["versions"]["disp-llm"],
        keep=figures["keep"],
        keep_total=figures["keep_total"],
        keep_bytes=figures["bytes"] / dense["bytes"],
        budget=_budget(figures),
        dense_block=dense["block_parameters"],
        dense_all=dense["parameters"],
        dense_ppl=with_error(dense),
        dense_bytes=dense["bytes"],
        block=figures["block_parameters"],
        all=figures["parameters"],
        ppl=with_error(figures),
        bytes=figures["bytes"],
        tokens=figures["tokens"],
        window=figures["window"],
        stride=figures["stride"],
        text=source["text"],
        tokens_seen=result["tokens_seen"],
        eval_text=source["eval_text"],
        error=f"{figures.get('max_logit_error', errors[0]):.1e}",
        checked=checked,
        against="As exported, before that training and against the masked original"
        if "recovered" in result
        else "Against the masked original",
        align=figures["align"],
        cache=_cache(figures["kv_cache"]),
        serve=SERVE.format(place=PLACE) if figures["kv_cache"] == 1 else "",
        command=result["command"],
        hardware=result["hardware"]["cpu"],
        versions=", ".join(f"{name} {number}" for name, number in result["versions"].items()),
        terms=_terms(source),
    )
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(text)


def read_facts(folder: str | Path) -> dict[str, Any]:
    """What the run knew that wrote the folder's card; empty where there is no such file."""
    path = Path(folder) / FACTS
    return _facts(path)["result"] if path.is_file() else {}


def _facts(path: Path) -> dict[str, Any]:
    return read_json(path, "export the folder again")


def write_recovered_card(
    before: Path, folder: Path, figures: dict[str, Any], recovered: dict[str, Any]
) -> None:
    """The card of a folder that was trained after pruning; a dense model has none.

    Args:
        before: the folder that training began with.
        figures: perplexity after training, with what it was measured over.
        recovered: what was done, as `_trained` tells it.
    """
    path = before / FACTS
    if path.is_file():
        facts = _facts(path)
        result = facts["result"] | {"recovered": recovered}
        write_card(folder, facts["figures"] | figures, result)


def _weights(figures: dict[str, Any]) -> str:
    """How the kept weights differ from the original's."""
    told = "The kept weights\nare the original's"
    if figures["scaled"]:
        told += ", each row and column times a factor that was learned with the masks"
    if figures["biased"]:
        told += ", with biases for the mean of what has gone"
    return told + "."


def _trained(recovered: dict[str, Any] | None) -> str:
    """What training after pruning did, if there was any."""
    if recovered is None:
        return ""
    how = {"full": "whole", "lora": "through merged LoRA adapters"}[recovered["how"]]
    return (
        f" The blocks were then trained {how}: {recovered['tokens_seen']:,} tokens of "
        f"{recovered['text']}, {recovered['distill']:.0%} of the loss the divergence from the "
        f"original, which took perplexity from {recovered['before']:.2f} to the figure below\n"
        f"(`{recovered['command']}`)."
    )


def _cache(share: float) -> str:
    if share == 1:
        return "The KV cache has the original's size."
    return (
        f"The KV cache has {share:.1%} of the original's size: whole KV heads are gone, another "
        "number in\nevery block, which vLLM cannot serve."
    )


def _header(figures: dict[str, Any], source: dict[str, str]) -> str:
    """The hub's metadata: licence and base model where they are known, and the perplexity."""
    from huggingface_hub import EvalResult, ModelCardData

    measured = EvalResult(
        task_type="text-generation",
        dataset_type="text",
        dataset_name=source["eval_text"],
        metric_type="perplexity",
        metric_value=round(figures["perplexity"], 4),
    )
    data = ModelCardData(
        base_model=source.get("base_model") or None,
        license=source.get("license") or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["disp-llm", "structural-pruning"],
        model_name=f"keep {figures['keep']:.4f}",
        eval_results=[measured],
    )
    return data.to_yaml().strip()


def _budget(figures: dict[str, Any]) -> str:
    """A row for what the budget held, where that was not block parameters."""
    if "latency" in figures:
        timed = figures["latency"]
        return f"| time of {timed['work']}, measured | | | {timed['measured_share']:.2%} |\n"
    if figures["budget"] == "params":
        return ""
    return f"| {figures['budget']}, counted | | | {figures['share_of_budget']:.2%} |\n"


def _terms(source: dict[str, str]) -> str:
    known = source.get("license")
    return f"The licence of {source['model']} applies{f': {known}' if known else ''}."
