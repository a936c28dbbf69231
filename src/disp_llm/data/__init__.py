"""Text -> streams of tokens -> windows.

The way from a flag to windows: `sources` (what settings name), `reading` (files), `tokens` (streams
and what is held out), `windows`. Beside it: `given` (text in memory), `examples` and their tokens,
`synthetic` (text that the model writes), named random streams.
"""
