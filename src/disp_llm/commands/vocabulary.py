"""The vocabulary that a run keeps: the tokens that its text uses most.

It is cut first, so that everything after works on an ordinary model with a smaller vocabulary. If
the budget is the size of the whole model, `fitting` also decides how many tokens stay.

V tokens of the whole vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from disp_llm.commands.planning import problem_of
from disp_llm.config.errors import InputError
from disp_llm.config.parts import VocabularyConfig
from disp_llm.data.reading import documents_of, naming
from disp_llm.data.spelling import Spelling
from disp_llm.data.windows import Corpus
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection_file import load_vocabulary
from disp_llm.models.loading import Loaded
from disp_llm.models.trimming import trimmed
from disp_llm.models.vocabulary import most_used, tables_of
from disp_llm.training.losses import in_fewer_tokens
from disp_llm.training.problem import PruningProblem

MOST = 2**24
"""Characters that are read at once from a text file of words."""


def with_fewer_tokens(
    problem: PruningProblem, loaded: Loaded
) -> tuple[PruningProblem, Loaded, Spelling]:
    """Returns the problem of the model with fewer tokens, by its settings or an earlier choice;
    that model; and how it spells text.

    Raises:
        InputError: tokenizer or model cannot be cut, or not to so few tokens; or examples have a
            loss of their own.
    """
    job, corpus = problem.job, problem.corpus
    kept: Sequence[int] = ()
    if job.run.has(job.run.selection_file):
        kept = load_vocabulary(job.run.selection_file)
    kept = kept or chosen_tokens(job.config.vocabulary, loaded, corpus)
    problem, small = trimmed_to(problem, loaded, kept)
    spelling = Spelling.between(loaded.tokenizer, small.tokenizer, loaded.bos_token_id)
    assert spelling is not None, "fewer tokens have gone"
    pieces = spelling.corpus(corpus, small.bos_token_id)
    teaching = in_fewer_tokens(PrunableModel.of(loaded).head, spelling.first, len(kept))
    return replace(problem, corpus=pieces, teaching=teaching), small, spelling


def chosen_tokens(config: VocabularyConfig, loaded: Loaded, corpus: Corpus) -> list[int]:
    """Returns the tokens that stay; refuses a size that cuts none."""
    tokenizer, tables = loaded.tokenizer, tables_of(loaded.tokenizer)
    if config.vocabulary >= len(tokenizer):
        raise InputError(
            f"{config.vocabulary:,} tokens, and the tokenizer has {len(tokenizer):,}",
            field="vocabulary",
            hint="give fewer, or leave it out",
        )
    wanted = named_tokens(config.keep_tokens, loaded) | told_tokens(loaded)
    return most_used(usage(corpus, len(tokenizer)), config.vocabulary, tables, wanted)


def trimmed_to(
    problem: PruningProblem, loaded: Loaded, kept: Sequence[int]
) -> tuple[PruningProblem, Loaded]:
    """Returns the problem and model with these tokens alone. Sizes stay shares of the original."""
    small = trimmed(loaded, kept)
    fewer = problem_of(problem.job, small)
    if fewer.budget.costs is not None:
        costs = replace(fewer.budget.costs, dense_cost=problem.budget.dense_cost)
        fewer = replace(fewer, budget=replace(fewer.budget, costs=costs))
    return replace(fewer, keeps=problem.keeps, vocabulary=tuple(kept)), small


def usage(corpus: Corpus, tokens: int) -> Float[Tensor, " V"]:
    """Returns each token's share of the learning text, with every source at its weight."""
    used = torch.zeros(tokens, dtype=torch.float64)
    for stream, weight in zip(corpus.streams, corpus.weights, strict=True):
        if not isinstance(stream, Tensor):
            stream = torch.cat([example.tokens for example in stream.examples])
        used += weight * torch.bincount(stream, minlength=tokens)[:tokens] / len(stream)
    return used


def named_tokens(files: tuple[Path, ...], loaded: Loaded) -> set[int]:
    """Returns the tokens of words, one word per line, with and without a space before them."""
    found = set[int]()
    for file in files:
        with naming(file, "keep_tokens"):
            lines = "".join(documents_of(file, "text", MOST)).splitlines()
        for word in filter(None, map(str.strip, lines)):
            for text in (word, f" {word}"):
                found.update(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


def told_tokens(loaded: Loaded) -> set[int]:
    """Returns the tokens of the chat template and those that the model's settings name."""
    template = getattr(loaded.tokenizer, "chat_template", None) or ""
    texts = template.values() if isinstance(template, dict) else [template]
    found = {
        token
        for text in texts
        for token in loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    }
    for config in (loaded.model.config.get_text_config(), loaded.model.generation_config):
        for name, value in vars(config).items():
            if name.endswith("token_id"):
                found |= {*(value if isinstance(value, list) else [value])}
    return {one for one in found if isinstance(one, int) and 0 <= one < len(loaded.tokenizer)}
