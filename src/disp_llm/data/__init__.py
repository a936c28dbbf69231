"""Text: files, hub data sets, what a program hands over or the model writes itself -> streams of
tokens -> windows.

Others use `load_tokens`, `Corpus`, and named random streams.
"""
