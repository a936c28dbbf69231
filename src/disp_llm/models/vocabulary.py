"""A smaller vocabulary: which tokens to keep, and the tokenizer of the kept tokens.

A text whose tokens are all kept is split as before. For this a byte-pair tokenizer must keep, with
a token, the tokens of every merge that makes it: the merges towards it then happen in the same
order, and no new merge comes between. A Unigram tokenizer maximises a sum of scores, and the best
split stays best among fewer. Any other text is split into kept tokens, down to bytes or single
characters, which are always kept.

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
"""Content of `tokenizer.json`."""

KINDS = ("BPE", "Unigram")

JOINED = ("continuing_subword_prefix", "end_of_word_suffix")
"""Affixes of word parts in some byte-pair tokenizers; with them merges do not just concatenate."""

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""SentencePiece tokens for the bytes of characters that have no token."""

SPACE = "\u2581"
"""SentencePiece's mark of a space. Decoders would not turn its bytes back into a space."""


def tables_of(tokenizer: Any) -> Tables:
    """Returns the tables of a tokenizer whose vocabulary can be cut.

    Raises:
        InputError: it cannot be cut; names its kind.
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
    """Returns the tokens that are always kept: special and added ones, bytes, the unknown one, the
    mark of a space and, without byte fallback, all single characters."""
    model, ids = tables["model"], ids_of(tables)
    kept = {token["id"] for token in tables["added_tokens"]}
    kept |= {ids[token] for token in (*BYTES, SPACE) if token in ids}
    if not model.get("byte_fallback"):  # the alphabet of a byte-level tokenizer is its characters
        kept |= {number for token, number in ids.items() if len(token) == 1}
    unknown = model.get("unk_id") if "unk_id" in model else ids.get(model.get("unk_token") or "")
    return kept | ({unknown} if unknown is not None else set())


def ids_of(tables: Tables) -> dict[str, int]:
    """Returns the id of every token in the tokenizer's model, which may lack added tokens."""
    vocabulary = tables["model"]["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: number for number, (piece, _) in enumerate(vocabulary)}


def parts_of(tables: Tables) -> dict[int, set[int]]:
    """Maps each token to the tokens of all merges that make it; empty for a Unigram tokenizer."""
    ids, found = ids_of(tables), defaultdict[int, set[int]](set)
    for left, right in _merges(tables):
        found[ids[left + right]] |= {ids[left], ids[right]}
    return found


def closed(wanted: Iterable[int], parts: dict[int, set[int]]) -> set[int]:
    """Returns the tokens and, recursively, those that make them."""
    found, open_ = set[int](), set(wanted)
    while open_:
        found |= open_
        open_ = {part for token in open_ for part in parts.get(token, ())} - found
    return found


def most_used(
    used: Float[Tensor, " V"], size: int, tables: Tables, wanted: Iterable[int]
) -> list[int]:
    """Chooses the tokens to keep, in ascending order of ids.

    Keeps `wanted` and `always_kept` tokens, then the most used, each with the tokens that make it,
    while there is room. Ties go to the lower id, which was commoner when the tokenizer was made.

    Args:
        used: number of occurrences of each token.
        size: number of tokens to keep.

    Raises:
        InputError: `size` is too small for the tokens that must stay.
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
    """Returns the ids in `whole` of the tokens of `small`, in the order of the latter's ids.

    Raises:
        InputError: `small` was not cut from `whole`.
    """
    numbers, has = whole.get_vocab(), small.get_vocab()
    found = [numbers.get(token, -1) for token in sorted(has, key=has.__getitem__)]
    added = whole.get_added_vocab().keys()  # every cut keeps them
    if -1 in found or found != sorted(found) or not added <= has.keys():
        raise InputError(
            "its vocabulary is no part of the original's",
            field="model",
            hint="name a model of the same tokenizer as the `teacher`",
        )
    return found


def cut(tables: Tables, kept: Iterable[int]) -> Tables:
    """Returns the tables of the kept tokens, `closed` and with those `always_kept`, renumbered in
    order."""
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
    """Returns merges as pairs; older files hold them as text with a space between."""
    merges = tables["model"].get("merges", [])
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def _renumbered(processor: Any, new: dict[int, int]) -> Any:
    """Returns a post-processor with new ids of the special tokens that it adds."""
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
    for name in ("sep", "cls"):  # (token, id) in the processors of BERT and RoBERTa
        if isinstance(pair := processor.get(name), list) and len(pair) == 2:
            found[name] = [pair[0], new[pair[1]]]
    return found
