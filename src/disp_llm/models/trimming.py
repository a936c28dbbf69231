"""A model and its tokenizer with a smaller vocabulary: both of the classes that they had.

Rows of the embedding and of the head are those of the tokens that stay; numbers of tokens in the
configurations are theirs. All else is the same, so the logits of tokens that stay are, too.

V tokens of the whole vocabulary, K that stay.
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
"""Files of older tokenizers, which would bring the whole vocabulary back."""


def trimmed(loaded: Loaded, kept: Sequence[int]) -> Loaded:
    """The model with the tokens that stay, in the order of their numbers; the weights that it does
    not change are the other's own.

    Raises:
        InputError: more of the model than its embedding and its head has a row for each token, or
            its tokenizer is of a kind that cannot be cut.
    """
    require_trimmable(loaded)
    tokenizer = trimmed_tokenizer(loaded.tokenizer, kept)
    return replace(loaded, model=with_tokens(loaded.model, kept), tokenizer=tokenizer)


def with_tokens(model: Any, kept: Sequence[int]) -> Any:
    """The model with the embedding and the head of these tokens alone, under new numbers."""
    made = _with_rows(model, torch.tensor(kept, device=model.device))
    config, new = made.config.get_text_config(), {old: at for at, old in enumerate(kept)}
    every = (made.config, config, made.generation_config)  # the second may be the first
    for described in {id(one): one for one in every}.values():
        renumber(described, new)
    config.vocab_size = len(kept)
    for module in made.modules():
        if "vocab_size" in vars(module):  # a copy of what the configuration says
            module.vocab_size = len(kept)
    return made


def trimmed_like(loaded: Loaded, small: Any) -> Loaded:
    """The model with the vocabulary of a tokenizer that was made from its own.

    Raises:
        InputError: that tokenizer was not.
    """
    if loaded.tokenizer.get_vocab() == small.get_vocab():
        return loaded
    return trimmed(loaded, shared(small, loaded.tokenizer))


def require_trimmable(loaded: Loaded) -> None:
    """Refuses what cannot do with fewer tokens.

    Raises:
        InputError: as `trimmed`.
    """
    tables_of(loaded.tokenizer)
    require_rows(loaded.model)
    if loaded.family.tower:
        raise InputError(
            "what sees or hears names tokens by their numbers",
            field="vocabulary",
            hint="leave it out, or prune the language model alone",
        )


def require_rows(model: Any) -> None:
    """Refuses a model in which more than embedding and head has a row for each token.

    Raises:
        InputError: naming what else has.
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
    """Embedding and head; where both share their weight, both."""
    return [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part]


def _with_rows(model: Any, kept: Int[Tensor, " K"]) -> Any:
    """A copy of the model with these rows of embedding and head."""
    parts, memo = _parts(model), {}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= shared  # a deep copy takes these over as they are
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
    """Gives the tokens that a configuration names their new numbers; it no longer names those that
    are gone."""
    for name, value in vars(config).items():
        if name.endswith("token_id") or name in ("suppress_tokens", "begin_suppress_tokens"):
            setattr(config, name, _renumbered(value, new))


def _renumbered(value: Any, new: dict[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return [new[number] for number in value if number in new]
    return new.get(value)


def trimmed_tokenizer(tokenizer: Any, kept: Sequence[int]) -> Any:
    """The same tokenizer of the tokens that stay."""
    tables = tables_of(tokenizer)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for name in FROM_BEFORE:
            (folder / name).unlink(missing_ok=True)
        (folder / TOKENIZER).write_text(json.dumps(cut(tables, kept)), encoding="utf-8")
        return transformers.AutoTokenizer.from_pretrained(folder)
