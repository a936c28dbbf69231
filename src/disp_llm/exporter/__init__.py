"""Exports masks as models: the plan of the cut, folders with their card, other formats."""
