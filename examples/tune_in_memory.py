"""Prune a model that is in memory, tune what is left with transformers' Trainer, and measure.

python examples/tune_in_memory.py    # needs a text corpus.txt here, and the hub
"""

import datasets
import transformers

import disp_llm


def main(
    model: str = "HuggingFaceTB/SmolLM2-135M", text: str = "corpus.txt", **settings
) -> dict[str, float]:
    """Perplexity of the original, of the pruned and of the tuned model."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    dense = transformers.AutoModelForCausalLM.from_pretrained(model)
    with open(text, encoding="utf-8") as file:
        learning, test = _split(file.read())

    texts = {"text": [learning], "eval_text": [test]}
    result = disp_llm.prune(dense, tokenizer, keep=0.6, **texts, **settings)
    small = result.model(0.6)  # a PreTrainedModel like any other

    windows = _windows(tokenizer, learning)
    trainer = transformers.Trainer(
        small,
        transformers.TrainingArguments(
            output_dir="tuned", max_steps=20, learning_rate=5e-4, report_to="none"
        ),
        train_dataset=windows,
    )
    trainer.train()
    tuned = disp_llm.eval(small, tokenizer, text=[test], context=result.sizes[0].measured.window)
    return {
        "original": result.figures["original"]["measured"]["perplexity"],
        "pruned": result.size(0.6).measured.perplexity,
        "tuned": tuned["perplexity"],
    }


def _split(text: str) -> tuple[str, str]:
    """The first nine tenths to learn from, the last to measure on."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def _windows(tokenizer, text: str, length: int = 128) -> datasets.Dataset:
    """Windows of the text, with their own tokens as labels."""
    ids = tokenizer(text)["input_ids"]
    rows = [ids[i : i + length] for i in range(0, len(ids) - length, length)]
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})


if __name__ == "__main__":
    for name, perplexity in main().items():
        print(f"{name}: {perplexity:.2f}")
