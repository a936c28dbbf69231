"""A linear tagger of named entities: what a model of language has to beat to be worth its bytes.

Logistic regression (scikit-learn, which lm-eval brings) over features of a word and its neighbours:
the words themselves, beginnings, endings and shapes. The tags of a sentence are the likeliest that
make entities. The strength of the penalty is the one of four with the best F1 on the dev set.

    python benchmarks/linear_tagger.py WNUT17
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "structured_prediction"))

from conll import Sentence, Span, read_conll
from ner import counts_of, f1_of, summary_of

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Inverse strengths of the penalty that are tried."""
NEIGHBOURS = (-2, -1, 0, 1, 2)


def features_of(words: Sequence[str]) -> Iterator[dict[str, float]]:
    """What is known of each word."""
    for i in range(len(words)):
        found = {"bias": 1.0}
        for away in NEIGHBOURS:
            word = words[i + away] if 0 <= i + away < len(words) else "<end>"
            for name, value in (("word", word.lower()), ("shape", shape_of(word))):
                found[f"{name}{away}={value}"] = 1.0
        for size in (1, 2, 3):
            found[f"begins={words[i][:size]}"] = found[f"ends={words[i][-size:]}"] = 1.0
        yield found


def shape_of(word: str) -> str:
    """`iPhone7` -> `aAa0`: kinds of characters, runs as one."""
    kinds = ["A" if c.isupper() else "a" if c.isalpha() else c for c in word]
    kinds = ["0" if kind.isdigit() else kind for kind in kinds]
    return "".join(kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind)


def tags_of(sentence: Sentence) -> list[str]:
    """O, B-type, I-type for every word."""
    tags = ["O"] * len(sentence.words)
    for span in sentence.spans:
        inside = span.end - span.start - 1
        tags[span.start : span.end] = [f"B-{span.label}", *[f"I-{span.label}"] * inside]
    return tags


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities of tags in which every I goes on with one."""
    found: list[Span] = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append(Span(i, i + 1, tag[2:]))
        elif tag.startswith("I-"):
            found[-1] = Span(found[-1].start, i + 1, tag[2:])
    return found


def likeliest(scores: Sequence[Sequence[float]], tags: Sequence[str]) -> list[str]:
    """The tags with the highest sum of log-probabilities, (words, tags), that make entities."""
    best: list[tuple[float, list[str]]] = [(0.0, [])]
    for row in scores:
        reached = []
        for tag, score in zip(tags, row, strict=True):
            before = [
                (total, path)
                for total, path in best
                if not tag.startswith("I-") or (path and path[-1][2:] == tag[2:])
            ]
            if before:
                total, path = max(before, key=lambda one: one[0])
                reached.append((total + score, [*path, tag]))
        best = reached
    return max(best, key=lambda one: one[0])[1]


def counts_on(
    sentences: Sequence[Sentence], model: LogisticRegression, vectors: DictVectorizer
) -> list[tuple[int, int, int]]:
    """Spans that are found and right, found, and right, of every sentence."""
    counts = []
    for sentence in sentences:
        scores = model.predict_log_proba(vectors.transform(features_of(sentence.words)))
        spans = spans_of(likeliest(scores, model.classes_))
        counts.append(counts_of(spans, sentence.spans))
    return counts


def linear_tagger(data: Path) -> dict[str, Any]:
    """Trains on the train set, chooses on the dev set, scores on the test set."""
    files = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    train, dev, test = (read_conll(data / name) for name in files)
    began = time.perf_counter()
    vectors = DictVectorizer()
    rows = vectors.fit_transform([one for s in train for one in features_of(s.words)])
    tags = [tag for sentence in train for tag in tags_of(sentence)]
    best, chosen = -math.inf, LogisticRegression()
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300).fit(rows, tags)
        f1 = f1_of(counts_on(dev, model, vectors))[2]
        best, chosen = max((best, chosen), (f1, model), key=lambda one: one[0])
    training = time.perf_counter() - began
    began = time.perf_counter()
    counts = counts_on(test, chosen, vectors)
    seconds = (time.perf_counter() - began) / len(test)
    found = summary_of(counts, seconds, chosen.coef_.size)
    return found | {"training_s": training, "strength": chosen.C, "dev_f1": best}


if __name__ == "__main__":
    print(json.dumps(linear_tagger(Path(sys.argv[1]))))
