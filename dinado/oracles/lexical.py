"""The oracle of lexical constraints: the text contains all of some given words, in any inflection."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.errors import OracleError
from dinado.oracles.inflection import forms, split_words
from dinado.oracles.oracle import Oracle
from dinado.prompt import Prompt

_SHORTEST_FRAGMENT = 3


class LexicalOracle(Oracle):
    """An oracle that gives 1 if every concept occurs in the text in some inflected form, else 0.

    A concept of several words occurs where its words are adjacent, each in any of its forms.

    Args:
        words: the concepts of every prompt; empty takes each prompt's own ``data["concepts"]``.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        words = [words] if isinstance(words, str) else words
        for word in words:
            if not split_words(word):
                raise OracleError(f"oracle.words holds {word!r}, which has no letters or digits; remove it")
        self.words = tuple(words)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check that every prompt has concepts that can be asked for."""
        for prompt in prompts:
            self._concepts(prompt)

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [float(all(self.found(prompt, text))) for prompt, text in zip(prompts, texts, strict=True)]

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Return the share of the concepts found so far; an unfinished word at the end counts by its letters.

        Words of several tokens would otherwise show no progress until their last token.
        """
        return [self._progress(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def coverage(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[int, int]:
        """Count concepts found and concepts required, summed over texts; their ratio is the micro coverage."""
        found = [hit for prompt, text in zip(prompts, texts, strict=True) for hit in self.found(prompt, text)]
        return sum(found), len(found)

    def found(self, prompt: Prompt, text: str) -> list[bool]:
        """Tell for each of the prompt's concepts whether it occurs in the text.

        Raises:
            OracleError: the oracle has no words of its own and the prompt no concepts that can be asked for.
        """
        words = split_words(text)
        return [_occurs(split_words(concept), words) for concept in self._concepts(prompt)]

    def _concepts(self, prompt: Prompt) -> Sequence[str]:
        return self.words or concepts_of(prompt)

    def _progress(self, prompt: Prompt, text: str) -> float:
        hits = self.found(prompt, text)
        words = split_words(text)
        begun = 0.0
        if words and text[-1:].isalnum() and not all(hits):
            missing = [concept for concept, hit in zip(self._concepts(prompt), hits, strict=True) if not hit]
            begun = max(_begun(split_words(concept), words[-1]) for concept in missing)
        return (sum(hits) + begun) / len(hits)


def concepts_of(prompt: Prompt) -> list[str]:
    """Return the concepts of a prompt: its ``data["concepts"]``, a word or a list of words.

    Raises:
        OracleError: there are none, they are something else, or one of them has no letters or digits.
    """
    value = prompt.data.get("concepts")
    words = [value] if isinstance(value, str) else value
    if not words and not isinstance(words, bool | int | float):
        raise OracleError(
            f"prompt {prompt.id!r} has no `concepts` for the lexical oracle; add them or set oracle.words"
        )
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) and split_words(word) for word in words):
        raise OracleError(
            f"prompt {prompt.id!r}: `concepts` is {str(value)[:80]!r}; the lexical oracle needs a word or a list of "
            "words, with letters or digits"
        )
    return list(words)


def has_concepts(prompt: Prompt) -> bool:
    """Tell whether a prompt has concepts that can be asked for; a field of that name may mean something else."""
    try:
        return bool(concepts_of(prompt))
    except OracleError:
        return False


def _occurs(concept: list[str], words: list[str]) -> bool:
    wanted = [forms(part) for part in concept]
    windows = range(len(words) - len(wanted) + 1)
    return any(all(words[start + i] in form for i, form in enumerate(wanted)) for start in windows)


def _begun(concept: list[str], fragment: str) -> float:
    """Return the share of a concept, by letters, that a fragment of its first word covers, in the best of its forms.

    A fragment too short to tell counts 0.
    """
    if len(fragment) < _SHORTEST_FRAGMENT:
        return 0.0
    shares = [len(fragment) / len(form) for form in forms(concept[0]) if form.startswith(fragment)]
    return max(shares, default=0.0) / len(concept)
