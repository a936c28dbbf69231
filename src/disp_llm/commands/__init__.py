"""Whole tasks, from settings to results: what the command line runs and what the Python API is.

Each task is a function in the module of its name; `push` stands beside `convert`.
"""
