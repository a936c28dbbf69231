"""Masks: one 0/1 vector per site and block, laid end to end in one flat vector, and their cost.

Other packages use `PrunableModel` (a model with the layout of its sites), `Masks`, `Selection`,
`masked` (runs a model masked), `Budget` and `project` (the best masks of a size).
"""
