"""Learning masks, and one training loop for whatever is trained.

Others use `PruningProblem` (what is pruned, on which text, under which budget), `learn`, the loop's
`train`, and the losses.
"""
