"""Decoding with p * R^alpha against plain formulas: no cache, no padding, one sequence at a time.

Axes: N rows, L positions, T response tokens, V vocabulary.

Longer than 300 lines because it is about one thing: every way to decode is compared with the same plain pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from helpers import (
    PROMPT_OF,
    PROMPTS,
    RESPONSES,
    base_lm,
    batch_of,
    exact_gpt2,
    plain_log_probs,
    prompt_tokens,
    random_lora,
    random_network,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from scipy import stats
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import DynamicCache

from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.control.controlled_lm import ControlledLM
from dinado.parameters.network import Network
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms
from engine.restoring import build_base
from lightning_modules.build_method import build_method
from workbench.settings.methods import METHODS

IDS = [3, 1, 2, 5, 5, 4]


@torch.no_grad()
def plain(scores: object, ids: Sequence[int], alpha: float) -> Tensor:
    """``[L, V]`` log q of one sequence, every model run once over the whole of it."""
    base: BaseLM = scores.base  # type: ignore[attr-defined]
    row = torch.tensor([list(ids)])

    def log_probs(model: torch.nn.Module) -> Tensor:
        logits = model(row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
        return (logits / base.temperature).log_softmax(1)

    if isinstance(scores, Network):
        log_p = log_probs(base.model)
        out = base.model.base_model(row, output_hidden_states=True, use_cache=False)
        depths = [round(tap * base.num_layers) for tap in scores.taps]
        taps = [out.last_hidden_state if d == base.num_layers else out.hidden_states[d] for d in depths]
        network = scores.network
        features = sum(read(tap) for read, tap in zip(network.read, taps, strict=True))
        state = network.body(inputs_embeds=features, use_cache=False).last_hidden_state[0]
        u = network.out(state)
        if network.tied:
            weight_VD = base.model.get_output_embeddings().weight
            u = u @ weight_VD.T / weight_VD.norm(dim=1).mean()
        if network.pointer is not None:
            centred_LD = weight_VD[row[0]] - weight_VD.mean(0)
            target_LD = centred_LD / centred_LD.norm(dim=1, keepdim=True) ** 2
            for i in range(len(ids)):
                for j in range(i + 1):
                    coefficient = network.pointer.query(state[i]) @ network.pointer.key(state[j]) / 8
                    u[i] += coefficient * weight_VD @ target_LD[j]
        score = logsigmoid(u) if scores.link == "logsigmoid" else u
    else:
        with base.adapters(on=False):
            log_p = log_probs(base.model)
        score = log_probs(scores.policy.model) - log_p  # type: ignore[attr-defined]
    return (log_p + alpha * score).log_softmax(1)


KINDS = {
    "network": lambda base: random_network(base),
    "identity": lambda base: random_network(base, "identity"),
    "tied, two taps": lambda base: random_network(base, "identity", head="tied", taps=[0.5, 1.0]),
    "embeddings": lambda base: random_network(base, taps=[0.0]),
    "pointer": lambda base: random_network(base, "identity", head="tied", pointer=True),
    "lora": random_lora,
    "lora, output too": lambda base: random_lora(base, targets=r".*(_proj|c_attn|c_fc|lm_head)"),
}
CASES = [(name, kind) for name in ("llama", "gpt2") for kind in KINDS]
CASES += [("phi", kind) for kind in ("network", "pointer", "lora", "lora, output too")]
CASES += [("markov", kind) for kind in KINDS if "lora" not in kind]


def controlled(name: str, kind: str, alpha: float = 1.0, **settings: object) -> ControlledLM:
    return ControlledLM(KINDS[kind](base_lm(name, **settings)), alpha).eval()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_logits_are_base_plus_scores(name: str, kind: str, alpha: float) -> None:
    model = controlled(name, kind, alpha, temperature=0.8)
    expected = plain(model.scores, IDS, alpha)
    ids = torch.tensor([IDS])
    whole = model(ids).logits[0]
    torch.testing.assert_close(whole.log_softmax(1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits[0], whole[-2:], rtol=1e-4, atol=1e-4)
    if alpha == 0.0:
        base = plain_log_probs(model.base.model, IDS[:1], IDS[1:], 0.8)
        if "lora" not in kind:
            torch.testing.assert_close(whole[:-1].log_softmax(1), base, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("name", "kind"), CASES)
@torch.no_grad()
def test_one_token_after_another_from_one_cache(name: str, kind: str, alpha: float) -> None:
    """A prompt of four tokens beside one of two, padded on the left, then two tokens each."""
    model = controlled(name, kind, alpha)
    rows = [IDS, [0, 0, *IDS[2:]]]
    ids = torch.tensor(rows)
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    cache, logits = DynamicCache(), []
    for start, stop in ((0, 4), (4, 5), (5, 6)):
        out = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
        assert out.past_key_values is cache and cache.get_seq_length() == stop
        logits.append(out.logits)
    found = torch.cat(logits, 1).log_softmax(-1)
    torch.testing.assert_close(found[0], plain(model.scores, IDS, alpha), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1, 2:], plain(model.scores, IDS[2:], alpha), rtol=1e-4, atol=1e-4)


def test_control_changes_the_distribution() -> None:
    """Otherwise the comparisons above would compare the base with itself."""
    for name, kind in CASES:
        model = controlled(name, kind)
        assert (plain(model.scores, IDS, 1.0) - plain(model.scores, IDS, 0.0)).abs().max() > 0.1, (name, kind)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_no_control_is_the_base(name: str) -> None:
    for kind in KINDS:
        model = controlled(name, kind, alpha=0.0)
        with model.base.adapters(on=False):
            expected = plain_log_probs(model.base.model, IDS[:1], [*IDS[1:], 0])
        torch.testing.assert_close(model(torch.tensor([IDS])).logits[0].log_softmax(1), expected, rtol=1e-4, atol=1e-4)


# A policy decodes alone


@contextmanager
def base_passes(base: BaseLM) -> Iterator[Counter]:
    """Count the passes through the base's body, by whether adapters were on."""
    count: Counter = Counter()
    layer = next(module for module in base.model.modules() if isinstance(module, BaseTunerLayer))

    def hook(*_: object) -> None:
        count["off" if layer.disable_adapters else "on"] += 1

    handle = base.model.base_model.register_forward_pre_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


