"""Programs that a smaller model can be made for, and what each of them can run."""

from dataclasses import dataclass

from disp_llm.config.names import (
    BRANCHES,
    COUPLED,
    EXPERTS,
    HEADS,
    MLP,
    SITES,
    Engine,
    Format,
    Site,
)


@dataclass(frozen=True)
class Demands:
    """What a model has to be for a program to run it."""

    sites: tuple[Site, ...]
    """Where it may be pruned."""
    format: Format = "folder"
    """What it is written in."""
    uniform: bool = False
    """Whether all blocks have the same widths."""
    align: int = 1
    """What widths are multiples of."""

    @property
    def has_own_format(self) -> bool:
        """Whether it reads another format than the folder that every run writes."""
        return self.format != "folder"

    @property
    def sites_said(self) -> str:
        """The sites as a sentence has them."""
        return ", ".join(self.sites)


DEMANDS: dict[Engine, Demands] = {
    "transformers": Demands((*SITES, HEADS, EXPERTS, *BRANCHES)),
    "vllm": Demands((*SITES, HEADS, MLP)),
    "llama.cpp": Demands((*COUPLED, *BRANCHES), "gguf"),
    "nemotron-nas": Demands(("mlp_mid", *BRANCHES), "nemotron-nas", align=256),
    "anywhere": Demands((*COUPLED, EXPERTS), "plain", uniform=True),
}
"""vLLM's Transformers backend takes no block without attention, and pruned experts only with
disp-llm. llama.cpp and the engines that read `nemotron-nas` (vLLM, SGLang, TensorRT-LLM, mlx-lm)
know blocks of different widths and blocks without a branch. `anywhere` is whatever runs the
original."""
