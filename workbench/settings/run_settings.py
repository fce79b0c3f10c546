"""The settings of the sections ``optim``, ``trainer``, ``eval`` and ``logging``: execution and measurement of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.settings import conditions as when
from workbench.settings.fields import BELOW_ONE, FRACTION, NOT_NEGATIVE, POSITIVE, setting
from workbench.settings.optimiser_table import OPTIMISERS

MEASURED = "the evaluation"


@dataclass
class OptimConfig:
    """Optimiser, schedule and batch."""

    name: str = setting("adamw", "Optimiser.", choices=tuple(OPTIMISERS))
    lr: float = setting(1e-3, "Peak learning rate.", POSITIVE)
    norm_lr: float | None = setting(
        None, "Learning rate of the norm head; null uses `optim.lr`.", POSITIVE, unread=when.no_norm_head
    )
    norm_steps: int = setting(
        0,
        """Steps in which the norm head alone is trained, on states of the frozen base, before any ratio moves; not
        counted in `optim.steps` (dinado_merge; in dinado_soft the body of the network is trained with it).""",
        NOT_NEGATIVE,
        unread=when.no_norm_steps,
    )
    weight_decay: float = setting(0.01, "Weight decay, on matrices only.", NOT_NEGATIVE)
    betas: tuple[float, float] = setting((0.9, 0.95), "AdamW betas.", BELOW_ONE)
    warmup: float = setting(0.05, "Share of the steps over which the learning rate rises from 0.", FRACTION)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "cosine", "What the learning rate does after the warm-up."
    )
    batch_size: int = setting(
        64, "Rollouts in an optimiser step, over all processes and accumulated micro-batches.", POSITIVE
    )
    micro_batch: int | None = setting(
        None,
        "Rollouts in one forward pass of one process; null is `batch_size / devices`.",
        POSITIVE,
        role="execution",
    )
    batch_tokens: int | None = setting(
        None,
        "Response tokens in an optimiser step, in place of `batch_size` rollouts; of long responses it then holds few.",
        POSITIVE,
    )
    micro_tokens: int | None = setting(
        None,
        """With `batch_tokens`: about how many of them one forward pass of one process may hold; null is all it
        has.""",
        POSITIVE,
        role="execution",
    )
    rows_per_prompt: int = setting(
        8, "Rollouts of one prompt that travel together, so that the prompt is encoded once.", POSITIVE
    )
    steps: int = setting(800, "Optimiser steps.", POSITIVE)
    clip_norm: float = setting(1.0, "Gradient norm above which gradients are scaled down; 0 is off.", NOT_NEGATIVE)


@dataclass
class TrainerConfig:
    """Lightning's Trainer."""

    accelerator: Literal["auto", "cpu", "gpu"] = setting("auto", "Hardware.")
    devices: int = setting(1, "Processes on each node.", POSITIVE)
    num_nodes: int = setting(1, "Nodes.", POSITIVE)
    backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto",
        """How processes talk to each other: auto is nccl on GPUs and gloo on CPUs. With gloo several processes may
        share a GPU, to try a run of several on a machine with one.""",
    )
    precision: Literal["32-true", "bf16-mixed"] = setting(
        "32-true", "Arithmetic of the networks; losses are float32 whatever it is.", role="outcome"
    )
    compile: bool = setting(
        False, "Compile the layers of base and network with torch.compile; the first steps wait for that."
    )
    checkpointing: bool = setting(
        False,
        "Recompute the layers of a policy in the backward pass instead of keeping their activations.",
        unread=when.no_policy,
    )
    shard_base: bool = setting(
        False,
        """Shard every layer of the frozen base over the processes of a node and gather one layer at a time (FSDP2):
        for a base that does not fit one GPU.""",
    )
    profiler: Literal["simple", "advanced", "pytorch"] | None = setting(
        None, "Write a profile of training to `fit-profile.txt` in the run folder; `pytorch` adds a trace."
    )
    val_every: int = setting(200, "Optimiser steps between validations; 0 validates only at the end.", NOT_NEGATIVE)
    log_every: int = setting(10, "Optimiser steps between logged training numbers.", POSITIVE)
    checkpoint_every: int = setting(200, "Optimiser steps between checkpoints (`last.ckpt`).", POSITIVE)
    keep_best: bool = setting(
        False,
        """End with the weights of the validation with the smallest KL(q*||q), in `checkpoints/best/`, and sample later
        rounds from the nearest model so far: it stops where training begins to memorise. Needs `trainer.val_every`.""",
        role="outcome",
    )
    progress: bool = setting(True, "Progress bars.")


@dataclass
class EvalConfig:
    """What is measured, during training and at the end."""

    samples_per_prompt: int = setting(
        8, "Controlled samples for each held-out prompt.", POSITIVE, role="target", agree=MEASURED
    )
    rollouts_per_prompt: int = setting(
        16,
        "Held-out base rollouts for each prompt, from which KL to the optimum is estimated.",
        POSITIVE,
        role="target",
        agree=MEASURED,
    )
    max_rollouts: int = setting(
        256,
        """Most held-out rollouts of a prompt: one without an accepted rollout gets more, on to the first accepted one,
        so that KL to the optimum has no bias (docs/methods.md). At most `rollouts_per_prompt` adds none.""",
        POSITIVE,
        role="target",
        agree=MEASURED,
    )
    best_of: int = setting(8, "n of the best-of-n reference row; 0 leaves it out.", NOT_NEGATIVE)
    text_metrics: bool = setting(
        True, "BLEU-4, ROUGE-L and CIDEr where the task has references.", role="target", agree=MEASURED
    )
    show: int = setting(6, "Sample texts shown before and after.", NOT_NEGATIVE)
    exact_samples: int = setting(
        2000,
        "Exact worlds: sequences drawn from q* for the Monte-Carlo average of KL(q*||q).",
        POSITIVE,
        role="target",
        agree=MEASURED,
    )


@dataclass
class LoggingConfig:
    """Where numbers go besides metrics.jsonl (docs/logging.md)."""

    wandb: Literal["off", "offline", "online"] = setting(
        "off", "Weights & Biases; `offline` needs no account. WANDB_MODE=offline|online|disabled overrides it."
    )
    project: str | None = setting(None, "W&B project; null takes WANDB_PROJECT, else `dinado`.", unread=when.wandb_off)
    group: str | None = setting(
        None,
        """W&B group; null takes WANDB_RUN_GROUP, else the experiment, the method and what was set besides its file,
        but no seed.""",
        unread=when.wandb_off,
    )
    name: str | None = setting(
        None,
        """W&B run name; null takes WANDB_NAME, else the method, what was set besides the experiment's file, the
        seed.""",
        unread=when.wandb_off,
    )
    tags: list[str] = setting([], "W&B tags.", unread=when.wandb_off)
    artifacts: list[str] = setting(
        [],
        """What W&B keeps besides numbers, any of `checkpoints` (the last one, uploaded when the run has finished) and
        `rollouts` (by reference: where they lie and their checksums, no content).""",
        unread=when.wandb_off,
    )
    tensorboard: bool = setting(False, "TensorBoard event files in `tensorboard/` of the run folder.")
    csv: bool = setting(False, "The numbers of metrics.jsonl as a table, `csv/metrics.csv` in the run folder.")
