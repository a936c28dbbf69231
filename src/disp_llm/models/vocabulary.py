"""A smaller vocabulary: which tokens of a tokenizer can stay alone, and the tokenizer of those.

A text whose tokens all stay is split as before. For that a byte-pair tokenizer needs, with a token,
the tokens of every merge that makes it: what is merged on the way to a token that stays is then
merged in the same order, and no other merge comes between, since none is new. A Unigram tokenizer
takes the best sum of scores: what was best stays best among fewer. Any other text falls apart into
tokens that stay, down to bytes or single characters, which always do.

V tokens of the whole vocabulary.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from disp_llm.config.errors import InputError

Tables = dict[str, Any]
"""What `tokenizer.json` holds."""

KINDS = ("BPE", "Unigram")

JOINED = ("continuing_subword_prefix", "end_of_word_suffix")
"""What some byte-pair tokenizers add to parts of words, so that a merge makes another text."""

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Tokens of SentencePiece that stand in for characters without a token of their own."""

SPACE = "\u2581"
"""Its mark of a space. In bytes, decoders would not turn it back into one."""


def tables_of(tokenizer: Any) -> Tables:
    """The tables of a tokenizer whose vocabulary can be cut.

    Raises:
        InputError: naming its kind.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _uncuttable(type(tokenizer).__name__)
    tables = json.loads(tokenizer.backend_tokenizer.to_str())
    model, kind = tables["model"], tables["model"]["type"]
    joined = [name for name in JOINED if model.get(name)] if kind == "BPE" else []
    if kind not in KINDS or joined:
        raise _uncuttable(" with ".join([kind, *joined]))
    return tables


def _uncuttable(kind: str) -> InputError:
    said = f"a tokenizer of the kind {kind} has no vocabulary that can be cut"
    return InputError(said, field="vocabulary", hint="leave it out")


def always_kept(tables: Tables) -> set[int]:
    """Tokens that stay in any case: special and added ones, bytes, the unknown one, the mark of a
    space and, where bytes do not stand in for unknown characters, all single characters."""
    model, ids = tables["model"], ids_of(tables)
    kept = {token["id"] for token in tables["added_tokens"]}
    kept |= {ids[token] for token in (*BYTES, SPACE) if token in ids}
    if not model.get("byte_fallback"):  # the alphabet of a byte-level tokenizer is its characters
        kept |= {number for token, number in ids.items() if len(token) == 1}
    unknown = model.get("unk_id") if "unk_id" in model else ids.get(model.get("unk_token") or "")
    return kept | ({unknown} if unknown is not None else set())


def ids_of(tables: Tables) -> dict[str, int]:
    """The number of every token of the model, without added tokens that it does not have."""
    vocabulary = tables["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def parts_of(tables: Tables) -> dict[int, set[int]]:
    """The tokens of all merges that make a token; empty of a Unigram tokenizer."""
    ids, found = ids_of(tables), defaultdict[int, set[int]](set)
    for left, right in _merges(tables):
        found[ids[left + right]] |= {ids[left], ids[right]}
    return found


def closed(wanted: Iterable[int], parts: dict[int, set[int]]) -> set[int]:
    """The tokens with those that make them, and so on."""
    found, open_ = set[int](), set(wanted)
    while open_:
        found |= open_
        open_ = {part for token in open_ for part in parts.get(token, ())} - found
    return found


def most_used(
    used: Float[Tensor, " V"], size: int, tables: Tables, wanted: Iterable[int]
) -> list[int]:
    """The tokens that stay: those wanted and those that always do, then the most used ones, each
    with those that make it, as long as there is room. Of equally used ones the first stay, which
    are the commonest of the text that the tokenizer was made from.

    Args:
        used: how often each token comes.
        size: how many stay.

    Raises:
        InputError: there is no room for those that stay in any case.
    """
    parts = parts_of(tables)
    kept = closed(always_kept(tables) | set(wanted), parts)
    if len(kept) > size:
        raise InputError(
            f"{size:,} tokens are fewer than have to stay, {len(kept):,}",
            field="vocabulary",
            hint=f"give {len(kept):,} or more",
        )
    for token in used.argsort(descending=True, stable=True).tolist():
        if len(kept) == size:
            break
        if token not in kept and len(more := closed([token], parts) - kept) <= size - len(kept):
            kept |= more
    return sorted(kept)


def shared(small: Any, whole: Any) -> list[int]:
    """The tokens of a tokenizer that one with a smaller vocabulary was made from, by its numbers.

    Raises:
        InputError: it was not made from that one.
    """
    numbers, has = whole.get_vocab(), small.get_vocab()
    found = [numbers.get(token, -1) for token in sorted(has, key=has.__getitem__)]
    added = whole.get_added_vocab().keys()  # they stay in whatever is made of it
    if -1 in found or found != sorted(found) or not added <= has.keys():
        raise InputError(
            "its vocabulary is no part of the original's",
            field="model",
            hint="name a model of the same tokenizer as the `teacher`",
        )
    return found


def cut(tables: Tables, kept: Iterable[int]) -> Tables:
    """The tokenizer of the tokens that stay, numbered anew in their order.

    Args:
        kept: closed, and with those that stay in any case.
    """
    new = {old: number for number, old in enumerate(sorted(kept))}
    model, ids = dict(tables["model"]), ids_of(tables)
    stays = {token for token, number in ids.items() if number in new}
    if model["type"] == "Unigram":
        model["vocab"] = [pair for number, pair in enumerate(model["vocab"]) if number in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[ids[token]] for token in ids if token in stays}
        model["merges"] = [
            [left, right] for left, right in _merges(tables) if {left, right, left + right} <= stays
        ]
    added = [token | {"id": new[token["id"]]} for token in tables["added_tokens"]]
    processor = _renumbered(tables.get("post_processor"), new)
    return tables | {"model": model, "added_tokens": added, "post_processor": processor}


def _merges(tables: Tables) -> list[tuple[str, str]]:
    """Pairs, which older files hold as text with a space between."""
    merges = tables["model"].get("merges", [])
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def _renumbered(processor: Any, new: dict[int, int]) -> Any:
    """A post-processor with the new numbers of the special tokens that it adds."""
    if isinstance(processor, list):
        return [_renumbered(part, new) for part in processor]
    if not isinstance(processor, dict):
        return processor
    found = {key: _renumbered(value, new) for key, value in processor.items()}
    if processor.get("type") == "TemplateProcessing":
        found["special_tokens"] = {
            name: token | {"ids": [new[number] for number in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    for name in ("sep", "cls"):  # (token, number) of the processors of BERT and RoBERTa
        if isinstance(pair := processor.get(name), list) and len(pair) == 2:
            found[name] = [pair[0], new[pair[1]]]
    return found
