"""Numbers as people say them."""
from __future__ import annotations


def count(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun: ``no images``, ``1 image``, ``12 images``, ``less than 1 image``.

    Args:
        number: 0 or more; rounded to a whole one.
        noun: in the singular.
        plural: where it is not the noun and an s.
    """
    if 0 < number < 0.5:
        return f'less than 1 {noun}'
    whole = round(number)
    return f'1 {noun}' if whole == 1 else f'{whole or "no"} {plural or noun + "s"}'
