"""Configuration of a model whose blocks differ: Llama's, and what `block_configs` says of each.

vLLM and SGLang, which have the model, read it by attribute. Needs transformers alone.
"""

from transformers import LlamaConfig


class Said(dict):
    """What a block is said to be, by key or by attribute."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """Llama's, with a width or none for each branch of each block."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **values):
        super().__init__(**values)
        self.block_configs = [
            Said({part: Said(said) for part, said in block.items()}) for block in block_configs
        ]
