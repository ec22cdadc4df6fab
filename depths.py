"""How the depth of a ResNet turns into blocks. It needs no Keras, to tell a mistake at once."""

import numbers
from typing import Literal

Block = Literal["basic", "bottleneck"]

CONVOLUTIONS = {"basic": 2, "bottleneck": 3}  # in one residual block of that kind
BLOCKS = {1: ("basic", "bottleneck"), 2: ("bottleneck",)}  # of each version, the preferred first


def block_and_count(depth: int, block: str | None, default: tuple[str, ...]) -> tuple[str, int]:
    """Returns the kind of block and how many of them a stage has, depth = 3·n·convolutions + 2.

    Of the kinds in `default`, the first that fits the depth is taken where `block` is None.
    """
    if block not in (None, *CONVOLUTIONS):
        raise ValueError(f"block: allowed is 'basic', 'bottleneck' or None; received {block!r}")
    periods = {3 * CONVOLUTIONS[kind]: kind for kind in ([block] if block else default)}

    def period_of(depth):
        return next((p for p in periods if depth > p and depth % p == 2), None)

    allowed = f"depth: allowed is an integer {' or '.join(f'{p}n+2' for p in periods)}"
    if not isinstance(depth, numbers.Integral):
        raise ValueError(f"{allowed}; received {depth!r}")
    if period := period_of(depth):
        return periods[period], depth // period
    nearest = [next(filter(period_of, range(depth, 0, -1)), None)]
    nearest.append(next(filter(period_of, range(max(depth, 0), max(depth, 0) + 20))))
    nearest = " and ".join(str(d) for d in nearest if d)
    raise ValueError(f"{allowed}, nearest {nearest}; received {depth}")
