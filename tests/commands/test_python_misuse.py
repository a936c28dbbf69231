"""Whatever a program hands over in place of what a function takes: one line that names it.

In a process of its own, since types of arguments are checked in this one.
"""

import json

import fresh

SCRIPT = """
import json, math, sys
from pathlib import Path
import disp_lab
import disp_llm
from disp_lab import settings as compare
from disp_llm.config import commands, prune, recover
from disp_llm.config.settings import settings_of
from transformers import LlamaConfig, LlamaForCausalLM

place = Path(sys.argv[1])
values = [
    object(), 5, -1, 10**30, 1.5, math.nan, True, None, "x", "", b"x", [], [None], [object()], {},
    {"a": 1}, {1: 2}, range(3), 1j, Path("x"),
]
kinds = {
    "prune": prune.PruneConfig, "recover": recover.RecoverConfig, "eval": commands.EvalConfig,
    "compare": compare.CompareConfig, "bench": commands.BenchConfig,
    "doctor": commands.DoctorConfig, "export": commands.ExportConfig,
}
more = ("config", "progress", "stop_requested", "command", "tokenizer", "teacher", "no_such")
found = {"tried": 0, "wrong": []}

def attempt(name, *args, **options):
    found["tried"] += 1
    try:
        getattr(disp_lab if name == "compare" else disp_llm, name)(*args, **options)
        said = "was accepted"
    except disp_llm.InputError as error:
        said = "has several lines" if "\\n" in str(error) else ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    if said:
        found["wrong"].append(f"{name} {args} {options}: {said}")

for name, kind in kinds.items():
    needed = {"against": "nowhere"} if name == "bench" else {}
    config = kind("nowhere", **needed)
    usual = {"output_dir": place / "out"} if hasattr(config, "output_dir") else {}
    for setting in (*settings_of(kind), *more):
        for value in values:
            named = () if setting in ("model", "folder", "run") else ("nowhere",)
            attempt(name, *named, **(usual | needed | {setting: value}))
for name in (*kinds, "verify"):
    attempt(name)
    attempt(name, kinds["eval"]("nowhere"), **({"against": "x"} if name == "bench" else {}))
    for value in values:
        attempt(name, value, **({"against": "nowhere"} if name == "bench" else {}))

llama = LlamaForCausalLM(
    LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2)
)
for name in ("prune", "recover", "eval"):
    for value in values:
        attempt(name, llama, value)
    for other, kind in kinds.items():
        if other not in (name, "bench"):
            attempt(name, "nowhere", config=kind("nowhere"))
found["left"] = sorted(path.name for path in place.iterdir())
print(json.dumps(found))
"""

SAID = """
import disp_lab
import disp_llm
from transformers import LlamaConfig, LlamaForCausalLM

llama = LlamaForCausalLM(
    LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2)
)
for call in (
    lambda: disp_llm.prune(llama, tokenizer=5),
    lambda: disp_llm.prune("nowhere", config={"keep": 0.5}),
    lambda: disp_llm.verify(None),
    lambda: disp_llm.verify("nowhere", no_such=5),
    lambda: disp_lab.compare(),
    lambda: disp_llm.prune(),
):
    try:
        call()
    except disp_llm.InputError as error:
        print(error)
"""


def test_a_wrong_type_anywhere_is_one_line(tmp_path):
    done = fresh.run(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tried"] > 3000
    assert not found["wrong"], "\n".join(found["wrong"][:20])
    assert not found["left"]


def test_what_the_lines_say():
    done = fresh.run(SAID)
    assert done.stdout.splitlines() == [
        "tokenizer: is a int; give the tokenizer of the model in memory, as AutoTokenizer loads it",
        "config: is a dict, not a PruneConfig; give settings by their names",
        "folder: is missing; name it",
        "no_such: no such setting; see docs/api.md",
        "model: is missing; name it",
        "model: is missing; name it, or give the model inside it, with adapters merged",
    ]
