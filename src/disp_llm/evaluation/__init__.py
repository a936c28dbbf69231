"""What a model is worth: perplexity, zero-shot tasks, speed and memory, agreement with masks."""
