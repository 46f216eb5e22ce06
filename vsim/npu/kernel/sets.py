"""Sets of small numbers: number n is bit n % 32 of word n // 32, as in `vsim.npu.dram`."""

from __future__ import annotations

from typing import Any

from vsim.npu.kernel.jit import part


@part
def has(words: Any, number: int) -> bool:
    """The set (words of 32 bits) contains the number."""
    return (words[number >> 5] >> (number & 31)) & 1 != 0


@part
def include(words: Any, number: int) -> None:
    words[number >> 5] |= 1 << (number & 31)


@part
def exclude(words: Any, number: int) -> None:
    words[number >> 5] &= ~(1 << (number & 31))


@part
def include_if(words: Any, number: int, member: bool) -> None:
    """The set contains the number exactly if `member`."""
    words[number >> 5] = words[number >> 5] & ~(1 << (number & 31)) | (member << (number & 31))


@part
def clear(values: Any) -> None:
    for index in range(values.size):
        values[index] = 0


@part
def is_empty(words: Any) -> bool:
    for index in range(words.size):
        if words[index] != 0:
            return False
    return True
