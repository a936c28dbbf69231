"""The model card of an exported folder: what it is, how it was made, what was measured, how to
load it."""

from pathlib import Path
from typing import Any

from disp_llm.evaluate import with_error
from disp_llm.files import atomic

TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
tags: [disp-llm, structural-pruning]
---

# {base} at keep {keep:.4f}

{base} (revision `{revision}`), made smaller by disp-llm {version}: every block reads, works in and
writes dimensions of its own choice (DISP-LLM, arXiv 2410.11988). The kept weights are the
original's.

|  | dense | this model |
|---|---:|---:|
| block parameters | {dense_block:,} | {block:,} ({keep:.2%}) |
| all parameters | {dense_all:,} | {all:,} ({keep_total:.2%}) |
| perplexity | {dense_ppl} | {ppl} |
| weight files | {dense_bytes:,} bytes | {bytes:,} bytes |

Perplexity (± standard error) over {tokens:,} tokens of {eval_text}, windows of {window}, stride
{stride}. Masks were chosen on {text}. Against the masked original, logits differ by at most
{error} of the largest one in {checked}. Widths are multiples of {align}.

## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

# With disp-llm installed: `import disp_llm` first, and no flag. Without it:
model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
```

## Made by

```
{command}
```

{hardware}; {versions}. The licence and limits of {base} apply.
"""


def write_card(folder: Path, figures: dict[str, Any], result: dict[str, Any]) -> None:
    """Writes `README.md` into an exported folder."""
    dense, source = result["dense"], result["source"]
    checked = "float32" if "max_logit_error" in figures else "the dtype of the run"
    errors = [value for key, value in figures.items() if key.startswith("max_logit_error")]
    text = TEMPLATE.format(
        base=source["model"],
        revision=source["revision"],
        version=result["versions"]["disp-llm"],
        keep=figures["keep"],
        keep_total=figures["keep_total"],
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
        eval_text=source["eval_text"],
        error=f"{figures.get('max_logit_error', errors[0]):.1e}",
        checked=checked,
        align=figures["align"],
        command=result["command"],
        hardware=result["hardware"]["cpu"],
        versions=", ".join(f"{name} {number}" for name, number in result["versions"].items()),
    )
    with atomic(folder / "README.md") as temporary:
        temporary.write_text(text)
