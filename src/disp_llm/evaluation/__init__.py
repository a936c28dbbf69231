"""What a model is worth: perplexity, zero-shot tasks, speed and memory, agreement with its masks.

Others use `Measuring`, `perplexity`, `run_tasks`, `side_by_side` with its `Workload`,
`latency_costs`, `measured_time` and `corrected`, and `logit_errors`.
"""
