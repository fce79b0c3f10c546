"""Texts sampled for held-out prompts, with verdicts and log-probabilities.

Axes: P prompts, K samples a prompt, N = P * K rows grouped by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.batch import RolloutBatch
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms


@dataclass
class JudgedSamples:
    """Samples and their verdicts.

    Attributes:
        prompts: the prompt of each row, N long.
        texts: decoded responses.
        finished: whether the response ended within the budget.

        log_q, log_p: log-probability of the whole response under the sampled model and under the base, in nats.
        num_tokens: number of response tokens.
        tokens: token ids of the response, the end-of-sequence token included when there is one.
        along: pieces of the text, each with the predicted R of the text up to its end; empty for rows (most of them)
            whose R was not traced.
    """

    prompts: list[Prompt] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    log_q: list[float] = field(default_factory=list)
    log_p: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    tokens: list[Sequence[int]] = field(default_factory=list)
    along: list[list[tuple[str, float]]] = field(default_factory=list)

    def per_prompt(self, values: Sequence[float]) -> list[list[float]]:
        """Group values by prompt, in order of first appearance."""
        groups: dict[str, list[float]] = {}
        for prompt, value in zip(self.prompts, values, strict=True):
            groups.setdefault(prompt.id, []).append(value)
        return list(groups.values())

    def records(self) -> list[dict[str, object]]:
        """Return a plain record per sample; ``log_p``, ``log_q`` in nats, ``tokens`` and ``r`` where R was traced."""
        names = ("texts", "score", "finished", "log_q", "log_p")
        columns = zip(*(getattr(self, name) for name in names), strict=True)
        keys = ("text", *names[1:])
        return [
            {"prompt": prompt.transcript} | dict(zip(keys, row, strict=True)) | _traced(along)
            for prompt, row, along in zip(self.prompts, columns, self.along, strict=True)
        ]

    def first_rows(self, count: int) -> list[int]:
        """Return the first row of each of the first ``count`` prompts."""
        first: dict[str, int] = {}
        for row, prompt in enumerate(self.prompts):
            first.setdefault(prompt.id, row)
        return list(first.values())[:count]

    def take(self, rows: Sequence[int]) -> JudgedSamples:
        """Return these rows, in this order."""
        return JudgedSamples(**{name: [values[row] for row in rows] for name, values in vars(self).items()})

    def add(self, other: JudgedSamples) -> None:
        """Append the rows of another set."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)


def pieces(base: BaseLM, tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds; empty while a character of several tokens is incomplete."""
    found, before = [], ""
    for end in range(1, len(tokens) + 1):
        now = base.decode(tokens[:end])
        whole = now.startswith(before) and not now.endswith("\ufffd")
        found.append(now[len(before) :] if whole else "")
        before = now if whole else before
    return found


def _traced(along: Sequence[tuple[str, float]]) -> dict[str, object]:
    return {"tokens": [piece for piece, _ in along], "r": [round(r, 4) for _, r in along]} if along else {}


def judge(oracle: Oracle, prompts: list[Prompt], texts: list[str], finished: list[bool], truncated: str) -> list[float]:
    """Return verdicts under the rule for truncated responses (`fail`, `score` or `drop`; dropped ones score 0 here)."""
    asked = [i for i, done in enumerate(finished) if done or truncated == "score"]
    score = [0.0] * len(texts)
    if asked:
        verdicts = oracle([prompts[i] for i in asked], [texts[i] for i in asked]).tolist()
        for i, value in zip(asked, verdicts, strict=True):
            score[i] = value
    return score


def sample_and_judge(
    model: Any,
    base: BaseLM,
    oracle: Oracle,
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    max_new_tokens: int,
    truncated: str,
    seed: int,
    places: Sequence[int] | None = None,
    block: int = 16,
    stream: str = "evaluation",
    first: int = 0,
    offset: int = 0,
) -> JudgedSamples:
    """Sample ``per_prompt`` responses to each prompt from a model (the base itself, or a ControlledLM) and judge them.

    Every response has its own random stream, so it does not depend on the other responses.

    Args:
        places: indices of the prompts to use, in order; None uses all of them.
        block: number of prompts that are sampled together.
        stream: name of the random streams.
        first: number of the first response to each prompt; those before it have streams of their own.
        offset: number of the first prompt, which names its random streams.
    """
    places = range(len(prompts)) if places is None else places
    temperature = base.temperature if model is base.model else 1.0
    everything = JudgedSamples()
    for start in range(0, len(places), block):
        here = places[start : start + block]
        some = [prompts[place] for place in here]
        ids_PS, mask_PS = (t.to(base.device) for t in base.encode_prompts(some))
        samples = sample(
            Decoder(model, temperature),
            ids_PS,
            mask_PS,
            base.eos_ids,
            uniforms([offset + place for place in here], per_prompt, max_new_tokens, seed, stream, first=first),
        )
        texts = [base.decode(tokens) for tokens in samples.tokens]
        rows = [some[p] for p in samples.prompt_of]
        log_q = [sum(values) for values in samples.log_p]
        log_p = log_q
        if model is not base.model:
            with base.adapters(on=False):
                batch = RolloutBatch.unjudged(ids_PS, mask_PS, samples.prompt_of, samples.tokens)
                log_p = base.log_probs(batch).sum(1).tolist()
        score = judge(oracle, rows, texts, samples.finished, truncated)
        lengths = [len(tokens) for tokens in samples.tokens]
        nothing: list[list[tuple[str, float]]] = [[] for _ in texts]
        tokens: list[Sequence[int]] = list(samples.tokens)
        everything.add(JudgedSamples(rows, texts, samples.finished, score, log_q, log_p, lengths, tokens, nothing))
    return everything
