"""The example of structured prediction: every structure is a sequence of actions and back, the loss
is the log-probability of the right one, and decoding gives valid structures only."""

import itertools
import json
import math
import random
import sys
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_model

FOLDER = Path(__file__).parents[1] / "examples" / "structured_prediction"
sys.path.insert(0, str(FOLDER))

import actions  # noqa: E402
import ner  # noqa: E402
from actions import CLOSE, OPEN, Pieces, State, right_sequence  # noqa: E402
from conll import Sentence, Span, read_conll  # noqa: E402
from tagger import Scorers, Tagger  # noqa: E402

import disp_llm  # noqa: E402
from disp_llm.config.errors import InputError  # noqa: E402

LABELS = ("person", "place")


def tagger(model_type: str = "llama", labels=LABELS) -> Tagger:
    model = tiny_model(model_type)
    torch.manual_seed(0)
    return Tagger(model, byte_tokenizer(), Scorers(model.config.hidden_size, labels))


def random_spans(words: int, draws: random.Random) -> tuple[Span, ...]:
    """Up to three different ones, nested and crossing."""
    places = list(itertools.combinations(range(words + 1), 2))
    return tuple(Span(*place, draws.choice(LABELS)) for place in draws.sample(places, 3))


def replayed(pieces: Pieces, spans: tuple[Span, ...]) -> list[Span]:
    """The spans that the right actions build."""
    tokens, choices = right_sequence(pieces, spans)
    state, read = State(len(pieces.words)), list(pieces.prompt)
    for choice in choices:
        assert choice.options == state.options(len(read) - 1)
        assert state.allowed[choice.action]
        if choice.action == OPEN:
            read += pieces.opening
            state.opens(len(read) - 1)
        elif choice.action == CLOSE:
            assert choice.options.partners == tuple(b.position for b in state.partners)
            state.close(state.partners[choice.right.index(True)], choice.label)
            read += pieces.closing
        else:
            read += pieces.words[state.word]
            state.copy()
    assert read == tokens
    assert state.is_done
    return sorted(state.spans)


def test_every_structure_is_a_sequence_of_actions():
    pieces = Pieces((1, 2), ((10,), (11, 12), (13,), (14, 15, 16)), (20,), (21, 22))
    draws = random.Random(0)
    for _ in range(200):
        spans = random_spans(4, draws)
        assert replayed(pieces, spans) == sorted(spans)
    tokens, _ = right_sequence(pieces, (Span(1, 3, "place"), Span(1, 2, "person")))
    assert tokens == [1, 2, 10, 20, 20, 11, 12, 21, 22, 13, 21, 22, 14, 15, 16]


def test_any_allowed_actions_build_a_structure():
    draws = random.Random(1)
    for _ in range(300):
        state = State(draws.randint(1, 5))
        while not state.is_done:
            action = draws.choice([a for a, allowed in enumerate(state.allowed) if allowed])
            if action == OPEN:
                state.opens(0)
                assert len(state.open) <= actions.DEPTH
            elif action == CLOSE:
                state.close(draws.choice(state.partners), "x")
            else:
                state.copy()
        assert all(0 <= span.start < span.end <= state.words for span in state.spans)


def test_too_many_open_spans_are_refused():
    pieces = Pieces((1,), ((2,), (3,), (4,), (5,), (6,), (7,)), (20,), (21,))
    spans = tuple(Span(0, end, "x") for end in range(1, 6))
    with pytest.raises(ValueError, match="more than 4 spans are open at word 1"):
        right_sequence(pieces, spans)


def probability(found: Tagger, sentence: Sentence, spans: tuple[Span, ...]) -> float:
    """e^(−loss · choices): that of a structure."""
    one = Sentence(sentence.words, spans, "here")
    _, choices = right_sequence(found.pieces(one), spans)
    return math.exp(-float(found.loss([one]).detach()) * len(choices))


