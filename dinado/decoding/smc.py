"""Sequential Monte Carlo toward q*: resampling on the way, by estimates of what an unfinished text is worth.

The intermediate targets are ``p(y_<=t) psi_t(y_<=t)`` with a twist psi that estimates R(c, y_<=t) (Zhao et al., 2024);
the last one is ``p C``. Texts are drawn from a controlled model q, so that a particle's weight is ``p psi / q``; where
few of a prompt's particles are effective, they are resampled. The mean of the final weights is an unbiased estimate
of R(c), whatever the twist and q are.

Axes: G prompts, K particles, N = G * K, M rows of the decoder, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinado.bases.decoder import Decoder
from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.decoding.particles import Particles
from dinado.decoding.twists import Twist
from dinado.decoding.weighted_texts import ROWS, WeightedTexts
from dinado.evaluation.judged_samples import JudgedSamples, judge
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.sampler import COMPACT_BELOW, inverse_cdf, uniforms
from dinado.seeding import uniform_numbers


@dataclass(frozen=True)
class SMCSettings:
    """Settings of sequential Monte Carlo.

    Attributes:
        particles: K.
        threshold: particles are resampled where their effective number is below this share of K; 0 never, which makes
            it resampling at the end.
        every: tokens between two weighings; each costs a pass of the base, and of the twist, over the texts so far.
    """

    particles: int
    threshold: float = 0.5
    every: int = 4

    def __post_init__(self) -> None:
        if self.particles < 1 or self.every < 1 or not 0 <= self.threshold <= 1:
            raise ValueError(f"{self}: particles and every are at least 1, and threshold lies between 0 and 1")


@torch.no_grad()
def smc(
    model: ControlledLM,
    oracle: Oracle,
    prompts: Sequence[Prompt],
    twist: Twist | None,
    settings: SMCSettings,
    *,
    max_new_tokens: int,
    truncated: str,
    seed: int,
    first: int = 0,
    places: Sequence[int] | None = None,
    offset: int = 0,
    retained: Sequence[Sequence[int]] | None = None,
) -> list[WeightedTexts]:
    """Draw K weighted texts for each prompt; the log of their mean weight estimates log R(c).

    A prompt is encoded once for all its particles, and all particles of a block of prompts are one batch.

    Args:
        twist: None where nothing is resampled on the way.
        truncated: the rule for texts that the budget cuts off: `fail` or `score`.
        first: number of texts of each prompt that were drawn before; their random streams are not used again.
        places: positions of the prompts to draw for, with repeats for several sets of particles; None for all.
        offset: number of the first prompt, which names its random streams.
        retained: a text of q* for each place. It is kept among the particles, which makes the mean weight an estimate
            of R(c) that is too large on average (conditional SMC), so that with the other the truth is enclosed.

    Raises:
        ValueError: particles are to be resampled without a twist.
    """
    if twist is None and settings.threshold > 0:
        raise ValueError("resampling on the way needs a twist; with threshold=0 there is none")
    places = range(len(prompts)) if places is None else places
    block, found = max(1, ROWS // settings.particles), []
    seen: dict[int, int] = {}
    for start in range(0, len(places), block):
        here = places[start : start + block]
        firsts = []
        for place in here:
            seen[place] = seen.get(place, -1) + 1
            firsts.append(first + seen[place] * settings.particles)
        run = _Run(model, oracle, [prompts[place] for place in here], settings, max_new_tokens, truncated)
        names = [offset + place for place in here]
        found += run.texts(twist, seed, names, firsts, None if retained is None else retained[start : start + block])
    return found


class _Run:
    """One batch of prompts with all their particles."""

    def __init__(
        self,
        model: ControlledLM,
        oracle: Oracle,
        prompts: list[Prompt],
        settings: SMCSettings,
        max_new_tokens: int,
        truncated: str,
    ) -> None:
        self.base, self.oracle, self.settings = model.base, oracle, settings
        self.length, self.truncated = max_new_tokens, truncated
        self.prompt_of = [group for group in range(len(prompts)) for _ in range(settings.particles)]
        self.prompts = [prompts[group] for group in self.prompt_of]
        self.ids_PS, self.mask_PS = (tensor.to(self.base.device) for tensor in self.base.encode_prompts(prompts))
        self.decoder = Decoder(model)
        self.particles = Particles(len(prompts), settings.particles)
        self.eos = torch.tensor(self.base.eos_ids, device=self.base.device)
        # Of particles that have ended: log p, whether they were judged, and the verdict.
        count = len(self.prompts)
        self.log_p_N, self.judged_N, self.score_N = np.zeros(count), np.zeros(count, dtype=bool), np.zeros(count)

    def texts(
        self,
        twist: Twist | None,
        seed: int,
        names: Sequence[int],
        firsts: Sequence[int],
        retained: Sequence[Sequence[int]] | None,
    ) -> list[WeightedTexts]:
        """Draw all texts, and weigh them."""
        groups, size = len(names), self.settings.particles
        stream = "smc" if retained is None else "conditional smc"
        uniform_NT = torch.cat(
            [
                uniforms([name], size, self.length, seed, stream, first=first)
                for name, first in zip(names, firsts, strict=True)
            ]
        ).to(self.base.device)
        moves_GT = np.stack(
            [
                uniform_numbers(self.length + 1, seed, stream, "resampling", *key)
                for key in zip(names, firsts, strict=True)
            ]
        )
        slots: list[int | None] = [None] * groups
        if retained is not None:
            slots = [int(move * size) for move in moves_GT[:, -1]]
        repeats = torch.full((groups,), size, device=self.base.device)
        log_q_MV = self.decoder.start(self.ids_PS, self.mask_PS, repeats, self.length)
        particle_M = np.arange(groups * size)
        open_M = np.ones(groups * size, dtype=bool)
        for step in range(self.length):
            token_M = inverse_cdf(log_q_MV, uniform_NT[torch.from_numpy(particle_M).to(uniform_NT.device), step])
            if retained is not None:
                token_M = self._follow(token_M, particle_M, slots, retained, step)
            open_M = self._append(particle_M, open_M, token_M, log_q_MV)
            used = step + 1
            if used == self.length:
                break
            source_N = None
            if used % self.settings.every == 0 and self.settings.threshold > 0:
                self._weigh(twist)
                source_N, slots = self.particles.resample(self.settings.threshold, moves_GT[:, step], slots)
            if source_N is not None or open_M.mean() < COMPACT_BELOW:
                token_M, particle_M = self._rearranged(token_M, particle_M, open_M, source_N)
                open_M = np.ones(len(particle_M), dtype=bool)
            if not open_M.any():
                break
            log_q_MV = self.decoder.step(token_M)
        self._weigh(None)
        return self._results()

    def _follow(
        self,
        token_M: Tensor,
        particle_M: np.ndarray,
        slots: Sequence[int | None],
        retained: Sequence[Sequence[int]],
        step: int,
    ) -> Tensor:
        """Replace the tokens of the retained particles by those of the retained texts, as far as these go."""
        token_M = token_M.clone()
        row_of = {int(particle): row for row, particle in enumerate(particle_M)}
        for group, slot in enumerate(slots):
            row = None if slot is None else row_of.get(group * self.settings.particles + slot)
            if row is not None and step < len(retained[group]):
                token_M[row] = retained[group][step]
        return token_M

    def _append(self, particle_M: np.ndarray, open_M: np.ndarray, token_M: Tensor, log_q_MV: Tensor) -> np.ndarray:
        """Append a token to every open particle; return which ones are open after it."""
        log_q_M = log_q_MV.gather(1, token_M[:, None])[:, 0].double().cpu().numpy()
        ended_M = torch.isin(token_M, self.eos).cpu().numpy()
        tokens = token_M.tolist()
        for row in np.flatnonzero(open_M):
            self.particles.tokens[particle_M[row]].append(tokens[row])
        self.particles.log_q_N[particle_M[open_M]] += log_q_M[open_M]
        self.particles.ended_N[particle_M[open_M]] = ended_M[open_M]
        return open_M & ~ended_M

    def _weigh(self, twist: Twist | None) -> None:
        """Weigh all particles; without a twist all of them have ended or are cut off."""
        particles = self.particles
        fresh, going = np.flatnonzero(~self.judged_N), np.array([], dtype=int)
        value = np.array([])
        if len(fresh):
            batch = self._batch(fresh)
            with self.base.adapters(on=False):
                log_p_BT = self.base.log_probs(batch)
            self.log_p_N[fresh] = log_p_BT.double().sum(1).cpu().numpy()
            goes_on = np.zeros(len(fresh), dtype=bool) if twist is None else ~particles.ended_N[fresh]
            self._judge(fresh[~goes_on])
            if twist is not None and goes_on.any():
                going = fresh[goes_on]
                unfinished = self._batch(going)
                unfinished.log_p_BT = log_p_BT[torch.from_numpy(goes_on).to(log_p_BT.device)]
                prompts = [self.prompts[particle] for particle in going]
                tokens = [particles.tokens[particle] for particle in going]
                value = twist(unfinished, prompts, tokens)
        with np.errstate(divide="ignore"):
            log_psi_N = np.log(self.score_N)
        log_psi_N[going] = value
        particles.now_N = self.log_p_N + log_psi_N - particles.log_q_N
        particles.weigh()

    def _judge(self, done: np.ndarray) -> None:
        """Judge particles that have ended, or that the budget cuts off."""
        texts = [self.base.decode(self.particles.tokens[particle]) for particle in done]
        prompts, ended = [self.prompts[particle] for particle in done], self.particles.ended_N[done].tolist()
        self.score_N[done] = judge(self.oracle, prompts, texts, ended, self.truncated)
        self.judged_N[done] = True

    def _batch(self, some: np.ndarray) -> RolloutBatch:
        prompt_of = [self.prompt_of[particle] for particle in some]
        tokens = [self.particles.tokens[particle] for particle in some]
        return RolloutBatch.unjudged(self.ids_PS, self.mask_PS, prompt_of, tokens)

    def _rearranged(
        self, token_M: Tensor, particle_M: np.ndarray, open_M: np.ndarray, source_N: np.ndarray | None
    ) -> tuple[Tensor, np.ndarray]:
        """Bring the decoder's rows in line with the particles that go on; return their last tokens and numbers.

        Args:
            particle_M, open_M: the particle of each of the decoder's rows, and whether it goes on.
            source_N: the former number of each particle, if they were resampled.
        """
        row_of_N = np.full(len(self.prompts), -1)
        row_of_N[particle_M[open_M]] = np.flatnonzero(open_M)
        if source_N is not None:
            self.log_p_N, self.judged_N = self.log_p_N[source_N], self.judged_N[source_N]
            self.score_N, row_of_N = self.score_N[source_N], row_of_N[source_N]
        particle_M = np.flatnonzero(row_of_N >= 0)
        rows_M = torch.from_numpy(row_of_N[particle_M]).to(token_M.device)
        if len(particle_M):
            self.decoder.keep(rows_M)
        return token_M[rows_M], particle_M

    def _results(self) -> list[WeightedTexts]:
        particles, size = self.particles, self.settings.particles
        samples = JudgedSamples(
            prompts=self.prompts,
            texts=[self.base.decode(tokens) for tokens in particles.tokens],
            finished=particles.ended_N.tolist(),
            score=self.score_N.tolist(),
            log_q=particles.log_q_N.tolist(),
            log_p=self.log_p_N.tolist(),
            num_tokens=[len(tokens) for tokens in particles.tokens],
            tokens=list(particles.tokens),
            along=[[] for _ in particles.tokens],
        )
        return [
            WeightedTexts(samples.take(range(group * size, (group + 1) * size)), log_weight_K)
            for group, log_weight_K in enumerate(particles.log_weight_GK)
        ]
