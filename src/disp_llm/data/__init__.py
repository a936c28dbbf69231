"""Text -> streams of tokens -> windows.

The way from a flag to windows: `sources` (what settings name), `reading` (files), `tokens` (streams
and what is held out), `windows`. Beside it: `in_memory` (what a program hands over), `examples`,
`synthetic` (text that the model writes), `spelling` (text in fewer tokens), named random streams.
"""