def test_probabilities_of_all_structures_of_a_word_sum_to_one(monkeypatch):
    """With one bracket at a time, a word is free, or a span of either label; of two words each, or
    both together, likewise."""
    monkeypatch.setattr(actions, "DEPTH", 1)
    found = tagger()
    for count in (1, 2):
        sentence = Sentence(("ab", "c")[:count], (), "here")
        places = list(itertools.combinations(range(count + 1), 2))
        one = [(Span(*place, label),) for place in places for label in LABELS]
        two = [(Span(0, 1, a), Span(1, 2, b)) for a in LABELS for b in LABELS if count == 2]
        total = sum(probability(found, sentence, spans) for spans in [(), *one, *two])
        assert total == pytest.approx(1.0, rel=1e-4)


def test_brackets_that_give_the_same_span_count_together():
    """Of two spans that begin at one word, the first that ends may close either bracket."""
    found = tagger()
    spans = (Span(0, 2, "person"), Span(0, 1, "place"))
    _, choices = right_sequence(found.pieces(Sentence(("a", "b"), spans, "")), spans)
    closes = [choice for choice in choices if choice.action == CLOSE]
    assert [choice.right for choice in closes] == [(True, True), (True,)]
    assert float(found.loss([Sentence(("a", "b"), spans, "")]).detach()) > 0


def test_sentences_of_a_batch_cost_what_they_cost_alone():
    found = tagger()
    sentences = [
        Sentence(("a", "longer", "one"), (Span(1, 3, "place"),), ""),
        Sentence(("b",), (), ""),
    ]
    counts = [len(right_sequence(found.pieces(s), s.spans)[1]) for s in sentences]
    alone = [float(found.loss([one]).detach()) for one in sentences]
    together = float(found.loss(sentences).detach())
    wanted = sum(n * value for n, value in zip(counts, alone, strict=True)) / sum(counts)
    assert together == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3_5_text"])
def test_decoding_takes_the_likeliest_action_with_and_without_a_cache(model_type):
    """Against one action at a time, each after reading everything anew."""
    found = tagger(model_type)
    for seed in range(4):
        torch.manual_seed(seed)
        found = Tagger(
            found.model, found.tokenizer, Scorers(found.model.config.hidden_size, LABELS)
        )
        sentence = Sentence(tuple("the cat sat on a mat".split()), (), "")
        slow = step_by_step(found, sentence)
        assert found.tag(sentence) == found.tag(sentence, cached=False) == slow


def step_by_step(found: Tagger, sentence: Sentence) -> list[Span]:
    pieces, state = found.pieces(sentence), State(len(sentence.words))
    tokens = list(pieces.prompt)
    with torch.no_grad():
        while not state.is_done:
            base = found.model.base_model
            states = base(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
            action, partner, label = found._likeliest(states.float(), state, len(tokens) - 1)
            if action == OPEN:
                tokens += pieces.opening
                state.opens(len(tokens) - 1)
            elif action == CLOSE:
                state.close(state.partners[partner], label)
                tokens += pieces.closing
            else:
                tokens += pieces.words[state.word]
                state.copy()
    return sorted(state.spans)


TRAIN = "Ann\tB-person\nLee\tI-person\nsaw\tO\nRome\tB-place\n\nit\tO\nrained\tO\n\n" * 6


def test_from_training_to_a_tagged_sentence(llama_folder, tmp_path, capsys):
    path, out = tmp_path / "train.conll", tmp_path / "tagger"
    path.write_text(TRAIN)
    flags = ["--epochs", "30", "--batch", "4", "--rate", "0.003", "--scorer-rate", "0.01"]
    files = ["--train", str(path), "--dev", str(path), "--output", str(out)]
    found = ner.main(["train", str(llama_folder), *files, *flags])
    assert found["labels"] == ["person", "place"]
    assert found["dev"]["f1"] == 1.0
    assert ner.main(["eval", str(out), "--test", str(path)])["f1"] == 1.0
    tagged = ner.main(["tag", str(out), "Ann Lee saw Rome"])
    assert tagged["spans"] == [
        {"start": 0, "end": 2, "label": "person"},
        {"start": 3, "end": 4, "label": "place"},
    ]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["spans"] == tagged["spans"]
    half, tuned = tmp_path / "run", tmp_path / "tuned"
    small = ["--keep", "0.7", "--steps", "3", "--length", "48", "--batch", "1"]
    ner.main(["prune", str(out), *files[:4], "--output", str(half), *small])
    source = json.loads((half / "result.json").read_text())["source"]
    assert source["text"].startswith("12 examples in memory")
    counted = ner.main(["eval", str(half / "keep-0.7"), "--test", str(path)])
    assert counted["parameters"] < ner.main(["eval", str(out), "--test", str(path)])["parameters"]
    files[-1] = str(tuned)
    found = ner.main(["train", str(half / "keep-0.7"), *files, *flags[:4], "--scorer-rate", "0"])
    assert found["dev"]["f1"] == 1.0  # by scorers that have gone on, unchanged
    before, after = (ner.scorers_in(folder) for folder in (out, tuned))
    assert all(
        torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True)
    )


