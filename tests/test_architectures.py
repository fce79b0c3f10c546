"""Every causal architecture of transformers, tiny and random: right on every path, or refused in one line.

``python tests/test_architectures.py`` writes the table of docs/bases.md from the same checks.
Axes: P prompts, S prompt tokens, L positions, T response tokens, V vocabulary.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from architectures import V, architectures, build, build_multimodal, build_narrow, small_config
from commands import Command
from helpers import batch_of, plain_log_probs, prompt_tokens, random_lora, random_network
from small_run import byte_tokenizer, small_words
from torch import Tensor
from transformers import DynamicCache, OPTConfig, OPTForCausalLM

import train
from dinado.bases.acceleration import checkpoint_layers
from dinado.bases.causal import BaseLM
from dinado.bases.decoder import Decoder
from dinado.bases.markov import build_word_tokenizer
from dinado.control.controlled_lm import ControlledLM
from dinado.control.oracle_network import NetworkStates
from dinado.errors import UserError
from dinado.parameters.network import Network
from dinado.parameters.parameterisation import Parameterisation
from dinado.prompt import Prompt
from dinado.rollouts.sampler import sample, uniforms

PAGE = Path(__file__).resolve().parent.parent / "docs" / "bases.md"
PROMPTS = (Prompt("a", "3 1 2 5 6 7 8"), Prompt("b", "3 1 4"), Prompt("c", "3 1 2"))
"""They begin alike, and the first is longer than the windows."""
RESPONSES = ([1, 4, 9, 8, 7, 6, 5, 0], [5, 5, 2, 3, 1, 0], [9, 0], [2, 1, 7, 7, 7])
PROMPT_OF = (0, 1, 2, 1)
LENGTH = 10
QUICK = tuple(
    [
        "bert",
        "bart",
        "bloom",
        "cohere",
        "gemma2",
        "gpt2",
        "gpt_neo",
        "llama4_text",
        "mamba",
        "mistral",
        "mixtral",
        "mpt",
    ]
)
TOLERANCE = 1e-4


class Verdict(NamedTuple):
    """What became of an architecture.

    Attributes:
        refused: the reason of the refusal, empty if it is supported.
        without: what it is supported without.
        worst: the largest difference from a plain pass, in nats, by path.
    """

    refused: str
    without: str
    worst: dict[str, float]


def verdict(name: str, model: Any = None) -> Verdict:
    """Build an architecture and try every path."""
    model = build(name) if model is None else model
    model.generation_config.eos_token_id = 0
    try:
        base = BaseLM(model, build_word_tokenizer(V), name=name)
    except UserError as error:
        assert "\n" not in str(error)
        return Verdict(str(error).removeprefix(f"base.name={name}: {type(model).__name__}").strip(" :"), "", {})
    batch = batch_of(base, PROMPTS, RESPONSES, PROMPT_OF)
    worst = {"teacher forcing": float((base.log_probs(batch) - batch.log_p_BT).abs().max())}
    ids_PS, mask_PS = base.encode_prompts(PROMPTS)
    drawn = sample(Decoder(base.model), ids_PS, mask_PS, base.eos_ids, uniforms(range(3), 2, LENGTH, "matrix"))
    texts = list(zip(drawn.prompt_of, drawn.tokens, strict=True))
    plain = [plain_log_probs(base.model, prompt_tokens(base, PROMPTS[row]), tokens) for row, tokens in texts]
    worst["sampling"] = max(
        float((torch.tensor(log_p) - at(rows, tokens)).abs().max())
        for log_p, rows, (_, tokens) in zip(drawn.log_p, plain, texts, strict=True)
    )
    without = ""
    for kind in ("network", "lora"):
        scores: Parameterisation = (
            random_network(base, "identity", head="tied", pointer=True) if kind == "network" else random_lora(base)
        )
        own = [score_TV(scores, row, tokens, log_p) for (row, tokens), log_p in zip(texts, plain, strict=True)]
        for alpha in (1.0, 1.5):
            wanted = [(log_p + alpha * score).log_softmax(1) for log_p, score in zip(plain, own, strict=True)]
            found = stepped(ControlledLM(scores, alpha).eval(), ids_PS, mask_PS, texts)
            worst[f"{kind}, alpha {alpha}"] = max(
                float((at(a, tokens) - at(b, tokens)).abs().max())
                for a, b, (_, tokens) in zip(found, wanted, texts, strict=True)
            )
        if kind == "lora":
            without = "" if recomputes(scores, batch) else "`trainer.checkpointing`"
    return Verdict("", without, worst)


def at(log_p_TV: Tensor, tokens: list[int]) -> Tensor:
    """Return the entries of a response's tokens."""
    return log_p_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]


