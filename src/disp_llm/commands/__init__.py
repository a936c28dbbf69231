"""Whole tasks, from settings to results: what the command line runs and what the Python API is.

Others use `prune`, `export`, `recover`, `evaluate`, `doctor` and `bench`, each in
the module of its name.
"""
