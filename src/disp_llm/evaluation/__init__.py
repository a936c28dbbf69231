"""Measures models: perplexity, zero-shot tasks, speed, memory, agreement with the masked model."""
