"""The settings that determine the content of a rollout store, and the names derived from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dinado.errors import DataError
from dinado.prompt import Prompt
from dinado.rollouts.proposal import Proposal

SCHEMA_VERSION = 2
"""Version of the store; raise it whenever the same settings would give other rows or another file layout."""

Truncated = Literal["fail", "score", "drop"]
"""Treatment of responses cut off by the budget: score 0, the oracle's judgement, or left out when reading."""


@dataclass(frozen=True)
class StoreSpec:
    """The settings that determine the sampled texts; without the oracle, as several oracles may judge the same texts.

    Attributes:
        base: fingerprint of the base model.
        prompts: the prompts in order; a block is ``block_size`` consecutive ones.
        split: name that separates the random streams of splits with the same prompts, such as "train" and "val".
        per_prompt: K, the number of rollouts per prompt; with ``counts`` the largest of them.
        max_new_tokens: token budget of a response.
        block_size: number of prompts that are sampled and stored together.
        seed: seed of the random streams.
        proposal: the distribution that is sampled, relative to the model.
        model: fingerprint of the controlled model that is sampled; None samples the base.
        counts: number of rollouts of each prompt where they differ, at least 1.
        encoded: digest of the prompts' token ids, which depend on template, date and tokenizer; empty if unknown.
        beam: search for the K likeliest responses of the base instead of sampling; they have no density.
        first: number of rollouts of each prompt that other stores hold; the streams go on where those of them end.
        places: numbers that name the random streams of the prompts; None takes their positions.
        engine: identity of the inference server that samples in place of the base, as JSON; None samples here.

    Raises:
        DataError: there are no prompts.
    """

    base: str
    prompts: tuple[Prompt, ...]
    split: str
    per_prompt: int
    max_new_tokens: int
    block_size: int
    seed: int
    proposal: Proposal = field(default_factory=Proposal)
    model: str | None = None
    counts: tuple[int, ...] | None = None
    beam: bool = False
    encoded: str = ""
    engine: str | None = None
    first: int = 0
    places: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise DataError(f"there are no {self.split} prompts to sample rollouts for; check the task's data")

    @property
    def num_blocks(self) -> int:
        """The number of blocks, the last of which may be smaller."""
        return -(-len(self.prompts) // self.block_size)

    def block(self, index: int) -> range:
        """Return the positions of a block's prompts."""
        return range(index * self.block_size, min((index + 1) * self.block_size, len(self.prompts)))

    def count(self, position: int) -> int:
        """Return the number of rollouts of the prompt at a position."""
        return self.per_prompt if self.counts is None else self.counts[position]

    def streams(self, block: int) -> list[int]:
        """Return the numbers that name the random streams of a block's prompts."""
        return [position if self.places is None else self.places[position] for position in self.block(block)]

    def num_rollouts(self, blocks: Iterable[int] | None = None) -> int:
        """Return the number of rollouts of some blocks, or of all."""
        blocks = range(self.num_blocks) if blocks is None else blocks
        return sum(self.count(position) for block in blocks for position in self.block(block))

    def manifest(self) -> dict[str, Any]:
        """Return the settings as a JSON-like dictionary, for human readers and for the fingerprint."""
        later: dict[str, Any] = {} if self.model is None else {"model": self.model}
        later |= {} if self.counts is None else {"counts": list(self.counts)}
        later |= {"beam": True} if self.beam else {}
        later |= {} if self.engine is None else {"engine": json.loads(self.engine)}
        later |= {"first": self.first} if self.first else {}
        later |= {} if self.places is None else {"places": list(self.places)}
        later |= {"encoded": self.encoded} if self.encoded else {}
        return {
            "schema": SCHEMA_VERSION,
            "base": self.base,
            "split": self.split,
            "prompts": len(self.prompts),
            "prompts_digest": digest([(prompt.id, prompt.text, *prompt.turns) for prompt in self.prompts]),
            "first_prompts": [prompt.transcript for prompt in self.prompts[:3]],
            "per_prompt": self.per_prompt,
            "max_new_tokens": self.max_new_tokens,
            "block_size": self.block_size,
            "seed": self.seed,
            "proposal": asdict(self.proposal),
            **later,
        }

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever any sampled text could."""
        return digest(self.manifest())

    def scores_fingerprint(self, oracle: str, truncated: Truncated) -> str:
        """Return a hash that changes whenever any score could; it covers texts, prompt data and oracle."""
        judged = "all" if truncated == "score" else "finished"
        return digest([self.fingerprint, [dict(prompt.data) for prompt in self.prompts], oracle, judged])


def source_name(spec: StoreSpec) -> str:
    """Return a name for the distribution of a store's rollouts; equal for stores of one density."""
    return digest([spec.base, spec.model, asdict(spec.proposal), *_kind(spec)])


def _kind(spec: StoreSpec) -> list[str]:
    """Return what sets a source apart from samples drawn here."""
    return [*(["beam"] if spec.beam else []), *([] if spec.engine is None else [spec.engine])]


def digest(value: Sequence[Any] | dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with a JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
