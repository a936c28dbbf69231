"""Prune a model, save it under a name of its own, and say how it is served.

python examples/prune_and_serve.py
vllm serve served --trust-remote-code
"""

import disp_llm


def main(
    model: str = "smollm2-135m", text: str | None = None, folder: str = "served", **settings
) -> str:
    """The shell command that serves the pruned model."""
    result = disp_llm.prune(model, text=text, keep=0.7, **settings)
    size = result.size(0.7)
    print(f"perplexity {size.measured}, {size.keep:.1%} of the block parameters")

    result.save(folder, 0.7)  # a copy whose model card names its new place; the run itself is gone
    return f"vllm serve {folder} --trust-remote-code"


if __name__ == "__main__":
    print(main())
