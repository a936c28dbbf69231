"""Memory and time from a text file to tokens, with the embedded model's tokenizer.

    python benchmarks/text_memory.py --megabytes 5 20 200 --tokens 500000

Every case runs in a fresh process. The text is that of the embedded speeches, again and again, as
plain text and as a line a paragraph. Measured is by how much resident memory grows at its peak
(VmHWM, which Linux has) from before the file is opened, when the tokenizer has been used once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_llama import memory
from transformers import PreTrainedTokenizerFast

from disp_llm.config.parts import TextConfig
from disp_llm.data.sources import read_sources
from disp_llm.data.tokens import load_tokens
from disp_llm.models.embedded import model_file, speech_files


def main() -> None:
    """Runs all cases and prints one line of JSON for each."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--megabytes", nargs="+", type=int, default=[5, 20, 200])
    asked.add_argument("--kinds", nargs="+", default=["txt", "jsonl"], choices=["txt", "jsonl"])
    asked.add_argument("--tokens", type=int, default=500_000, help="that a run learns from")
    asked.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.child:
        print(json.dumps(measured(given.child, given.tokens)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in given.megabytes:
            for kind in given.kinds:
                path = Path(folder) / f"{megabytes}.{kind}"
                write(path, megabytes * 10**6)
                command = [sys.executable, __file__, "--child", str(path)]
                command += ["--tokens", str(given.tokens)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                print(json.dumps({"file": path.name} | json.loads(done.stdout)), flush=True)
                path.unlink()


def write(path: Path, size: int) -> None:
    """A file of so many bytes."""
    files, _ = speech_files()
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    if path.suffix == ".jsonl":
        paragraphs = filter(str.strip, text.split("\n"))
        text = "".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs)
    content = text.encode()
    with path.open("wb") as file:
        while file.tell() < size:
            left = content[: size - file.tell()]
            whole = left if path.suffix == ".txt" else left[: left.rfind(b"\n") + 1]
            if not whole:
                return
            file.write(whole)


def measured(path: Path, tokens: int) -> dict[str, float]:
    """What it takes to make tokens of a file."""
    model = model_file()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model.parent, gguf_file=model.name)
    tokenizer("once")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what it holds
    before, began = memory("VmRSS"), time.perf_counter()
    config = TextConfig(text=(path,))
    texts = load_tokens(config, tokenizer, sources=read_sources(config, tokens=tokens))
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "megabytes": round((memory("VmHWM") - before) / 1e6, 1),
        "tokens": len(texts.corpus.streams[0]) + len(texts.evaluation),
    }


if __name__ == "__main__":
    main()
