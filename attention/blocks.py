"""Which blocks of a network a user means: "double 0-18, single 20-37", "60%-100%" or "output 3"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.families import Block

RANGE = re.compile(r"(\d+)(%?)(?:\s*[-–]\s*(\d+)(%?))?")


def chosen(text: str, blocks: Sequence[Block]) -> frozenset[Block]:
    """The blocks that a text names; an empty text, or "all", names all.

    Parts of it have commas between them. Each is a kind of blocks, or numbers, or both; numbers
    without a kind count all blocks in the order of their call, and so do percentages.

    Args:
        blocks: those of the network, in the order of their call.
    Raises:
        ValueError: a part is not understood, or names no block that there is.
    """
    parts = [part.strip().lower() for part in re.split(r"[,\n]", text) if part.strip()]
    if not parts or not blocks:
        return frozenset(blocks)
    return frozenset().union(*(_part(part, blocks) for part in parts))


def check_blocks(text: str) -> None:
    """Raise ValueError if a text names blocks of no network."""
    for part in filter(None, map(str.strip, re.split(r"[,\n]", text))):
        _kind, numbers = _split(part.lower())
        match = RANGE.fullmatch(numbers)
        if numbers and (match is None or int(match[1]) > int(match[3] or match[1])):
            raise ValueError(
                f'blocks has "{part}"; write numbers such as "0-9", "double 0-18" or "60%-100%"'
            )


def _part(part: str, blocks: Sequence[Block]) -> frozenset[Block]:
    check_blocks(part)
    kind, numbers = _split(part)
    kind = "" if kind == "all" else kind
    there = [block for block in blocks if kind in ("", block[0])]
    found = [block for i, block in enumerate(there) if _has(numbers, i, block, kind, len(there))]
    if not found:
        kinds = dict.fromkeys(one for one, _ in blocks)
        ranges = (
            f"{one} {min(numbers)} to {max(numbers)}"
            for one in kinds
            for numbers in [[number for name, number in blocks if name == one]]
        )
        raise ValueError(f'blocks has "{part}", and this model has {", ".join(ranges)}')
    return frozenset(found)


def _split(part: str) -> tuple[str, str]:
    """The kind and the numbers of a part."""
    match = re.fullmatch(r"([a-z]*)\s*(.*)", part)
    assert match is not None
    return match[1], match[2]


def _has(numbers: str, position: int, block: Block, kind: str, count: int) -> bool:
    """Whether numbers mean the block at a position among `count`."""
    if not numbers:
        return True
    match = RANGE.fullmatch(numbers)
    assert match is not None
    first, percent, last, too = match.groups()
    if percent or too:
        low = int(int(first) * count / 100)
        high = low + 1 if last is None else max(low + 1, int(int(last) * count / 100))
        return low <= position < high
    number = block[1] if kind else position
    return int(first) <= number <= int(last or first)
