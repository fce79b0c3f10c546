"""Rollouts from an inference server, with what the base itself says of them.

The server's log-probabilities are those of the proposal s, whatever its kernels, precision and flags make of the model;
log p is computed here. Their difference is what the importance weights correct, and shows a server that serves
something else. Axes: N rows, T response tokens.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.errors import EngineError
from dinado.rollouts.density import proposal_log_probs
from dinado.rollouts.engine_client import EngineClient
from dinado.rollouts.engine_protocols import Draw, Sampled
from dinado.rollouts.sampler import Samples
from dinado.rollouts.store_spec import StoreSpec
from dinado.seeding import derive_seed

DRAWN_BY = b"drawn_by"
"""Key of a block's metadata: who drew it, and how far its log-probabilities are from the base's."""


@dataclass(frozen=True)
class ServedTexts:
    """A server as the source of a store's texts.

    Attributes:
        client: the server.
        limit: largest mean |difference| of log-probabilities in a block, in nats per token.
    """

    client: EngineClient
    limit: float

    def blocks(self, base: BaseLM, spec: StoreSpec, blocks: Sequence[int], round: int) -> Generator[Samples]:
        """Yield the samples of some blocks of a store, in order.

        Raises:
            EngineError: the server failed, or its log-probabilities are not those of this base.
        """
        draws = {block: _draws(base, spec, block, round) for block in blocks}
        self._check_room(draws.values())
        with closing(self.client.draw(draws.values())) as answers:
            for block, answer in zip(blocks, answers, strict=True):
                yield self._samples(base, spec, block, answer)

    def _check_room(self, blocks: Iterable[list[Draw]]) -> None:
        context = self.client.about()["context"]
        longest = max((len(draw.prompt) + draw.max_tokens for block in blocks for draw in block), default=0)
        if context is not None and longest > context:
            raise EngineError(
                f"rollouts.max_new_tokens: the longest prompt needs a context of {longest} tokens and the server's has "
                f"{context}; lower it, or start the server with a longer one"
            )

    def _samples(self, base: BaseLM, spec: StoreSpec, block: int, answer: list[list[Sampled]]) -> Samples:
        flat = [sample for draw in answer for sample in draw]
        vocabulary = base.vocab_size
        if any(not 0 <= token < vocabulary for sample in flat for token in sample.tokens):
            raise EngineError(f"rollouts.url: the server drew a token that the base lacks (it has {vocabulary})")
        samples = Samples(
            tokens=[sample.tokens for sample in flat],
            log_s=[sample.log_s for sample in flat],
            finished=[sample.finished or sample.tokens[-1] in base.eos_ids for sample in flat],
            prompt_of=[prompt for prompt, draw in enumerate(answer) for _ in draw],
        )
        ids_PS, mask_PS = base.encode_prompts([spec.prompts[position] for position in spec.block(block)])
        batch = RolloutBatch.unjudged(
            ids_PS.to(base.device), mask_PS.to(base.device), samples.prompt_of, samples.tokens
        )
        log_p_BT = base.log_probs(batch)
        here_BT = log_p_BT if spec.proposal.is_base else proposal_log_probs(base, spec.proposal, batch)
        lengths = [len(tokens) for tokens in samples.tokens]
        samples.log_p = [row[:length] for row, length in zip(log_p_BT.tolist(), lengths, strict=True)]
        here = [row[:length] for row, length in zip(here_BT.tolist(), lengths, strict=True)]
        samples.drawn_by = self._compared(samples.log_s, here)
        return samples

    def _compared(self, there: list[list[float]], here: list[list[float]]) -> dict[str, str]:
        """Describe the server and its differences from the base; refuse those above the limit."""
        flat_there = torch.tensor([value for row in there for value in row], dtype=torch.float64)
        flat_here = torch.tensor([value for row in here for value in row], dtype=torch.float64)
        apart = (flat_there - flat_here).abs()
        mean, most = float(apart.mean()), float(apart.max())
        if not mean <= self.limit:
            about = self.client.about()
            raise EngineError(
                f"rollouts.url: the log-probabilities of {about['engine']} differ from the base's by {mean:.3g} nats a "
                f"token (at most {most:.3g}), above rollouts.max_difference={self.limit:g}: serve the same weights "
                f"with {self.client.protocol.advice}, or raise the limit"
            )
        told = {"server": self.client.about(), "mean": mean, "max": most, "tokens": len(apart)}
        return {DRAWN_BY.decode(): json.dumps(told, sort_keys=True)}


def _draws(base: BaseLM, spec: StoreSpec, block: int, round: int) -> list[Draw]:
    """Return the requests of a block; seeds depend on the prompt's position, not on the block."""
    positions = spec.block(block)
    ids_PS, mask_PS = base.encode_prompts([spec.prompts[position] for position in positions])
    return [
        Draw(
            tuple(ids_S[mask_S.bool()].tolist()),
            spec.count(position),
            spec.max_new_tokens,
            base.temperature * spec.proposal.temperature,
            derive_seed(spec.seed, "rollouts", spec.split, round, "engine", position) % 2**31,
            base.eos_ids,
        )
        for position, ids_S, mask_S in zip(positions, ids_PS, mask_PS, strict=True)
    ]


def differences(metadata: Sequence[dict[bytes, bytes] | None]) -> dict[str, float]:
    """Summarise the differences that blocks record, as metrics; empty where no server drew any."""
    told = [json.loads(block[DRAWN_BY]) for block in metadata if block and DRAWN_BY in block]
    if not (tokens := sum(block["tokens"] for block in told)):
        return {}
    return {
        "rollouts/engine_difference": sum(block["mean"] * block["tokens"] for block in told) / tokens,
        "rollouts/engine_difference_max": max(block["max"] for block in told),
    }
