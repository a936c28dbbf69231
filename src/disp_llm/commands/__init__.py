"""Whole tasks, from settings to results: the command line runs them, and they are the Python API.

Each task is a function in the module of its name; `push` is in `convert`.
"""
