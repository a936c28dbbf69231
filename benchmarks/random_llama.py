"""Llamas with random weights, which benchmarks measure, and the memory that a process has."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from disp_llm.exporter import folders
from disp_llm.models.loading import empty_model

SHAPES = {
    "tiny": (64, 176, 3, 4, 2, 512),
    "10M": (256, 704, 8, 4, 4, 8000),
    "100M": (768, 2048, 12, 12, 12, 8000),
    "400M": (1024, 2816, 28, 16, 16, 32000),
    "8-blocks": (2048, 5632, 8, 32, 8, 32000),
    "1B": (2048, 5632, 22, 32, 8, 32000),
    "1.3B": (2048, 5504, 24, 16, 16, 32000),
    "2.5B": (2560, 6912, 34, 20, 5, 32000),
    "7B": (4096, 11008, 32, 32, 8, 32000),
    "70B-2-blocks": (8192, 28672, 2, 64, 8, 128256),
}
"""Width, intermediate width, blocks, heads, KV heads, vocabulary."""


def llama_config(shape: str) -> LlamaConfig:
    """The configuration of a Llama of that shape."""
    hidden, intermediate, blocks, heads, kv_heads, vocabulary = SHAPES[shape]
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocabulary,
        max_position_embeddings=4096,
    )  # fmt: skip


def write_llama(shape: str, folder: Path, dtype: torch.dtype, shard: str) -> None:
    """A folder of random weights, drawn tensor by tensor, on a GPU where there is one, and of a
    tokenizer that nobody uses.

    Args:
        shard: largest size of a file, such as 1GB.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = empty_model(llama_config(shape)).to(dtype)
    tensors, noise = model.state_dict(), torch.Generator(device).manual_seed(0)

    def draw(name: str) -> torch.Tensor:
        drawn = torch.ones(tensors[name].shape, dtype=dtype, device=device)
        return drawn if drawn.dim() == 1 else drawn.normal_(0, 0.02, generator=noise)

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict={})
    folders.MAX_SHARD = shard
    folders.write_weights(model, draw, folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)


def memory(key: str, pid: int | str = "self") -> int:
    """Bytes of a process that Linux gives under a key: VmRSS is resident, VmHWM the most that was,
    RssAnon what the kernel cannot drop and read again; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)