@pytest.mark.parametrize(("alpha", "passes", "layers"), [(1.0, {"on": 3}, 2), (0.5, {"on": 3, "off": 3}, 4)])
def test_a_policy_needs_no_base(alpha: float, passes: dict, layers: int) -> None:
    model = controlled("gpt2", "lora", alpha)
    settings = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3, "return_dict_in_generate": True}
    with base_passes(model.base) as count:
        out = model.generate(input_ids=torch.tensor([IDS]), **settings)
    assert dict(count) == passes
    assert len(out.past_key_values.layers) == layers == model.config.num_hidden_layers


def test_a_network_adds_its_layers_to_the_cache() -> None:
    model = controlled("gpt2", "network")
    out = model.generate(input_ids=torch.tensor([IDS]), do_sample=False, max_new_tokens=2, return_dict_in_generate=True)
    assert len(out.past_key_values.layers) == 2 + 2 == model.config.num_hidden_layers


# generate()


def strip(row: list[int]) -> list[int]:
    """A response up to and with its end token."""
    return row[: row.index(0) + 1] if 0 in row else row


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("name", "kind"), [c for c in CASES if c[1] in ("network", "tied, two taps", "lora")])
def test_padding_changes_no_greedy_or_beam_search(name: str, kind: str, alpha: float, beams: int) -> None:
    model = controlled(name, kind, alpha)
    settings = {"do_sample": False, "num_beams": beams, "max_new_tokens": 6, "num_return_sequences": min(beams, 2)}
    ids, mask = model.base.encode_prompts(PROMPTS)
    together = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, ids.shape[1] :].tolist()
    alone = []
    for prompt in PROMPTS:
        ids, mask = model.base.encode_prompts([prompt])
        alone += model.generate(input_ids=ids, attention_mask=mask, **settings)[:, ids.shape[1] :].tolist()
    assert [strip(row) for row in together] == [strip(row) for row in alone]


def test_greedy_is_the_likeliest_token_of_each_step() -> None:
    model = controlled("llama", "network")
    out = model.generate(input_ids=torch.tensor([IDS]), do_sample=False, max_new_tokens=8)[0].tolist()
    expected = list(IDS)
    while len(expected) < len(IDS) + 8 and (len(expected) == len(IDS) or expected[-1] != 0):
        expected.append(int(plain(model.scores, expected, 1.0)[-1].argmax()))
    assert strip(out[len(IDS) :]) == expected[len(IDS) :]


