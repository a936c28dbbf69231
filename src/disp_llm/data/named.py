"""What settings name, or a program hands over, as text -> documents and examples, before there are
tokens."""

from dataclasses import dataclass
from pathlib import Path

from disp_llm.config.names import NAMED_TEXTS, SELF, SPEECHES, is_mixture
from disp_llm.config.parts import PerplexityConfig, TextConfig
from disp_llm.config.texts import load_mixture
from disp_llm.data.examples import HELD_OUT, GivenExamples, read_examples
from disp_llm.data.reading import characters_for, read_documents, read_given, read_mixture
from disp_llm.data.sources import GivenText
from disp_llm.models.embedded import speech_files

Given = GivenText | GivenExamples
"""What is learned from or measured on."""


@dataclass(frozen=True)
class InMemory:
    """What a program handed over, in place of what the settings name."""

    text: GivenText | None = None
    eval_text: GivenText | None = None
    examples: GivenExamples | None = None
    eval_examples: GivenExamples | None = None
    words: GivenText | None = None
    """What the model has written already, where `text` is self."""


@dataclass(frozen=True)
class Source:
    """One text, or examples, to learn from."""

    text: Given | None
    """None is what the model has still to write."""
    group: int = 0
    """Which of the texts that the settings name it is part of."""
    share: float = 1.0
    """How much of that one it is."""


@dataclass(frozen=True)
class Sources:
    """Text as it was found, before there are tokens."""

    learning: tuple[Source, ...]
    evaluation: Given | None
    """None = the end of the learning text."""

    @property
    def writes(self) -> bool:
        """Whether the model writes some of it."""
        return any(source.text is None for source in self.learning)


def read_sources(
    config: TextConfig,
    in_memory: InMemory = InMemory(),
    tokens: int = 0,
    measured: int = PerplexityConfig().tokens,
) -> Sources:
    """Reads the texts that the settings name, or takes those in memory.

    Args:
        tokens: how many are learned from, so that large texts are read no further.
        measured: how many are measured on; 0 = all of a text that is for it alone.

    Raises:
        InputError: a file or data set is unusable.
    """
    examples = in_memory.examples or read_examples(config.examples, config.template)
    evaluation = (
        in_memory.eval_text
        or in_memory.eval_examples
        or _evaluation_text(config, measured)
        or read_examples(config.eval_examples, config.template, "eval_examples")
    )
    if evaluation is None and examples is not None:
        examples, evaluation = examples.parted()
    texts: tuple[Source, ...] = ()
    if in_memory.text is not None or config.learns_from_text or examples is None:
        held_out = 0 if evaluation else round(measured / HELD_OUT)
        texts = _learning_sources(config, in_memory.text, tokens, max(1, tokens, held_out))
    if examples is not None:
        group = 1 + max((source.group for source in texts), default=-1)
        texts = (*texts, Source(examples, group))
    return Sources(texts, evaluation)


def _learning_sources(
    config: TextConfig, given: GivenText | None, tokens: int, of_files: int
) -> tuple[Source, ...]:
    """The texts of every name; of those that are not mixtures, as many tokens as files are to
    have."""
    if given is not None:
        return (Source(given),)
    found: list[Source] = []
    for group, paths in enumerate(_groups(config)):
        if len(paths) == 1 and is_mixture(paths[0]):
            texts = read_mixture(load_mixture(paths[0]), tokens)
            found += [Source(text, group, share) for text, share in texts]
        else:
            found.append(Source(_learning_text(paths, config, of_files), group))
    return tuple(found)


def _groups(config: TextConfig) -> list[tuple[Path, ...]]:
    """The names that belong to each source: with weights each to its own, else all files to one."""
    names = config.learns_from
    if config.weights and names:
        return [(name,) for name in names]
    apart = [name for name in names if str(name) in NAMED_TEXTS or is_mixture(name)]
    files = tuple(name for name in names if name not in apart)
    others: list[tuple[Path, ...]] = [(name,) for name in apart]
    return [files, *others] if files or not others else others


def _evaluation_text(config: TextConfig, tokens: int) -> GivenText | None:
    names, column = (config.eval_text, config.eval_dataset), config.text_field
    return read_given(*names, column, "test", "eval_text", characters_for(tokens))


def _learning_text(paths: tuple[Path, ...], config: TextConfig, tokens: int) -> GivenText | None:
    if paths == (Path(SELF),):
        return None
    if paths == (Path(SPEECHES),):
        return embedded_text()
    most, column = characters_for(tokens), config.text_field
    return read_given(paths, config.dataset, column, "train", characters=most)


def embedded_text() -> GivenText:
    """The embedded speeches.

    Raises:
        InputError: their package is not installed, or damaged.
    """
    files, name = speech_files()
    return GivenText(read_documents(files, "text"), named=name)
