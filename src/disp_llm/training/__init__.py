"""Mask learning, and one training loop for everything that is trained.

Other packages use `PruningProblem` (the model, text and budget), `learn`, the loop's `train`, and
the losses.
"""