def draw(
    model: ControlledLM, prompts: Sequence[Prompt], count: int, budget: int
) -> tuple[list[list[int]], list[float]]:
    """Responses and the log-probability recorded for each."""
    ids, mask = model.base.encode_prompts(prompts)
    out = sample(Decoder(model), ids, mask, model.base.eos_ids, uniforms(range(len(prompts)), count, budget, "test"))
    return out.tokens, [sum(values) for values in out.log_p]


@pytest.mark.parametrize(("name", "kind"), [("llama", "network"), ("gpt2", "lora"), ("gpt2", "tied, two taps")])
def test_padding_changes_no_sample(name: str, kind: str) -> None:
    model = controlled(name, kind, alpha=0.7)
    prompts = [PROMPTS[2], PROMPTS[1]]  # the first is padded when they are together
    together, log_q = draw(model, prompts, 8, 6)
    alone, log_q_alone = draw(model, prompts[:1], 8, 6)
    assert together[:8] == alone
    assert log_q[:8] == pytest.approx(log_q_alone, abs=1e-4)
    tokens = prompt_tokens(model.base, prompts[1])
    for response, recorded in zip(together[8:], log_q[8:], strict=True):
        log_q_TV = plain(model.scores, [*tokens, *response], 0.7)[len(tokens) - 1 : -1]
        exact = float(log_q_TV.gather(1, torch.tensor(response)[:, None]).sum())
        assert recorded == pytest.approx(exact, abs=1e-3)


V, T = 4, 3


@pytest.fixture(scope="module", params=["network", "lora", "lora alpha 0.5"])
def small(request: pytest.FixtureRequest) -> tuple[ControlledLM, dict[tuple[int, ...], float]]:
    """A controlled tiny GPT-2 and the probability of each of its 40 responses."""
    kind, _, alpha = request.param.partition(" alpha ")
    model = controlled("gpt2", kind, float(alpha or 1.0), vocab_size=V, seed=2)
    open_prefixes = [prefix for n in range(T) for prefix in product(range(1, V), repeat=n)]
    responses = [(*prefix, 0) for prefix in open_prefixes] + list(product(range(1, V), repeat=T))
    exact = {}
    for y in responses:
        log_q_TV = plain(model.scores, [0, *y], model.alpha)[:-1]
        exact[y] = float(log_q_TV.gather(1, torch.tensor(y)[:, None]).sum().exp())
    assert sum(exact.values()) == pytest.approx(1.0, abs=1e-5)
    return model, exact


