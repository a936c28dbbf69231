"""The same model without scorers: it writes the tagged sentence token by token, as text.

After the sentence it writes `I saw [ New York ] location today`, with the probabilities of its own
head and nothing that keeps it to the words or the brackets. Training is that of the tagger with
scorers (`fit` of `ner.py`: sentences, batches, step sizes), the loss the mean over written tokens.
An entity counts where its words stand in the sentence, after what was written before it.

`specialists.py` calls it, which knows where the example lies.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conll import Sentence, Span, read_conll
from ner import DTYPE, counts_of, fit, summary_of
from tagger import Scorers, Tagger
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load

BATCH = 32
"""Sentences that are written together."""
AHEAD = 5
"""Words of the sentence in which a written word is looked for: it may have left some out."""


class PlainTagger(Tagger):
    """Writes tagged sentences as text. The scorers are not used."""

    def written(self, sentence: Sentence) -> tuple[list[int], list[int]]:
        """The tokens of a sentence, and those of the same with its tags, to the end token."""
        pieces = self.pieces(sentence)
        answer: list[int] = []
        for place in range(len(pieces.words) + 1):
            for span in sentence.spans:
                if span.end == place:
                    answer += [*pieces.closing, *self._ids(f" {span.label}")]
            answer += [t for span in sentence.spans if span.start == place for t in pieces.opening]
            answer += pieces.words[place] if place < len(pieces.words) else ()
        return list(pieces.prompt), [*answer, self.tokenizer.eos_token_id]

    def loss(self, sentences: Sequence[Sentence]) -> Tensor:
        """−ln p of what is to be written, the mean over its tokens."""
        written = [self.written(sentence) for sentence in sentences]
        longest = max(len(prompt) + len(answer) for prompt, answer in written)
        batch = torch.zeros(len(written), longest, dtype=torch.long)
        asked = torch.zeros_like(batch, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(written):
            end = len(prompt) + len(answer)
            batch[row, :end] = torch.tensor([*prompt, *answer])
            asked[row, len(prompt) : end] = True
        batch, asked = batch.to(self.model.device), asked.to(self.model.device)
        states = self.model.base_model(input_ids=batch, use_cache=False).last_hidden_state
        logits = self.model.get_output_embeddings()(states[:, :-1][asked[:, 1:]])
        return nn.functional.cross_entropy(logits.float(), batch[asked])

    @torch.no_grad()
    def tag_all(self, sentences: Sequence[Sentence]) -> list[list[Span]]:
        """What is found in each sentence, always taking the likeliest token."""
        order = sorted(range(len(sentences)), key=lambda i: len(self.pieces(sentences[i]).prompt))
        found: dict[int, list[Span]] = {}
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            texts = self._generated([list(self.pieces(sentences[i]).prompt) for i in places])
            for place, text in zip(places, texts, strict=True):
                found[place] = spans_in(text, sentences[place].words)
        return [found[place] for place in range(len(sentences))]

    def _generated(self, prompts: list[list[int]]) -> list[str]:
        """Continues prompts, padded on the left; half as many tokens again as the longest has, and
        some for tags."""
        width, end = max(map(len, prompts)), self.tokenizer.eos_token_id
        padded = torch.tensor([[end] * (width - len(one)) + one for one in prompts])
        seen = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        made = self.model.generate(
            padded, attention_mask=seen, max_new_tokens=width + width // 2 + 16, do_sample=False,
            eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        return self.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)


def spans_in(text: str, words: Sequence[str]) -> list[Span]:
    """The entities of a tagged sentence, where they stand in the words of the untagged one."""
    found: list[Span] = []
    written = text.split()
    here, place = 0, 0
    while here < len(written):
        if written[here] == "[" and "]" in written[here + 1 : -1]:
            closing = written.index("]", here + 1, len(written) - 1)
            inside, label = written[here + 1 : closing], written[closing + 1]
            start = _place_of(inside, words, place, len(words))
            if start is None:
                found.append(Span(-1 - here, -here, label))  # found, and never right
            else:
                place = start + len(inside)
                found.append(Span(start, place, label))
            here = closing + 2
        else:
            start = _place_of(written[here : here + 1], words, place, place + AHEAD)
            place = place if start is None else start + 1
            here += 1
    return found


def _place_of(some: Sequence[str], words: Sequence[str], first: int, last: int) -> int | None:
    """Where some words begin in all, from `first` to before `last`."""
    for start in range(first, min(last, len(words) - len(some) + 1)):
        if some and tuple(words[start : start + len(some)]) == tuple(some):
            return start
    return None


def plain(model: Any, tokenizer: Any) -> PlainTagger:
    """A tagger without scorers to speak of."""
    return PlainTagger(model, tokenizer, Scorers(1, ["none"]))


def train_plain(data: Path, folder: Path, epochs: int, seed: int) -> dict[str, float]:
    """Trains SmolLM2-135M on the train set and writes it; the seconds of that."""
    torch.manual_seed(seed)
    loaded = load("smollm2-135m", MachineConfig(device="cpu", dtype="float32"))
    tagger = plain(loaded.model, loaded.tokenizer)
    began = time.perf_counter()
    train = read_conll(data / "wnut17train.conll")
    fit(tagger, train, epochs, batch=8, rate=1e-4, scorer_rate=1e-3, seed=seed)
    seconds = time.perf_counter() - began
    loaded.tokenizer.save_pretrained(folder)
    loaded.model.to(DTYPE).save_pretrained(folder)
    return {"seconds": seconds}


def score_plain(data: Path, folder: Path) -> dict[str, Any]:
    """Scores what `train_plain` wrote on the test set."""
    test = read_conll(data / "emerging.test.annotated")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).eval()
    tagger = plain(model, AutoTokenizer.from_pretrained(folder))
    began = time.perf_counter()
    found = tagger.tag_all(test)
    seconds = (time.perf_counter() - began) / len(test)
    counts = [counts_of(spans, one.spans) for spans, one in zip(found, test, strict=True)]
    return summary_of(counts, seconds, model.num_parameters())
