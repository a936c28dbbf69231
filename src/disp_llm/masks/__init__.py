"""Masks: one 0/1 vector a site a block, laid end to end in one flat vector; what they cost.

Others use `PrunableModel` (a model with the layout of its sites), `Masks` and `Selection`, `masked`
(a model that runs masked), `Budget` and `project` (the best masks of a size).
"""
