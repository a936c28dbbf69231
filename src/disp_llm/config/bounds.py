"""What numbers and words a setting can take, declared in the type of its field, which
`recipes.configured` checks: `steps: Steps = 150`.

A bound is what torch, the files and a machine can take at most, far above what makes sense.
"""

from typing import Annotated

from msgspec import Meta

Some = Meta(min_length=1)
"""Of a list that must hold something."""

Steps = Annotated[int, Meta(ge=0, le=10**9)]
Tokens = Annotated[int, Meta(ge=1, le=10**12)]
AnyTokens = Annotated[int, Meta(ge=0, le=10**12)]
"""0 = as many as are needed."""

Window = Annotated[int, Meta(ge=2, le=2**24)]
"""Tokens of a window that is learned from or scored: its first one is not predicted."""

Length = Annotated[int, Meta(ge=1, le=2**24)]
"""Tokens of a sequence that is read or written."""

Batch = Annotated[int, Meta(ge=1, le=2**16)]
Sequences = Annotated[int, Meta(ge=1, le=10**6)]
Number = Annotated[int, Meta(ge=0, le=10**6)]
AnyRank = Annotated[int, Meta(ge=0, le=2**16)]
Multiple = Annotated[int, Meta(ge=1, le=2**16)]
"""Of which widths are multiples."""

AnyMultiple = Annotated[int, Meta(ge=0, le=2**16)]
Points = Annotated[int, Meta(ge=2, le=1000)]
Rounds = Annotated[int, Meta(ge=0, le=10**4)]
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]

Share = Annotated[float, Meta(ge=0, le=1)]
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
TwoShares = Annotated[tuple[ShareBelowOne, ...], Meta(min_length=2, max_length=2)]
Size = Annotated[float, Meta(gt=0, le=1)]
"""A share of the original that is kept."""

Weight = Annotated[float, Meta(gt=0, le=1e9)]
Rate = Annotated[float, Meta(gt=0, le=1000)]
"""A step size of an optimiser."""

Temperature = Annotated[float, Meta(ge=1e-6, le=1000)]
"""By which logits are divided, in float32."""

AnyRate = Annotated[float, Meta(ge=0, le=1000)]
Factor = Annotated[float, Meta(ge=0, le=1e6)]
Shift = Annotated[float, Meta(ge=-80, le=80)]
"""Added to logits, whose sigmoid is 0 or 1 in float32 beyond that."""

Minutes = Annotated[float, Meta(ge=0, le=1e6)]
Word = Annotated[str, Meta(min_length=1)]