@torch.no_grad()
def score_TV(scores: Parameterisation, row: int, tokens: list[int], log_p_TV: Tensor) -> Tensor:
    """Return the scores along one response from plain passes of the base and the network or adapters."""
    base, prompt = scores.base, prompt_tokens(scores.base, PROMPTS[row])
    if not isinstance(scores, Network):
        return plain_log_probs(base.model, prompt, tokens) - log_p_TV
    ids_1L, network = torch.tensor([[*prompt, *tokens]]), scores.network
    last = base.model.base_model(ids_1L).last_hidden_state
    states = [torch.nn.functional.pad(last, (0, base.state_width - last.shape[-1]))]
    ran = network.run(
        network.features(states, ids_1L, base.head),
        attention_mask=torch.ones_like(ids_1L),
        past_key_values=DynamicCache(),
    )
    return network.head(base.head).logits(network.score_hidden(NetworkStates(*ran)))[0, len(prompt) - 1 : -1]


@torch.no_grad()
def stepped(model: Any, ids_PS: Tensor, mask_PS: Tensor, texts: list[tuple[int, list[int]]]) -> list[Tensor]:
    """Return log-probabilities ``[T, V]`` of each text, token after token from a cache; rows leave when they end."""
    decoder, rows = Decoder(model), list(range(len(texts)))
    found: list[list[Tensor]] = [[] for _ in texts]
    log_NV = decoder.start(ids_PS, mask_PS, len(texts) // len(ids_PS), LENGTH)
    for step in range(LENGTH):
        for place, row in enumerate(rows):
            found[row].append(log_NV[place])
        stay = [place for place, row in enumerate(rows) if len(texts[row][1]) > step + 1]
        if not stay:
            break
        if len(stay) < len(rows):
            decoder.keep(torch.tensor(stay))
            rows = [rows[place] for place in stay]
        log_NV = decoder.step(torch.tensor([texts[row][1][step] for row in rows]))
    return [torch.stack(steps) for steps in found]


def recomputes(scores: Parameterisation, batch: Any) -> bool:
    """Tell whether layers can be recomputed, and check that the gradients are then the same."""
    weights = list(scores.trained().values())
    before = torch.autograd.grad(scores.log_q(batch).sum(), weights, allow_unused=True)
    try:
        checkpoint_layers(scores.base)
    except UserError:
        return False
    after = torch.autograd.grad(scores.log_q(batch).sum(), weights, allow_unused=True)
    for a, b in zip(before, after, strict=True):
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-6)
    return True


def buildable() -> list[str]:
    """List the architectures that can be built tiny, without their weights."""
    found = []
    for name in architectures():
        try:
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in build(name, fill=False).parameters())
        except Exception:
            continue  # a configuration with needs of its own, or a package that is not installed
        if size < 4_000_000 and not name.startswith("dinado"):
            found.append(name)
    return sorted(found)


def row_of(name: str, found: Verdict) -> str:
    """Return an architecture's line in the table."""
    refusal = re.sub(r"[\d.]+(e-?\d+)? nats", "some nats", found.refused)
    said = f"refused: {refusal}" if refusal else f"without {found.without}" if found.without else "supported"
    return f"| `{name}` | {said} |"


def check(name: str, model: Any = None) -> Verdict:
    """Return the verdict on an architecture; a number that is wrong is a failure."""
    found = verdict(name, model)
    wrong = {path: nats for path, nats in found.worst.items() if not nats <= TOLERANCE}
    assert wrong == {}, name
    return found


@pytest.mark.parametrize("name", QUICK)
def test_known_architectures(name: str) -> None:
    assert row_of(name, check(name)) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_language_model_of_a_multimodal_one() -> None:
    model = build_multimodal()
    assert check("gemma3", model)[:2] == ("", "")
    assert not any("vision" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_layers_wider_than_the_embeddings() -> None:
    assert check("opt", build_narrow())[:2] == ("", "")


def test_states_of_layers_wider_than_the_embeddings_are_kept(tmp_path: Path, command: Command) -> None:
    tokenizer = byte_tokenizer()
    config = small_config(OPTConfig)
    config.vocab_size, config.word_embed_proj_dim = len(tokenizer), 16
    OPTForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = []
    for states in ("float32", "off"):
        words = small_words(tmp_path, "method=nado", "optim.batch_size=2", "optim.rows_per_prompt=2")
        words[words.index("oracle.name=user") : words.index("oracle.function=mine:has_a") + 1] = [
            "oracle.name=regex",
            "oracle.pattern=[ae]",
        ]
        result = command(train, *words, f"data.states={states}", "network.taps=[0.0,0.5,1.0]", "--json")
        assert result.code == 0, result.err
        found.append(result.json["train/loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.slow
def test_every_architecture_is_right_or_refused() -> None:
    names = buildable()
    assert len(names) >= 120
    table = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [row_of(name, check(name)) for name in names] == table, "python tests/test_architectures.py"


if __name__ == "__main__":
    rows = [row_of(name, check(name)) for name in buildable()]
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("| architecture |")
    PAGE.write_text(text[:start] + "\n".join(["| architecture | verdict |", "|---|---|", *rows]) + "\n", "utf-8")
    print(f"{len(rows)} architectures", file=sys.stderr)
