"""Named entities as a sequence of actions, by any causal model: dense or pruned.

    python ner.py train smollm2-135m --train train.conll --dev dev.conll --output tagger
    python ner.py eval tagger --test test.conll
    python ner.py tag tagger "Obama visited New York"

See README.md beside this file.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from conll import Sentence, Span, read_conll
from safetensors.torch import load_file, save_file
from tagger import Scorers, Tagger
from transformers import AutoModelForCausalLM, AutoTokenizer

import disp_llm  # noqa: F401  (registers pruned models)
from disp_llm.config.errors import InputError
from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load

SAMPLES = 1000
"""Bootstrap samples of the sentences."""


@dataclass(frozen=True)
class Score:
    """Micro F1 over exact spans with their labels."""

    precision: float
    recall: float
    f1: float
    error: float
    """Standard deviation of F1 over bootstrap samples of the sentences."""
    sentences: int
    seconds: float
    """Of tagging one sentence, on average."""

    def __str__(self) -> str:
        return (
            f"F1 {100 * self.f1:.1f} ± {100 * self.error:.1f}  (precision "
            f"{100 * self.precision:.1f}, recall {100 * self.recall:.1f}, {self.sentences:,} "
            f"sentences, {1000 * self.seconds:.0f} ms each)"
        )


def counts_of(found: Sequence[Span], right: Sequence[Span]) -> tuple[int, int, int]:
    """Spans that are both, that were found, and that are right."""
    return len(set(found) & set(right)), len(set(found)), len(set(right))


def f1_of(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of the counts of many sentences; 0 where there is nothing."""
    both, found, right = (sum(column) for column in zip(*counts, strict=True))
    precision, recall = both / max(found, 1), both / max(right, 1)
    return precision, recall, 2 * both / max(found + right, 1)


def score(tagger: Tagger, sentences: Sequence[Sentence]) -> Score:
    """What a tagger finds in sentences."""
    began = time.perf_counter()
    counts = [counts_of(tagger.tag(one), one.spans) for one in sentences]
    seconds = (time.perf_counter() - began) / len(sentences)
    draws = random.Random(0)
    sampled = [f1_of(draws.choices(counts, k=len(counts)))[2] for _ in range(SAMPLES)]
    mean = sum(sampled) / SAMPLES
    error = (sum((value - mean) ** 2 for value in sampled) / (SAMPLES - 1)) ** 0.5
    return Score(*f1_of(counts), error, len(sentences), seconds)


def loaded(name: str, device: str) -> tuple[Any, Any]:
    """A model in float32, which is trained, and its tokenizer."""
    found = load(name, MachineConfig(device=device, dtype="float32"))
    return found.model, found.tokenizer


def train(
    tagger: Tagger,
    sentences: Sequence[Sentence],
    *,
    epochs: int,
    batch: int,
    rate: float,
    scorer_rate: float,
    seed: int,
) -> None:
    """Trains the whole model but its embeddings, and the scorers; AdamW, a warm-up and a line down
    to 0, bfloat16 products where the device has them."""
    model, draws = tagger.model, random.Random(seed)
    model.requires_grad_(True).train()
    model.get_input_embeddings().requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": trained, "lr": rate},
            {"params": tagger.scorers.parameters(), "lr": scorer_rate},
        ]
    )
    steps = epochs * -(-len(sentences) // batch)
    lines = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps), 1.0)
    )
    device = tagger.scorers.action.weight.device
    step, began = 0, time.perf_counter()
    for _ in range(epochs):
        order = list(sentences)
        draws.shuffle(order)
        for first in range(0, len(order), batch):
            with torch.autocast(device.type, torch.bfloat16):
                loss = tagger.loss(order[first : first + batch])
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*trained, *tagger.scorers.parameters()], 1.0)
            optimizer.step()
            lines.step()
            optimizer.zero_grad()
            step += 1
            if step % 20 == 0 or step == steps:
                pace = (time.perf_counter() - began) / step
                print(
                    f"step {step}/{steps}  loss {float(loss.detach()):.4f}  {pace:.2f} s a step",
                    file=sys.stderr,
                )
    model.requires_grad_(False).eval()