def test_a_pruned_tagger_in_8_bits_tags_as_before(llama_folder, tmp_path):
    pytest.importorskip("compressed_tensors", reason="quantising needs it, an extra")
    sys.path.insert(0, str(FOLDER.parents[1] / "benchmarks"))
    import specialists

    path, run, eight = (tmp_path / name for name in ("train.conll", "run", "eight"))
    path.write_text(TRAIN)
    files = ["--train", str(path), "--output"]
    flags = ["--epochs", "15", "--batch", "4", "--rate", "0.003", "--scorer-rate", "0.01"]
    ner.main(["train", str(llama_folder), *files, str(tmp_path / "dense"), *flags])
    small = ["--keep", "0.9", "--steps", "1", "--length", "48", "--batch", "1"]
    small += ["--dev", str(path)]
    ner.main(["prune", str(tmp_path / "dense"), *files, str(run), *small])
    ner.main(["train", str(run / "keep-0.9"), *files, str(tmp_path / "half"), *flags])
    specialists.in_int8(tmp_path / "half", eight)
    folders = (tmp_path / "half", eight)
    scored = [ner.main(["eval", str(one), "--test", str(path)]) for one in folders]
    assert [one["f1"] for one in scored] == [1.0, 1.0]
    weights = [(one / "model.safetensors").stat().st_size for one in folders]
    assert weights[1] < weights[0]


def test_the_loss_that_prunes_is_the_loss_that_trains():
    found = tagger()
    some = [Sentence(("ab", "c"), (Span(0, 1, "place"),), "here"), Sentence(("d",), (), "there")]
    examples = [found.example(one) for one in some]
    assert found.loss(some).requires_grad
    for one, example in zip(some, examples, strict=True):
        mean = disp_llm.eval(found.model, found.tokenizer, examples=[example], context=32)[
            "perplexity"
        ]
        assert math.log(mean) == pytest.approx(float(found.loss([one]).detach()), rel=1e-4)


def test_f1_counts_exact_spans_with_their_labels():
    right = [Span(0, 1, "a"), Span(2, 4, "b")]
    counts = [ner.counts_of([Span(0, 1, "a"), Span(2, 4, "a")], right), ner.counts_of([], [])]
    assert ner.f1_of(counts) == (0.5, 0.5, 0.5)
    assert ner.f1_of([(0, 0, 3)]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Ann\tB-person\nLee\n", "line 2: has a word without a tag"),
        ("Ann\tB-person\n\nLee\tI-person\n", "line 3: goes on with 'person', which was not begun"),
        ("Ann\tB-person\nLee\tI-place\n", "line 2: goes on with 'place', which was not begun"),
        ("Ann\tX\n", "line 1: has the tag 'X'"),
        ("Ann\tB-\n", "line 1: has the tag 'B-'"),
        ("Ann\tB-thing\n", "line 1: has the type 'thing', which was not learned"),
        ("\n\n", "holds no sentences"),
    ],
)
def test_what_is_no_sentence_is_named_by_its_line(tmp_path, content, said):
    path = tmp_path / "bad.conll"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_conll(path, LABELS)
    assert said in str(error.value)


