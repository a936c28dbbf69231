"""Masks -> what others load: the plan of the cut, folders with their card, other formats."""
