"""A small task on a Markov base, its data module, and batches as comparable values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from datamodules.rollout_datamodule import RolloutDataModule
from datamodules.run_stores import RunStores
from datamodules.tasks import Task
from dinado.bases.causal import BaseLM
from dinado.bases.markov import build_markov
from dinado.batch import RolloutBatch
from dinado.oracles import Oracle
from dinado.prompt import Prompt
from dinado.rollouts.collect import collect
from workbench.settings import schema
from workbench.settings.config import Config

TEXTS = ["1", "2 3", "4", "3 3 1", "2"]


class HasTwo(Oracle):
    """1 where the word 2 occurs."""

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [float("2" in text.split()) for text in texts]


def prompts(split: str) -> list[Prompt]:
    return [
        Prompt(f"{split}{i}", text, {"references": ["1 2", "2"]})
        for i, text in enumerate(TEXTS if split == "train" else TEXTS[::-1])
    ]


def markov_base() -> BaseLM:
    return BaseLM(*build_markov(5, seed=3))


def words_task() -> Task:
    return Task("brief", prompts("train"), prompts("val"), HasTwo(), has_references=True)


def make_config(cache: Path, **settings: object) -> Config:
    """Dots in a setting's name are written as two underscores."""
    config = Config()
    config.data.cache = str(cache)
    config.rollouts.per_prompt, config.rollouts.max_new_tokens, config.rollouts.block_size = 14, 6, 2
    config.eval.rollouts_per_prompt = config.eval.max_rollouts = 6
    config.optim.batch_size, config.optim.rows_per_prompt, config.optim.steps = 16, 4, 9
    for name, value in settings.items():
        schema.put(config, name.replace("__", "."), value)
    return config


def make_data(
    cache: Path, base: BaseLM, task: Task, rank: int = 0, world: int = 1, **settings: object
) -> RolloutDataModule:
    config = make_config(cache, **settings)
    for store in RunStores(config, base, task).needed():
        if not store.is_complete():
            collect(base, task.oracle, store)
    data = RolloutDataModule(config, base, task)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world)  # type: ignore[assignment]
    data.setup("fit")
    return data


def rows_of(batch: RolloutBatch) -> list[tuple]:
    """Rows of a batch as comparable values, without any padding."""
    found = []
    for row in range(batch.num_rows):
        prompt = int(batch.prompt_of_row_B[row])
        real_S, real_T = batch.prompt_mask_PS[prompt].bool(), batch.response_mask_BT[row].bool()
        found.append(
            (
                tuple(batch.prompt_ids_PS[prompt][real_S].tolist()),
                tuple(batch.response_BT[row][real_T].tolist()),
                None if batch.log_p_BT is None else tuple(batch.log_p_BT[row][real_T].tolist()),
                float(batch.score_B[row]),
                float(batch.weight_B[row]),
                float(batch.root_B[row]),
            )
        )
    return found


def expected_rows(data: RolloutDataModule, split: str = "train") -> list[tuple]:
    rows = data.rows if split == "train" else data.val_rows
    found = []
    for row in range(len(rows)):
        tokens, log_p = rows.response(row)
        text = prompts(split)[rows.prompt_index_N[row]].text
        numbers = (float(rows.score_N[row]), float(rows.weight_N[row]), float(rows.root_N[row]))
        found.append(
            (
                tuple(map(int, text.split())),
                tuple(tokens.tolist()),
                None if log_p is None else tuple(log_p.tolist()),
                *numbers,
            )
        )
    return found


def steps(data: RolloutDataModule) -> list[list[RolloutBatch]]:
    """The micro-batches of each optimiser step."""
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader())
    return [batches[i : i + data.accumulation] for i in range(0, len(batches), data.accumulation)]
