"""Words and their inflected forms."""

from __future__ import annotations

import re
from functools import cache

import lemminflect

# Runs of letters and digits: hyphens and apostrophes split, so "ice-cream" contains "cream" and "boy's" contains "boy".
_WORD = re.compile(r"[^\W_]+")


def split_words(text: str) -> list[str]:
    """Return the lower-cased words of a text, in order."""
    return _WORD.findall(text.lower())


@cache
def forms(word: str) -> frozenset[str]:
    """Return a word and all its inflections of every part of speech, lower-cased.

    They are from lemminflect's dictionary, without its rules for unknown words; an unknown word is its only form.
    """
    word = word.lower()
    inflections = lemminflect.getAllInflections(word).values()
    return frozenset({word}.union(*({form.lower() for form in spellings} for spellings in inflections)))
