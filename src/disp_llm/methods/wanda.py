"""Wanda: Sun et al., A Simple and Effective Pruning Approach for LLMs (arXiv 2306.11695).

Whole columns in place of single weights, as FLAP adapts it (arXiv 2312.11983, section 4).

A column of the layer that writes to the residual stream counts `‖X_j‖₂·Σ_i |W_ij|`; a KV head
counts the mean of its columns. Every block loses the same share.
"""

from disp_llm.learn import Task
from disp_llm.masks import Choice
from disp_llm.methods.activations import input_moments, score_columns, uniform
from disp_llm.methods.context import Context


def wanda(task: Task, context: Context) -> Choice:
    """Scores of KV heads and intermediate channels, as ranks within their block."""
    scores = score_columns(
        task,
        input_moments(task, context),
        lambda found, weight: found.square.sqrt() * weight.abs().sum(0),
    )
    return Choice(uniform(scores, task))
