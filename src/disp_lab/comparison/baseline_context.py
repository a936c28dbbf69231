"""What measures every row of a comparison: the original model, the texts, the suite, the clock."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import DynamicCache, PreTrainedModel

from disp_lab.results import OriginalResult
from disp_lab.settings import CompareConfig
from disp_llm.commands.planning import own_needs
from disp_llm.commands.session import input_hashes
from disp_llm.config.prune import PruneConfig
from disp_llm.data.sources import read_sources
from disp_llm.data.tokens import Texts, load_tokens
from disp_llm.evaluation.measuring import Measuring
from disp_llm.evaluation.suites import Scoreboard
from disp_llm.evaluation.timing import USUAL, fitted, speed_against
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.kv_cache import with_cache
from disp_llm.models.loading import Loaded, load
from disp_llm.runs.progress import ProgressCallback


def shared_settings(config: CompareConfig) -> PruneConfig:
    """Returns settings that all runs of `prune` share."""
    common = PruneConfig(
        config.model,
        text=config.text,
        evaluation=config.evaluation,
        scores=config.scores,
        align=config.align,
        rounds=0,  # the comparison times them, as it does the baselines
        machine=config.machine,
    )
    return with_steps(common, config)


def with_steps(settings: PruneConfig, config: CompareConfig) -> PruneConfig:
    """Returns the settings with the steps, window length and batch that were asked for."""
    return replace(
        settings,
        learn=replace(settings.learn, steps=config.steps),
        training=replace(
            settings.training,
            length=config.length,
            batch=config.batch,
        ),
    )


@dataclass(frozen=True)
class BaselineContext:
    """Original model and texts, loaded when first needed."""

    config: CompareConfig
    board: Scoreboard | None = None
    """The suite; None without one."""

    @cached_property
    def loaded(self) -> Loaded:
        """The original."""
        assert self.files
        return load(self.config.model, self.config.machine, dense_only=True)

    @cached_property
    def dense(self) -> PrunableModel:
        """The original, as pruning sees it."""
        return PrunableModel.of(self.loaded)

    @cached_property
    def texts(self) -> Texts:
        """Learning and evaluation text."""
        loaded, text = self.loaded, self.config.text
        needs = own_needs(shared_settings(self.config), 1)
        measured = self.config.evaluation.tokens
        sources = read_sources(text, tokens=needs.learning, measured=measured)
        context = self.config.evaluation.context
        names = text, loaded.tokenizer, loaded.bos_token_id, sources
        return load_tokens(*names, context=context, rows=loaded.rows)

    @cached_property
    def files(self) -> dict[str, Any]:
        """Hashes of the files of model and texts, before they are read."""
        return input_hashes(self.config)

    @property
    def sources(self) -> dict[str, str]:
        """Names of model and texts."""
        return self.loaded.source | self.texts.names

    def measuring(self, progress: ProgressCallback) -> Measuring:
        """Returns what measures models: the evaluation text and the suite."""
        stream, tokenizer = self.texts.evaluation, self.loaded.tokenizer
        return Measuring(stream, self.config.evaluation, tokenizer, progress, self.board)

    def original(self, progress: ProgressCallback) -> OriginalResult:
        """Measures the original."""
        measuring = self.measuring(progress)
        return OriginalResult(
            measured=measuring.perplexity(self.dense, "perplexity"),
            parameters=self.dense.parameters,
            block_parameters=self.dense.block_parameters,
            scores=measuring.scores(self.dense, "suite"),
        )

    @property
    def timed_tokens(self) -> int:
        """Tokens of the timed prompt and of the cache: 512, or as many as the original reads."""
        return fitted(USUAL[0], self.loaded.model).length

    def costs(self, model: PreTrainedModel, progress: ProgressCallback) -> dict[str, Any]:
        """Returns bytes of a model and of its KV cache, and its speed against the original, as
        fields of a row."""
        return {
            "bytes": stored_bytes(model),
            "kv_cache_bytes": cache_bytes(model, self.timed_tokens),
            "speed": speed_against(self.loaded.model, model, self.config.rounds, progress),
        }


def stored_bytes(model: PreTrainedModel) -> int:
    """Counts bytes of all that is saved with the model, shared tensors once; a quantised weight
    counts its integers and scales."""
    parts = (part for tensor in model.state_dict().values() for part in _parts(tensor))
    return sum({part.data_ptr(): part.numel() * part.element_size() for part in parts}.values())


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yields the plain tensors that a tensor consists of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))


@torch.inference_mode()
def cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Returns bytes of the KV cache after a prompt of T tokens, or of the state in its place."""
    cache = DynamicCache(config=model.config)
    prompt = torch.ones(1, tokens, dtype=torch.long, device=model.device)
    model(prompt, logits_to_keep=1, **with_cache(model, cache))
    held = (value for layer in cache.layers for value in vars(layer).values())
    parts = (  # a layer holds keys and values as tensors, states in dictionaries
        part for one in held for part in (one.values() if isinstance(one, dict) else (one,))
    )
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))
