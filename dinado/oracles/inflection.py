"""Words and their inflected forms."""

from __future__ import annotations

import re
from functools import cache

import lemminflect

# Runs of letters and digits: hyphens and apostrophes separate, so "ice-cream" holds "cream" and "boy's" holds "boy".
_WORD = re.compile(r"[^\W_]+")


def split_words(text: str) -> list[str]:
    """The lower-cased words of a text, in order."""
    return _WORD.findall(text.lower())


@cache
def forms(word: str) -> frozenset[str]:
    """A word and all its inflections of every part of speech, lower-cased.

    From lemminflect's dictionary, without its rules for unknown words: those are their own only form.
    """
    word = word.lower()
    inflections = lemminflect.getAllInflections(word).values()
    return frozenset({word}.union(*({form.lower() for form in spellings} for spellings in inflections)))
