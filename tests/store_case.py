"""Small rollout stores of a Markov base, oracles for them, and their content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinado.bases.causal import BaseLM
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.rollout_store import RolloutStore
from dinado.rollouts.rollout_table import Rollouts
from dinado.rollouts.store_spec import StoreSpec

PROMPTS = tuple(Prompt(f"p{i}", str(1 + i % 4), {"wanted": str(1 + i % 3)}) for i in range(7))


class Contains(Oracle):
    """1 where the text has the prompt's wanted word, or the last word given here."""

    def __init__(self, word: str | None = None) -> None:
        self.word = word

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [
            float((self.word or prompt.data["wanted"]) in text.split())
            for prompt, text in zip(prompts, texts, strict=True)
        ]


class FailsOn(Contains):
    """NaN for one prompt."""

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        scores = super().score(prompts, texts)
        return [float("nan") if p.id == "p4" else s for p, s in zip(prompts, scores, strict=True)]


def make_spec(base: BaseLM, **changes: object) -> StoreSpec:
    settings: dict = dict(prompts=PROMPTS, split="train", per_prompt=5, max_new_tokens=6, block_size=2, seed=0)
    return StoreSpec(base=base.fingerprint, **(settings | changes))


def make_store(
    cache: Path, base: BaseLM, oracle: Oracle | None = None, truncated: str = "fail", **changes: object
) -> RolloutStore:
    fingerprint = (oracle or Contains()).fingerprint
    return RolloutStore(cache, make_spec(base, **changes), fingerprint, truncated)  # type: ignore[arg-type]


def content(store: RolloutStore) -> dict[str, bytes]:
    """Every file of a store."""
    files = (path for path in store.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in files}


def rows(rollouts: Rollouts) -> list[tuple]:
    return [
        (
            int(rollouts.prompt_index_N[i]),
            rollouts.response(i)[0].tolist(),
            rollouts.text(i),
            float(rollouts.score_N[i]),
        )
        for i in range(len(rollouts))
    ]
