"""Requests and answers of inference servers that take token ids and return the log-probabilities of sampled tokens.

Three protocols: OpenAI completions with vLLM's extensions (``/v1/completions``, ``return_token_ids``), SGLang's own
``/generate``, and llama.cpp's ``/completion``. Texts are never decoded and encoded again. Whatever changes a
distribution is sent with each request, so that neither the server's defaults nor the model's ``generation_config``
apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dinado.errors import EngineError

Json = dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """A request for samples of one prompt.

    Attributes:
        prompt: token ids.
        count: number of samples.
        max_tokens: budget of a sample.
        temperature: divides the model's logits.
        seed: seed of the first sample; the others follow.
        eos_ids: tokens that end a sample.
    """

    prompt: tuple[int, ...]
    count: int
    max_tokens: int
    temperature: float
    seed: int
    eos_ids: tuple[int, ...]


@dataclass(frozen=True)
class Sampled:
    """One sample.

    Attributes:
        tokens: ids, the end-of-sequence token included when the sample is finished.
        log_s: log-probability of each token under the distribution that the server drew from, in nats.
        finished: whether it ended within the budget.
    """

    tokens: list[int]
    log_s: list[float]
    finished: bool


@dataclass(frozen=True)
class Protocol:
    """How a kind of server is asked.

    Attributes:
        name: the server's name for itself, ``owned_by`` in its list of models.
        path: path of the requests below the server's root.
        bodies: makes the bodies of the requests for a draw; the first argument is the name of the model.
        samples: reads the samples from an answer.
        about: path that answers with the version and, where the server tells them, its flags.
        version: key of the version in that answer.
        flags: keys of that answer that change numbers.
        advice: flags of the server that make its log-probabilities those of the distribution it draws from.
    """

    name: str
    path: str
    bodies: Callable[[str, Draw], list[Json]]
    samples: Callable[[Json], list[Sampled]]
    about: str
    flags: tuple[str, ...]
    advice: str
    version: str = "version"


def read_samples(protocol: Protocol, answer: Any, draw: Draw, count: int) -> list[Sampled]:
    """Read and check the samples in an answer.

    Args:
        count: number of samples that the request asked for.

    Raises:
        EngineError: the answer lacks ids or log-probabilities, or they cannot be those of this request.
    """
    try:
        samples = protocol.samples(answer)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise EngineError(
            "rollouts.url: the server's answer holds no token ids with log-probabilities; rollouts need a server that "
            "returns both, such as vLLM (0.10.2 or later), SGLang or llama.cpp"
        ) from None
    if len(samples) != count:
        raise EngineError(f"rollouts.url: asked for {count} samples and got {len(samples)}")
    for sample in samples:
        if problem := _problem(sample, draw):
            raise EngineError(f"rollouts.url: {problem}")
    return samples


def _problem(sample: Sampled, draw: Draw) -> str | None:
    """Tell what is wrong with a sample, or return None."""
    if not sample.tokens or len(sample.tokens) != len(sample.log_s):
        return f"a sample has {len(sample.tokens)} tokens and {len(sample.log_s)} log-probabilities"
    # A server that computes in half precision may round a sure token's probability to just above 1.
    if not all(-1e4 < value <= 0.01 for value in sample.log_s):
        return "a sample has a log-probability that is no finite number up to 0"
    if len(sample.tokens) > draw.max_tokens:
        return f"a sample has {len(sample.tokens)} tokens, more than rollouts.max_new_tokens={draw.max_tokens}"
    ended = [token in draw.eos_ids for token in sample.tokens]
    if any(ended[:-1]):
        return "a sample goes on after its end-of-sequence token; start the server without --ignore-eos"
    if sample.finished and not ended[-1]:
        return (
            f"a sample ended by itself, but not with an end-of-sequence token of the base ({list(draw.eos_ids)}): the "
            "server leaves that token out, or has another tokenizer"
        )
    if not ended[-1] and len(sample.tokens) < draw.max_tokens:
        return (
            f"a sample was cut off after {len(sample.tokens)} of {draw.max_tokens} tokens; raise the server's longest "
            "context, or lower rollouts.max_new_tokens"
        )
    return None


def _completions_bodies(model: str, draw: Draw) -> list[Json]:
    return [
        {
            "model": model,
            "prompt": list(draw.prompt),
            "n": draw.count,
            "seed": draw.seed,
            "max_tokens": draw.max_tokens,
            "temperature": draw.temperature,
            **_NEUTRAL,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": list(draw.eos_ids),
            "skip_special_tokens": False,
        }
    ]


def _completions_samples(answer: Json) -> list[Sampled]:
    choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    return [
        Sampled(
            [int(token) for token in choice["token_ids"]],
            [float(value) for value in choice["logprobs"]["token_logprobs"]],
            choice["finish_reason"] == "stop",
        )
        for choice in choices
    ]


def _generate_bodies(model: str, draw: Draw) -> list[Json]:
    """Make one request for every sample: the server's authors advise against several in one."""
    parameters = {
        "max_new_tokens": draw.max_tokens,
        "temperature": draw.temperature,
        **_NEUTRAL,
        "stop_token_ids": list(draw.eos_ids),
        "skip_special_tokens": False,
    }
    return [
        {
            "input_ids": list(draw.prompt),
            "sampling_params": {**parameters, "sampling_seed": draw.seed + sample},
            "return_logprob": True,
            "logprob_start_len": -1,
        }
        for sample in range(draw.count)
    ]


