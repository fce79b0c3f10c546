"""Two runs trained apart and composed at decode time, against one run that is trained on both oracles.

    python benchmarks/composition.py             three worlds of each kind: 18 short runs
    python benchmarks/composition.py --worlds 1 --json

Texts have six tokens, and every prefix is enumerated, so that all distances to p C_1 C_2 / Z are exact.

* independent: a token is a colour and a shape, and colours and shapes are two Markov chains that know nothing of each
  other. One oracle asks for a red token, the other for a round one, so that R_12 = R_1 R_2 after every prefix.
* dependent: an ordinary exact world in which both oracles ask for the token 3, and each for one more.

The table shows the largest |R_12 - R_1 R_2| over all prefixes, and the share of the distance KL(q*||p) that is closed
by the exact product R_1 R_2, by the two runs composed, and by the run that was trained on both oracles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import timing
from dinado.bases.markov import build_markov
from dinado.control.controlled_lm import ControlledLM
from dinado.exact import EnumeratedWorld, LogProbFn, causal_lm_rows
from dinado.exact.world import normalise
from dinado.oracles.tokens import EOS, TokenDFA, TokenOracle, token_dfa
from dinado.seeding import generator
from engine.composing import restore_controlled
from engine.session import train
from workbench.run_folder import RunFolder
from workbench.settings import loader

COLOURS, SHAPES = 3, 2
VOCABULARY = 1 + COLOURS * SHAPES
LENGTH, ROLLOUTS, STEPS = 6, 8000, 300
RARITY, SPREAD = -2.0, 0.5
"""What is added to the logits of red and of round, and the standard deviation of all logits."""
NEVER = -40.0
"""Logit of the end token among colours and shapes; an end that is drawn would tie the two oracles together."""
PROMPT = [1]


def _some(tokens: list[int]) -> TokenOracle:
    """Return the oracle that asks for any one of these tokens."""
    transitions_SV = torch.arange(2)[:, None].repeat(1, VOCABULARY)
    transitions_SV[:, tokens] = 1
    return TokenOracle(TokenDFA(transitions_SV, 0, torch.tensor([False, True])))


def _both(first: TokenOracle, second: TokenOracle) -> TokenOracle:
    return TokenOracle(first.dfa.product(second.dfa))


RED = _some([1 + shape for shape in range(SHAPES)])
ROUND = _some([1 + SHAPES * colour for colour in range(COLOURS)])
RED_AND_ROUND = _both(RED, ROUND)
WITH_FIVE, WITH_SIX = (TokenOracle(token_dfa(VOCABULARY, [3, other])) for other in (5, 6))
WITH_FIVE_AND_SIX = _both(WITH_FIVE, WITH_SIX)
PAIRS = {
    "independent": ("RED", "ROUND", "RED_AND_ROUND"),
    "dependent": ("WITH_FIVE", "WITH_SIX", "WITH_FIVE_AND_SIX"),
}
"""For each kind of world, the names of the two oracles and of their product."""


class Row(NamedTuple):
    """The numbers of one world."""

    kind: str
    world: int
    r_1: float
    r_2: float
    r_12: float
    difference: float
    exact: float
    composed: float
    joint: float


def table_of_chains(seed: int) -> Tensor:
    """Return transition logits ``[V, V]`` of a colour chain beside a shape chain, whose texts never end."""
    stream = generator("colours and shapes", seed)
    colour_CC, shape_SS = (SPREAD * torch.randn(size, size, generator=stream) for size in (COLOURS, SHAPES))
    colour_CC[:, 0] += RARITY
    shape_SS[:, 0] += RARITY
    pairs_CSCS = colour_CC[:, None, :, None] + shape_SS[None, :, None, :]
    table_VV = torch.full((VOCABULARY, VOCABULARY), NEVER)
    table_VV[1:, 1:] = pairs_CSCS.flatten(2).flatten(0, 1)
    table_VV[EOS, 1:] = table_VV[1, 1:]
    return table_VV


def save_base(kind: str, world: int, folder: Path) -> Path:
    """Save the base of a world as an ordinary Hugging Face model."""
    model, tokenizer = build_markov(VOCABULARY, world)
    if kind == "independent":
        with torch.no_grad():
            model.lm_head.weight.copy_(table_of_chains(world).T)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_run(base: Path, oracle: str, seed: int, out: Path) -> Path:
    """Train one run of DiNADO-Soft on one oracle; return its folder."""
    for name, prompt in (("train", "1"), ("held_out", "2 1")):  # the base reads the last token alone
        (out / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
    words = [
        *("task.name=jsonl", f"task.path={out}/train.jsonl", f"task.val_path={out}/held_out.jsonl"),
        *("oracle.name=user", f"oracle.function=benchmarks.composition:{oracle}", f"base.name={base}"),
        *(f"runs={out}/runs/{base.name}-{oracle}", f"data.cache={out}/cache", f"seed={seed}", f"rollouts.seed={seed}"),
        *(f"rollouts.max_new_tokens={LENGTH}", f"rollouts.per_prompt={ROLLOUTS}", f"optim.steps={STEPS}"),
        *("eval.rollouts_per_prompt=100", "eval.samples_per_prompt=20", "eval.best_of=0", "trainer.val_every=0"),
        *("trainer.accelerator=cpu", "trainer.progress=false"),
    ]
    loaded = loader.load("exact_world", words)
    folder = RunFolder.create(loaded, words)
    with folder:
        train(loaded.config, folder, resume=False, quiet=True)
    return folder.path


def product_rows(first: EnumeratedWorld, second: EnumeratedWorld) -> LogProbFn:
    """Return the next-token log-probabilities of ``p R_1 R_2`` with the exact R of both; of p where they leave none."""

    def log_q_fn(tokens_NT: Tensor, lengths_N: Tensor) -> Tensor:
        one, other = first.rows(tokens_NT), second.rows(tokens_NT)
        log_q_NTV = normalise(one.log_p_NTV + one.log_r_NTV + other.log_r_NTV)
        nothing_NT1 = (log_q_NTV == -torch.inf).all(-1, keepdim=True)
        return torch.where(nothing_NT1, one.log_p_NTV, log_q_NTV)

    return log_q_fn


def largest_difference(first: EnumeratedWorld, second: EnumeratedWorld, both: EnumeratedWorld) -> float:
    """Compute the largest ``|R_12 - R_1 R_2|`` over all prefixes."""
    tokens = torch.cartesian_prod(*[torch.arange(1, VOCABULARY)] * LENGTH)
    r_1, r_2, r_12 = (world.rows(tokens).log_r_NTV.exp() for world in (first, second, both))
    root = abs(both.success_rate - first.success_rate * second.success_rate)
    return max(root, float((r_12 - r_1 * r_2).abs().max()))


def gap_closed(world: EnumeratedWorld, log_q_fn: LogProbFn) -> float:
    """Compute the share of KL(q*||p) that a model closes, exactly."""
    return 1 - world.kl_to_optimum(log_q_fn, 0, torch.Generator()).mean / world.kl_base


def rows_of(model: ControlledLM) -> LogProbFn:
    """Return the next-token log-probabilities of a controlled model after the prompt."""
    return causal_lm_rows(model, PROMPT)


def measure(kind: str, world: int, out: Path) -> Row:
    """Train the three runs of a world and measure how near they come to q*."""
    base = save_base(kind, world, out / f"{kind}-{world}")
    runs = [train_run(base, oracle, world, out) for oracle in PAIRS[kind]]
    composed, joint = restore_controlled(runs[:2]).model, restore_controlled(runs[2:]).model
    first, second, both = (
        EnumeratedWorld.from_model(joint.base.model, LENGTH, globals()[oracle].dfa, prompt_ids=PROMPT)
        for oracle in PAIRS[kind]
    )
    return Row(
        kind,
        world,
        first.success_rate,
        second.success_rate,
        both.success_rate,
        largest_difference(first, second, both),
        gap_closed(both, product_rows(first, second)),
        gap_closed(both, rows_of(composed)),
        gap_closed(both, rows_of(joint)),
    )


def summary(rows: list[Row]) -> dict[str, float]:
    """Compute the means over worlds that are reported."""
    numbers = {}
    for name in ("composed", "joint", "exact"):
        for kind in PAIRS:
            numbers[f"gap_closed_{name}_{kind}"] = statistics.fmean(getattr(r, name) for r in rows if r.kind == kind)
    for kind in PAIRS:
        numbers[f"ratio_{kind}"] = numbers[f"gap_closed_composed_{kind}"] / numbers[f"gap_closed_joint_{kind}"]
        numbers[f"largest_difference_{kind}"] = max(row.difference for row in rows if row.kind == kind)
    return numbers


def main() -> int:
    """Measure all worlds and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--worlds", type=timing.whole, default=3, help="worlds of each kind (default 3)")
    options.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    arguments = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for kind in PAIRS:
            for world in range(arguments.worlds):
                rows.append(measure(kind, world, Path(out)))
                print(rows[-1], file=sys.stderr, flush=True)
    heads = ("oracles", "world", "R_1", "R_2", "R_12", "largest difference", "exact product", "composed", "joint")
    timing.show([dict(zip(heads, row, strict=True)) for row in rows])
    return timing.finish(summary(rows), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