def test_bad_input_ends_in_one_line(llama_folder, tmp_path, capsys):
    path = tmp_path / "long.conll"
    path.write_text("a\tB-person\n" + "word\tO\n" * 400)
    for arguments, said in (
        (["train", str(llama_folder), "--train", str(path)], "long.conll, line 1: has 2"),
        (["eval", str(llama_folder), "--test", str(path)], "holds no tagger"),
        (["train", str(llama_folder), "--train", str(tmp_path / "no")], "cannot be read"),
    ):
        with pytest.raises(SystemExit) as error:
            ner.main(arguments)
        assert error.value.code == 2
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_plain_tagger_writes_and_reads_tagged_text():
    """What it is to write reads back as the entities; what it leaves out or invents does not."""
    sys.path.insert(0, str(FOLDER.parents[1] / "benchmarks"))
    from plain_tagger import plain as plain_tagger
    from plain_tagger import spans_in

    plain = plain_tagger(tiny_model("llama"), byte_tokenizer())
    words = tuple("I saw New York and New Jersey".split())
    spans = (Span(2, 4, "place"), Span(5, 7, "place"))
    sentence = Sentence(words, spans, "here")
    prompt, answer = plain.written(sentence)
    assert prompt == list(plain.pieces(sentence).prompt)
    text = plain.tokenizer.decode(answer, skip_special_tokens=True)
    assert text.split() == "I saw [ New York ] place and [ New Jersey ] place".split()
    assert spans_in(text, words) == list(spans)
    assert spans_in("[ New Jersey ] place saw", words) == [Span(5, 7, "place")]
    assert spans_in("I saw [ York ] place [ New", words) == [Span(3, 4, "place")]
    (invented,) = spans_in("I saw [ Boston ] place", words)
    assert invented not in spans
    assert invented.start < 0
    assert spans_in("saw [ New York ]", words) == []
    tagged = plain.tag_all([sentence, Sentence(("a",), (), "there")])
    assert len(tagged) == 2
    loss = plain.loss([sentence, Sentence(("a",), (), "there")])
    by_hand = [plain.written(one) for one in (sentence, Sentence(("a",), (), "there"))]
    total, count = 0.0, 0
    for before, after in by_hand:
        logits = plain.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        total -= sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(after))
        count += len(after)
    assert float(loss) == pytest.approx(total / count, rel=1e-4)


def test_the_linear_tagger_finds_the_likeliest_entities_that_are_valid():
    """Against all sequences of tags; and tags and entities are each other's inverse."""
    sys.path.insert(0, str(FOLDER.parents[1] / "benchmarks"))
    from linear_tagger import likeliest, shape_of, spans_of, tags_of

    tags = ["B-a", "B-b", "I-a", "I-b", "O"]
    draws = random.Random(0)
    for _ in range(20):
        scores = [[draws.gauss(0, 1) for _ in tags] for _ in range(4)]

        def total(path, scores=scores):
            return sum(row[tags.index(tag)] for row, tag in zip(scores, path, strict=True))

        valid = [
            path
            for path in itertools.product(tags, repeat=4)
            if all(
                not tag.startswith("I-") or before[2:] == tag[2:]
                for before, tag in itertools.pairwise(("O", *path))
            )
        ]
        found = likeliest(scores, tags)
        assert found == list(max(valid, key=total))
        sentence = Sentence(("w",) * 4, tuple(spans_of(found)), "")
        assert tags_of(sentence) == found
    assert shape_of("iPhone7s!!") == "aAa0a!"
