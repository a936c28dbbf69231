"""Configuration of a model whose blocks differ: Llama's, with `block_configs` for each block.

vLLM and SGLang, which have the model, read the entries as attributes. Needs transformers alone.
"""

from transformers import LlamaConfig


class Said(dict):
    """Settings of a block, readable by key or as attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """Llama's configuration, in which each block may lack a branch or have a width of its own."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **values):
        super().__init__(**values)
        self.block_configs = [
            Said({part: Said(said) for part, said in block.items()}) for block in block_configs
        ]
