"""What several methods share: calibration text and what flows over it, scores, low ranks.

`method` and `baseline` hold what every method and every baseline declares itself as, and
`calibration` the text that they all see; the rest serves single methods.
"""