def save(tagger: Tagger, folder: Path) -> None:
    """Writes model, tokenizer and scorers."""
    tagger.model.save_pretrained(folder)
    tagger.tokenizer.save_pretrained(folder)
    save_file(tagger.scorers.state_dict(), folder / "scorers.safetensors")
    (folder / "labels.json").write_text(json.dumps(tagger.scorers.labels))


def tagger_in(folder: Path, device: str = "cpu") -> Tagger:
    """What `save` wrote.

    Raises:
        InputError: there is none.
    """
    if not (folder / "labels.json").is_file():
        raise InputError("holds no tagger", field=str(folder), hint="make one by `ner.py train`")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    labels = json.loads((folder / "labels.json").read_text())
    scorers = Scorers(model.config.get_text_config().hidden_size, labels)
    scorers.load_state_dict(load_file(folder / "scorers.safetensors"))
    return Tagger(model, AutoTokenizer.from_pretrained(folder), scorers.to(device))


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    sentences = read_conll(args.train)
    labels = sorted({span.label for one in sentences for span in one.spans})
    dev = read_conll(args.dev, labels) if args.dev else []
    torch.manual_seed(args.seed)
    model, tokenizer = loaded(args.model, args.device)
    scorers = Scorers(model.config.get_text_config().hidden_size, labels).to(args.device)
    tagger = Tagger(model, tokenizer, scorers)
    for one in (*sentences, *dev):
        tagger.pieces(one)  # refused now and not after an hour
    began = time.perf_counter()
    train(
        tagger, sentences, epochs=args.epochs, batch=args.batch, rate=args.rate,
        scorer_rate=args.scorer_rate, seed=args.seed,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    save(tagger, args.output)
    found = {"seconds": seconds, "sentences": len(sentences), "labels": labels}
    return found | ({"dev": vars(score(tagger, dev))} if dev else {})


def run_eval(args: argparse.Namespace) -> dict[str, Any]:
    tagger = tagger_in(args.folder, args.device)
    found = score(tagger, read_conll(args.test, tagger.scorers.labels))
    print(found, file=sys.stderr)
    return vars(found)


def run_tag(args: argparse.Namespace) -> dict[str, Any]:
    words = tuple(args.sentence.split())
    spans = tagger_in(args.folder, args.device).tag(Sentence(words, (), "the sentence"))
    return {"words": words, "spans": [vars(span) for span in spans]}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = found.add_subparsers(required=True)
    one = commands.add_parser("train", help="train a model and its scorers")
    one.add_argument("model", help="hub id, folder (pruned ones too), or smollm2-135m")
    one.add_argument("--train", type=Path, required=True, help="CoNLL file")
    one.add_argument("--dev", type=Path, help="CoNLL file that is scored at the end")
    one.add_argument("--output", type=Path, default=Path("tagger"))
    one.add_argument("--epochs", type=int, default=3)
    one.add_argument("--batch", type=int, default=16, help="sentences of a step")
    one.add_argument("--rate", type=float, default=5e-5, help="step size of the model")
    one.add_argument("--scorer-rate", type=float, default=1e-3, help="step size of the scorers")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=run_train)
    one = commands.add_parser("eval", help="score a tagger")
    one.add_argument("folder", type=Path)
    one.add_argument("--test", type=Path, required=True, help="CoNLL file")
    one.set_defaults(run=run_eval)
    one = commands.add_parser("tag", help="tag one sentence, its words apart by spaces")
    one.add_argument("folder", type=Path)
    one.add_argument("sentence")
    one.set_defaults(run=run_tag)
    for command in commands.choices.values():
        command.add_argument("--device", default="cpu")
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs a command; bad input ends in one line and exit code 2."""
    args = parser().parse_args(arguments)
    try:
        result = args.run(args)
    except InputError as error:
        print(f"ner.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
