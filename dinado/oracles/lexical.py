"""Lexical constraints: the text contains all of these words, in any inflection."""

from __future__ import annotations

from collections.abc import Sequence

from dinado.errors import OracleError
from dinado.oracles.base import Oracle
from dinado.oracles.inflection import forms, split_words
from dinado.prompt import Prompt


class LexicalOracle(Oracle):
    """1 if every concept occurs in the text in some inflected form, else 0.

    A concept of several words occurs where its words stand side by side, each in any of its forms.

    Args:
        words: the concepts of every prompt; empty takes each prompt's own ``data["concepts"]``.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        for word in words:
            if not split_words(word):
                raise OracleError(f"oracle.words holds {word!r}, which has no letters or digits; remove it")
        self.words = tuple(words)

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [float(all(self.found(prompt, text))) for prompt, text in zip(prompts, texts, strict=True)]

    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Share of the concepts found so far."""
        found = [self.found(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        return [sum(hits) / len(hits) for hits in found]

    def coverage(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[int, int]:
        """Concepts found and concepts asked for, summed over texts; their ratio is the micro coverage."""
        found = [hit for prompt, text in zip(prompts, texts, strict=True) for hit in self.found(prompt, text)]
        return sum(found), len(found)

    def found(self, prompt: Prompt, text: str) -> list[bool]:
        """Whether each of the prompt's concepts occurs in the text.

        Raises:
            OracleError: the prompt has no concepts and the oracle no words of its own.
        """
        concepts = self.words or prompt.data.get("concepts")
        if not concepts:
            raise OracleError(
                f"prompt {prompt.id!r} has no `concepts` for the lexical oracle; add them or set oracle.words"
            )
        words = split_words(text)
        return [_occurs(split_words(concept), words) for concept in concepts]


def _occurs(concept: list[str], words: list[str]) -> bool:
    wanted = [forms(part) for part in concept]
    windows = range(len(words) - len(wanted) + 1)
    return any(all(words[start + i] in form for i, form in enumerate(wanted)) for start in windows)