def test_wide_beams_are_exhaustive_search(small: tuple[ControlledLM, dict]) -> None:
    """With a beam for every prefix nothing is pruned, so the cache must have followed every reordering."""
    model, exact = small
    out = model.generate(
        input_ids=torch.tensor([[0]]),
        do_sample=False,
        num_beams=40,
        num_return_sequences=5,
        max_new_tokens=T,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = sorted(exact, key=lambda y: -exact[y])[:5]
    found = [tuple(strip(row)) for row in out.sequences[:, 1:].tolist()]
    assert found == best
    assert out.sequences_scores.exp().tolist() == pytest.approx([exact[y] for y in best], abs=1e-4)


def test_sampling_frequencies_are_q(small: tuple[ControlledLM, dict]) -> None:
    model, exact = small
    count = 4000
    tokens, log_q = draw(model, [Prompt("0", "")], count, T)
    for y, value in list(zip(tokens, log_q, strict=True))[:50]:
        assert value == pytest.approx(np.log(exact[tuple(y)]), abs=1e-3)
    seen = Counter(map(tuple, tokens))
    observed, expected = (np.array([d[y] for y in exact], dtype=float) for d in (seen, exact))
    expected *= count / expected.sum()
    rare = expected < 5
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (observed, expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    with model.base.adapters(on=False):
        base = {y: plain_log_probs(model.base.model, [0], y).gather(1, torch.tensor(y)[:, None]).sum() for y in exact}
    base_expected = np.array([float(base[y].exp()) for y in exact]) * count
    of_base = np.append(base_expected[~rare], base_expected[rare].sum())
    assert stats.chisquare(observed, of_base * count / of_base.sum()).pvalue < 1e-3, "the base would do as well"


def test_transformers_own_sampling_draws_from_q(small: tuple[ControlledLM, dict]) -> None:
    """generate() without arguments samples untruncated from q, whatever the base's own defaults say."""
    model, exact = small
    torch.manual_seed(0)
    rows = model.generate(input_ids=torch.zeros(2000, 1, dtype=torch.long), max_new_tokens=T)[:, 1:].tolist()
    seen = Counter(tuple(strip(row)) for row in rows)
    assert set(seen) <= set(exact)
    observed, expected = (np.array([d[y] for y in exact], dtype=float) for d in (seen, exact))
    expected *= 2000 / expected.sum()
    rare = expected < 5
    observed, expected = (np.append(x[~rare], x[rare].sum()) for x in (observed, expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_the_bases_own_generation_defaults_do_not_leak() -> None:
    base = base_lm("gpt2")
    base.model.generation_config.update(top_k=1, temperature=0.1, do_sample=False, repetition_penalty=5.0)
    model = ControlledLM(random_network(base))
    settings = model.generation_config
    assert (settings.top_k, settings.top_p, settings.temperature, settings.do_sample) == (0, 1.0, 1.0, True)
    assert settings.repetition_penalty in (None, 1.0)
    assert settings.eos_token_id == [0] and settings.pad_token_id == 0


# Training and decoding speak of the same q


METHOD_SETTINGS = {
    "nado": (),
    "dinado_soft": (),
    "dinado_soft mean": ("objective.norm.kind=mean",),
    "dinado_hard": (),
    "dinado_hard lora": ("parameters=lora",),
    "dinado_merge": (),
    "dinado_soft pointer": ("network.head=tied", "network.pointer=true"),
    "dinado_merge full": ("parameters=full",),
    "dinado_merge mean": ("objective.norm.kind=mean",),
    "sft": (),
}


def test_the_pointer_reads_tokens_where_prompts_share_a_beginning() -> None:
    """What they have in common is read once, which moves the padding of the shorter one behind it."""
    base = base_lm("llama")
    scores = random_network(base, "identity", head="tied", pointer=True)
    prompts, responses = [Prompt("a", "3 1 2 4 5"), Prompt("b", "3 1 5")], [[1, 4, 2], [2, 5, 3]]
    statistics = scores(batch_of(base, prompts, responses, (0, 1))).statistics
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start = prompt_tokens(base, prompt)
        log_q_LV = plain(scores, [*start, *response], alpha=1.0)[len(start) - 1 : -1]
        log_q_T = log_q_LV.gather(1, torch.tensor(response)[:, None])[:, 0]
        torch.testing.assert_close(statistics.log_q[row], log_q_T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_training_statistics_are_of_the_model_that_decodes(name: str, tmp_path: object) -> None:
    config = exact_gpt2(tmp_path, f"method={name.split()[0]}", "base.temperature=0.9", *METHOD_SETTINGS[name])
    assert config.method in METHODS
    method = build_method(config, build_base(config)).eval()
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=stream))
    prompts = [Prompt("a", ""), Prompt("b", "3 1 2 4"), Prompt("c", "4 2")]
    responses = [[min(v, 4) for v in response] for response in RESPONSES]
    with method.base.adapters(on=False):
        batch = batch_of(method.base, prompts, responses, PROMPT_OF)
    statistics = method.terms(batch).held_out
    model = method.controlled(alpha=1.0)
    differs = 0.0
    for row, response in enumerate(responses):
        prompt = prompt_tokens(method.base, prompts[PROMPT_OF[row]])
        column = torch.tensor(response)[:, None]
        log_q_T = plain_log_probs(model, prompt, response).gather(1, column)[:, 0]
        torch.testing.assert_close(statistics.log_q_BT[row, : len(response)], log_q_T, rtol=1e-3, atol=1e-4)
        log_p_T = batch.log_p_BT[row, : len(response)]
        torch.testing.assert_close(statistics.log_p_BT[row, : len(response)], log_p_T, rtol=1e-3, atol=1e-4)
        differs = max(differs, float((log_q_T - log_p_T).abs().max()))
    assert differs > 0.05