def _generate_samples(answer: Json) -> list[Sampled]:
    told = answer["meta_info"]
    pairs = told["output_token_logprobs"]
    return [
        Sampled(
            [int(pair[1]) for pair in pairs],
            [float(pair[0]) for pair in pairs],
            told["finish_reason"]["type"] == "stop",
        )
    ]


def _llamacpp_bodies(model: str, draw: Draw) -> list[Json]:
    """Make one request for every sample; the only step of sampling that is named is the temperature."""
    return [
        {
            "model": model,
            "prompt": list(draw.prompt),
            "n_predict": draw.max_tokens,
            "seed": draw.seed + sample,
            "samplers": ["temperature"],
            "temperature": draw.temperature,
            "n_probs": 1,
            "post_sampling_probs": True,
            "return_tokens": True,
        }
        for sample in range(draw.count)
    ]


def _llamacpp_samples(answer: Json) -> list[Sampled]:
    return [
        Sampled(
            [int(token) for token in answer["tokens"]],
            [math.log(entry["prob"]) for entry in answer["completion_probabilities"]],
            answer["stop_type"] == "eos",
        )
    ]


_NEUTRAL: Json = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""Values that leave a distribution as it is."""

VLLM = Protocol(
    "vllm",
    "/v1/completions",
    _completions_bodies,
    _completions_samples,
    about="/version",
    flags=(),
    advice="--logprobs-mode processed_logprobs --generation-config vllm",
)
SGLANG = Protocol(
    "sglang",
    "/generate",
    _generate_bodies,
    _generate_samples,
    about="/get_server_info",
    flags=("dtype", "quantization", "kv_cache_dtype", "attention_backend", "sampling_backend", "tp_size"),
    advice="--sampling-defaults openai",
)
LLAMACPP = Protocol(
    "llamacpp",
    "/completion",
    _llamacpp_bodies,
    _llamacpp_samples,
    about="/props",
    flags=("model_path", "model_ftype"),
    advice="a GGUF file of the same precision",
    version="build_info",
)
PROTOCOLS = {protocol.name: protocol for protocol in (VLLM, SGLANG, LLAMACPP)}


def protocol_of(owner: str) -> Protocol:
    """Return the protocol of a server by its name for itself; unknown ones are asked in vLLM's."""
    return PROTOCOLS.get(owner, replace(VLLM, name=owner))
