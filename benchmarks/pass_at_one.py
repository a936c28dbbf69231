"""How many programming problems a model solves at the first try: pass@1, greedy.

    python benchmarks/pass_at_one.py MODEL ... --humaneval HumanEval.jsonl --mbpp sanitized.json

Problems are those of HumanEval (164, arXiv 2107.03374) and of the test split of sanitised MBPP
(257, arXiv 2108.07732). A model with a chat template is asked for a function in a block of
Markdown, any other continues the prompt. An answer may be a quarter longer than the longest
reference.

What a model writes is run in a process of its own, in an empty folder, without network, with limits
of time, memory and file size, by `prlimit` and `unshare` of util-linux. It may read what you may
read, and write outside of its folder: take a machine that has nothing to lose.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from disp_llm.cli.environment import prepare_libraries
from disp_llm.config.parts import MachineConfig
from disp_llm.data.example_tokens import stream_of_examples
from disp_llm.data.in_memory import read_input_examples
from disp_llm.evaluation.answers import written_answers
from disp_llm.evaluation.tasks import error_of_mean
from disp_llm.masks.prunable import PrunableModel
from disp_llm.models.loading import load
from disp_llm.runs.files import write_json
from disp_llm.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "pass_at_one.json"
SECONDS, MEMORY, FILE = 10, 2**30, 2**20
"""What a program may take: time, bytes of address space, bytes of a file that it writes."""

ALONE = (
    *("prlimit", f"--as={MEMORY}", f"--fsize={FILE}", "--core=0"),
    *("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"),
)
"""Neither network nor other processes, and what it has started ends with it."""

MBPP_TEST = range(11, 511)
"""Tasks of its test split."""

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One of a set."""

    prompt: str
    """The beginning of the program, or what it is to do."""
    reference: str
    before: str
    """What stands before the answer when it is run: of a prompt that is continued, its text."""
    tests: str

    def question(self) -> str:
        """What a model is asked that can chat."""
        asked = "Write the whole Python function, with its imports, in one code block."
        return f"{asked}\n\n```python\n{self.prompt}\n```\n"

    def program(self, answer: str, chat: bool) -> str:
        """What is run: it ends with 0 if the answer is right."""
        if not chat:
            return f"{self.before}{answer}\n{self.tests}\n"
        block = BLOCK.search(answer)
        imports = (line for line in self.before.splitlines() if re.match(r"(from|import) ", line))
        return "\n".join([*imports, block[1] if block else answer, self.tests, ""])


def humaneval(file: Path) -> Iterator[Problem]:
    """Functions by their head and docstring."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tests = f"{row['test']}\ncheck({row['entry_point']})"
        yield Problem(row["prompt"], row["canonical_solution"], row["prompt"], tests)


def mbpp(file: Path) -> Iterator[Problem]:
    """Functions by a sentence and three tests, one of which names the function."""
    for row in json.loads(file.read_text(encoding="utf-8")):
        if row["task_id"] in MBPP_TEST:
            tests = "\n".join(row["test_list"])
            prompt = f'"""\n{row["prompt"]}\n{tests}\n"""\n'
            before = "".join(f"{line}\n" for line in row["test_imports"])
            yield Problem(prompt, row["code"], before, tests)


def passes(program: str) -> bool:
    """Whether a program ends with 0 within its limits."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "program.py").write_text(program, encoding="utf-8")
        try:
            done = subprocess.run(
                [*ALONE, sys.executable, "-I", "program.py"], cwd=folder, env={"PATH": os.defpath},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def solved(model: str, problems: list[Problem], limit: int | None) -> dict:
    """Figures of one model on one set; `passed` has a 0 or 1 for each problem."""
    began = time.monotonic()
    loaded = load(model, MachineConfig())
    target = PrunableModel.of(loaded)
    chat = bool(loaded.tokenizer.chat_template)
    asked = problems[:limit]
    rows = [
        {
            "prompt": one.question() if chat else one.prompt,
            "answer": f"```python\n{one.prompt}{one.reference}\n```" if chat else one.reference,
        }
        for one in asked
    ]
    given = read_input_examples(rows, "auto" if chat else "plain")
    stream = stream_of_examples(given, loaded.tokenizer, loaded.bos_token_id)
    answers = written_answers(target, loaded.tokenizer, stream, _said)
    programs = [one.program(answer, chat) for one, answer in zip(asked, answers, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = list(pool.map(passes, programs))
    return {
        "pass@1": statistics.fmean(passed),
        "stderr": error_of_mean(passed),
        "passed": "".join(str(int(one)) for one in passed),
        "parameters": target.parameters,
        "seconds": round(time.monotonic() - began),
    }


def _said(done: int, total: int) -> None:
    print(f"answers {done}/{total}", file=sys.stderr, flush=True)


def main() -> None:
    """Adds a row for each model and set to the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--humaneval", type=Path)
    parser.add_argument("--mbpp", type=Path)
    parser.add_argument("--limit", type=int, help="problems of a set. Default: all")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if not (given.humaneval or given.mbpp):
        parser.error("give --humaneval or --mbpp")
    if not passes(""):
        parser.error(f"`{' '.join(ALONE)} true` does not run here, which keeps programs apart")
    prepare_libraries()
    sets = [("HumanEval", humaneval, given.humaneval), ("MBPP", mbpp, given.mbpp)]
    rows = json.loads(given.results.read_text()) if given.results.exists() else []
    for model in given.models:
        for name, read, file in sets:
            if file is not None:
                figures = solved(model, list(read(file)), given.limit)
                key = {"model": Path(model).name, "set": name}
                row = key | figures | provenance("python benchmarks/pass_at_one.py", 0)
                rows = [old for old in rows if not key.items() <= old.items()] + [row]
                write_json(given.results, rows)
                print(f"{model}, {name}: {row['pass@1']:.3f}", flush=True)


if __name__ == "__main__":
    main()
