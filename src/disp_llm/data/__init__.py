"""Text: files, hub data sets or what a program hands over -> streams of tokens -> windows.

Others use `load_tokens`, `Corpus` and its `Mixture` of sources, and named random streams.
"""
