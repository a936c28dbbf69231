"""Named entities as a sequence of actions, by any causal model: dense or pruned.

    python ner.py train smollm2-135m --train train.conll --dev dev.conll --output tagger
    python ner.py prune tagger --train train.conll --dev dev.conll --keep 0.5 --output run
    python ner.py train run/keep-0.5 --train train.conll --output small
    python ner.py eval small --test test.conll
    python ner.py tag small "Obama visited New York"

See README.md beside this file.
"""

import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from conll import Sentence, Span, read_conll
from safetensors.torch import load_file, save_file
from tagger import Scorers, Tagger
from transformers import AutoModelForCausalLM, AutoTokenizer

import disp_llm
from disp_llm import InputError
from disp_llm.config.parts import MachineConfig
from disp_llm.models.loading import load

SAMPLES = 1000
"""Bootstrap samples of the sentences."""

DTYPE = torch.bfloat16
"""Of models that are written and run; training is in float32."""

SCORERS = ("scorers.safetensors", "labels.json")
"""What lies in a folder beside the model."""


def counts_of(found: Sequence[Span], right: Sequence[Span]) -> tuple[int, int, int]:
    """Spans that are both, that were found, and that are right."""
    return len(set(found) & set(right)), len(set(found)), len(set(right))


def f1_of(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of the counts of many sentences; 0 where there is nothing."""
    both, found, right = (sum(column) for column in zip(*counts, strict=True))
    precision, recall = both / max(found, 1), both / max(right, 1)
    return precision, recall, 2 * both / max(found + right, 1)


def score(tagger: Tagger, sentences: Sequence[Sentence]) -> dict[str, Any]:
    """Micro F1 over exact spans with their labels, its standard deviation over bootstrap samples of
    the sentences, the seconds that a sentence took, and the counts of every sentence."""
    began = time.perf_counter()
    counts = [counts_of(tagger.tag(one), one.spans) for one in sentences]
    seconds = (time.perf_counter() - began) / len(sentences)
    size = sum(parameter.numel() for parameter in tagger.model.parameters())
    return summary_of(counts, seconds, size)


def summary_of(
    counts: Sequence[tuple[int, int, int]], seconds: float, parameters: int
) -> dict[str, Any]:
    """What `score` says, from the counts of every sentence."""
    draws = random.Random(0)
    sampled = [f1_of(draws.choices(counts, k=len(counts)))[2] for _ in range(SAMPLES)]
    precision, recall, f1 = f1_of(counts)
    found = {"f1": f1, "f1_stderr": statistics.stdev(sampled), "precision": precision}
    found |= {"recall": recall, "seconds": seconds, "parameters": parameters}
    return found | {"counts": counts}


def batches_of(
    sentences: Sequence[Sentence], batch: int, draws: random.Random
) -> list[Sequence[Sentence]]:
    """All sentences in random order, those of a batch of like length, so that little is padding."""
    order = sorted(sentences, key=lambda one: len(one.words) * draws.uniform(0.8, 1.25))
    batches = [order[first : first + batch] for first in range(0, len(order), batch)]
    draws.shuffle(batches)
    return batches


def fit(
    tagger: Tagger,
    sentences: Sequence[Sentence],
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
    device = tagger.scorers.device
    step, began = 0, time.perf_counter()
    for _ in range(epochs):
        for some in batches_of(sentences, batch, draws):
            with torch.autocast(device.type, torch.bfloat16):
                loss = tagger.loss(some)
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
    tagger.model.to(DTYPE).save_pretrained(folder)
    tagger.tokenizer.save_pretrained(folder)
    save_file(tagger.scorers.state_dict(), folder / SCORERS[0])
    (folder / SCORERS[1]).write_text(json.dumps(tagger.scorers.labels))


def scorers_in(folder: Path) -> Scorers:
    """The scorers that lie beside a model.

    Raises:
        InputError: there are none.
    """
    if not (folder / SCORERS[1]).is_file():
        raise InputError("holds no tagger", field=str(folder), hint="make one by `ner.py train`")
    weights = load_file(folder / SCORERS[0])
    labels = json.loads((folder / SCORERS[1]).read_text())
    scorers = Scorers(weights["closing.weight"].shape[1], labels)
    scorers.load_state_dict(weights)
    return scorers


def tagger_in(folder: Path, device: str = "cpu") -> Tagger:
    """What `save` wrote.

    Raises:
        InputError: there is none.
    """
    scorers = scorers_in(folder).to(device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).to(device).eval()
    if getattr(model.config, "quantization_config", None):
        with torch.no_grad():  # the first run of the whole model unpacks it; we run its inside
            model(torch.zeros(1, 1, dtype=torch.long, device=device))
    return Tagger(model, AutoTokenizer.from_pretrained(folder), scorers)


def train(
    model: tyro.conf.Positional[str],
    train: Path,
    dev: Path | None = None,
    output: Path = Path("tagger"),
    epochs: int = 3,
    batch: int = 8,
    rate: float = 1e-4,
    scorer_rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train a model and its scorers; those of a tagger go on from where they are.

    Args:
        model: Hub id, folder (pruned ones too), a tagger, or smollm2-135m.
        train: CoNLL file.
        dev: CoNLL file that is scored at the end.
        output: Folder that is written.
        epochs: How often every sentence is read.
        batch: Sentences of a step.
        rate: Step size of the model.
        scorer_rate: Step size of the scorers.
        seed: Of the order of sentences, and of how scorers begin.
        device: Where it runs.
    """
    if output.exists() and any(output.iterdir()):
        raise InputError("holds something", field=str(output), hint="name another --output")
    begun = scorers_in(Path(model)) if (Path(model) / SCORERS[1]).is_file() else None
    sentences = read_conll(train, begun.labels if begun else None)
    labels = begun.labels if begun else sorted({s.label for one in sentences for s in one.spans})
    held_out = read_conll(dev, labels) if dev else []
    torch.manual_seed(seed)
    loaded = load(model, MachineConfig(device=device, dtype="float32"))
    scorers = begun or Scorers(loaded.model.config.get_text_config().hidden_size, labels)
    tagger = Tagger(loaded.model, loaded.tokenizer, scorers.to(device))
    for one in (*sentences, *held_out):
        tagger.pieces(one)  # refused now and not after an hour
    began = time.perf_counter()
    fit(tagger, sentences, epochs, batch, rate, scorer_rate, seed)
    found = {"seconds": time.perf_counter() - began, "labels": labels}
    save(tagger, output)
    return found | ({"dev": score(tagger, held_out)} if dev else {})


def prune(
    folder: tyro.conf.Positional[Path],
    train: Path,
    dev: Path,
    keep: tuple[float, ...] = (0.5,),
    output: Path = Path("run"),
    method: str = "learned",
    recipe: str = "default",
    steps: int = 150,
    length: int = 512,
    batch: int = 2,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Make smaller taggers of one; the loss of its structures teaches the masks.

    Args:
        folder: A tagger.
        train: CoNLL file to learn from.
        dev: CoNLL file whose loss is measured.
        keep: Shares of the block parameters that stay.
        output: Run folder; a tagger a size lies in it.
        method: What chooses the masks, as in `disp-llm prune`.
        recipe: As in `disp-llm prune`.
        steps: Of learning.
        length: Tokens of a window.
        batch: Windows of a step.
        seed: Of what is drawn.
        device: Where it runs.
    """
    tagger = tagger_in(folder, device)
    tagger.scorers.requires_grad_(False)
    known = [read_conll(path, tagger.scorers.labels) for path in (train, dev)]
    examples, held_out = ([tagger.example(one) for one in some] for some in known)
    began = time.perf_counter()
    result = disp_llm.prune(
        str(folder), examples=examples, eval_examples=held_out, keep=list(keep), output_dir=output,
        method=method, recipe=recipe, steps=steps, length=length, batch=batch, seed=seed,
        device=device, resume="auto",
    )  # fmt: skip
    seconds = time.perf_counter() - began
    for size in result.sizes:
        for name in SCORERS:
            shutil.copy(folder / name, Path(size.folder) / name)
    losses = {size.folder: size.measured.perplexity for size in result.sizes if size.measured}
    return {"run": str(output), "seconds": seconds, "perplexity of a choice": losses}


def evaluate(folder: tyro.conf.Positional[Path], test: Path, device: str = "cpu") -> dict[str, Any]:
    """Score a tagger on a CoNLL file."""
    tagger = tagger_in(folder, device)
    return score(tagger, read_conll(test, tagger.scorers.labels))


def tag(
    folder: tyro.conf.Positional[Path],
    sentence: tyro.conf.Positional[str],
    device: str = "cpu",
) -> dict[str, Any]:
    """Tag one sentence, its words apart by spaces."""
    words = tuple(sentence.split())
    spans = tagger_in(folder, device).tag(Sentence(words, (), "the sentence"))
    return {"words": words, "spans": [vars(span) for span in spans]}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs a command; bad input ends in one line and exit code 2."""
    commands = {"train": train, "prune": prune, "eval": evaluate, "tag": tag}
    try:
        result = tyro.extras.subcommand_cli_from_dict(commands, args=arguments)
    except InputError as error:
        print(f"ner.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
