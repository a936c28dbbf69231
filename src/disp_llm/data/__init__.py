"""Text -> streams of tokens -> windows.

From a flag to windows: `sources` (texts that settings name), `reading` (files), `tokens` (streams
and the held-out part), `windows`. Also: `in_memory` (input from a program), `examples`, `synthetic`
(text that the model writes), `spelling` (text in a smaller vocabulary), `randomness` (generators).
"""
