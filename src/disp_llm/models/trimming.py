"""A model and its tokenizer -> the same with a smaller vocabulary, in unchanged classes.

Embedding and head keep only the rows of kept tokens, and configurations name these by new ids. All
else is unchanged, and so are the logits of kept tokens. K kept tokens.
"""

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Int
from torch import Tensor, nn

from disp_llm.config.errors import InputError
from disp_llm.models.loading import Loaded
from disp_llm.models.vocabulary import cut, shared, tables_of

TOKENIZER = "tokenizer.json"
FROM_BEFORE = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
"""Files of older tokenizer formats, which would restore the whole vocabulary."""


def trimmed(loaded: Loaded, kept: Sequence[int]) -> Loaded:
    """Returns model and tokenizer with only the kept tokens; unchanged weights are shared.

    Args:
        kept: ids of the tokens to keep, ascending.

    Raises:
        InputError: weights other than embedding and head have a row per token, the model is
            multimodal, or the tokenizer cannot be cut.
    """
    require_trimmable(loaded)
    tokenizer = trimmed_tokenizer(loaded.tokenizer, kept)
    return replace(loaded, model=with_tokens(loaded.model, kept), tokenizer=tokenizer)


def with_tokens(model: Any, kept: Sequence[int]) -> Any:
    """Returns the model with embedding and head of only these tokens, under new ids."""
    made = _with_rows(model, torch.tensor(kept, device=model.device))
    config, new = made.config.get_text_config(), {old: at for at, old in enumerate(kept)}
    every = (made.config, config, made.generation_config)  # the first two may be the same
    for described in {id(one): one for one in every}.values():
        renumber(described, new)
    config.vocab_size = len(kept)
    for module in made.modules():
        if "vocab_size" in vars(module):  # a copy of the configuration's value
            module.vocab_size = len(kept)
    return made


def trimmed_like(loaded: Loaded, small: Any) -> Loaded:
    """Returns the model with the vocabulary of `small`, a tokenizer cut from its own.

    Raises:
        InputError: `small` was not cut from the model's tokenizer.
    """
    if loaded.tokenizer.get_vocab() == small.get_vocab():
        return loaded
    return trimmed(loaded, shared(small, loaded.tokenizer))


def require_trimmable(loaded: Loaded) -> None:
    """Refuses a model whose vocabulary cannot be cut.

    Raises:
        InputError: as `trimmed`.
    """
    tables_of(loaded.tokenizer)
    require_rows(loaded.model)
    tokens = len(loaded.tokenizer)
    if tokens > loaded.rows:
        raise InputError(
            f"the tokenizer has {tokens:,} tokens, and the embedding only {loaded.rows:,} rows",
            field="vocabulary",
            hint="leave it out, or call `resize_token_embeddings` of the model first",
        )
    if loaded.family.tower:
        raise InputError(
            "what sees or hears names tokens by their numbers",
            field="vocabulary",
            hint="leave it out, or prune the language model alone",
        )


def require_rows(model: Any) -> None:
    """Refuses a model with weights other than embedding and head that have a row per token.

    Raises:
        InputError: names such a weight.
    """
    whole = model.config.get_text_config().vocab_size
    known = {id(part.weight) for part in _parts(model)}
    for name, parameter in model.named_parameters():
        if len(parameter) == whole and parameter.dim() == 2 and id(parameter) not in known:
            raise InputError(
                f"{name} has a row for each token too, and stays whole",
                field="vocabulary",
                hint="leave it out",
            )


def _parts(model: Any) -> list[Any]:
    """Returns embedding and head, both even if they share their weight."""
    return [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part]


def _with_rows(model: Any, kept: Int[Tensor, " K"]) -> Any:
    """Returns a copy of the model with only these rows of embedding and head."""
    parts, memo = _parts(model), {}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= shared  # a deep copy shares these instead of copying
    for tensor in {id(part.weight): part.weight for part in parts}.values():
        memo[id(tensor)] = nn.Parameter(tensor.detach()[kept], tensor.requires_grad)
    made = copy.deepcopy(model, memo)
    for part in _parts(made):
        if isinstance(part, nn.Embedding):
            part.num_embeddings = len(kept)
            part.padding_idx = None
        else:
            part.out_features = len(kept)
            if getattr(part, "bias", None) is not None:
                part.bias = nn.Parameter(part.bias.detach()[kept], part.bias.requires_grad)
    return made


def renumber(config: Any, new: dict[int, int]) -> None:
    """Replaces token ids in a configuration by their new ids, and drops removed ones."""
    for name, value in vars(config).items():
        if name.endswith("token_id") or name in ("suppress_tokens", "begin_suppress_tokens"):
            setattr(config, name, _renumbered(value, new))
        elif name in ("bad_words_ids", "sequence_bias") and value:
            setattr(config, name, _sequences(value, new) or None)


def _renumbered(value: Any, new: dict[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return [new[number] for number in value if number in new]
    return new.get(value)


def _sequences(value: Any, new: dict[int, int]) -> list[Any]:
    """Renumbers sequences of tokens, which may each have a number (as pairs or as a dict). Drops
    those with a removed token: what is left of one would be another sequence."""
    if isinstance(value, dict):
        value = value.items()
    found = []
    for one in value:
        tokens, bias = one if isinstance(one[0], list | tuple) else (one, None)
        if new.keys() >= set(tokens):
            made = _renumbered(tokens, new)
            found.append(made if bias is None else [made, bias])
    return found


def trimmed_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """Returns the tokenizer with only the kept tokens."""
    tables = tables_of(tokenizer)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for name in FROM_BEFORE:
            (folder / name).unlink(missing_ok=True)
        (folder / TOKENIZER).write_text(json.dumps(cut(tables, kept)), encoding="utf-8")
        return transformers.AutoTokenizer.from_pretrained(folder)
