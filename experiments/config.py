"""The configuration schema: every setting, its type, its default and what it means.

Plain dataclasses without torch, so that ``--help`` answers at once. The string under a field is its help text.
Reading, merging and checking live in ``experiments/loader.py`` and ``experiments/rules.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

METHODS = ("nado", "dinado_hard", "dinado_soft", "dinado_merge", "sft")


@dataclass
class BaseConfig:
    """The pretrained language model p(y|c)."""

    name: str = "smollm2-135m-instruct"
    """Hub name, local path, or `smollm2-135m-instruct` (installed from its PyPI wheel, no hub needed)."""
    run: str | None = None
    """An earlier run (runs/<experiment>/<id>) whose trained model becomes the base; overrides `base.name`."""
    revision: str | None = None
    """Hub revision."""
    temperature: float = 1.0
    """Temperature that is part of the base distribution: p = softmax(logits / temperature)."""
    chat_template: bool = True
    """Wrap prompts in the tokenizer's chat template, when it has one."""
    system_prompt: str | None = None
    """System message of the chat template; null keeps the template's own default."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Storage type of the frozen weights; reductions over the vocabulary are float32 whatever it is."""


@dataclass
class TaskConfig:
    """Prompts, references and the oracle that comes with them."""

    name: Literal["exact_world", "exact_gpt2", "commongen", "jsonl", "brief"] = "brief"
    """Which task; the other keys of this section say which tasks they belong to."""
    vocab_size: int = 12
    """exact_world, exact_gpt2: number of tokens, the end-of-sequence token (id 0) included."""
    length: int = 10
    """exact_world, exact_gpt2: maximum number of tokens in a response."""
    required: list[int] = field(default_factory=lambda: [3, 7])
    """exact_world, exact_gpt2: tokens that must all occur."""
    avoided: list[int] = field(default_factory=list)
    """exact_world, exact_gpt2: tokens that must not occur."""
    ends_with: int | None = None
    """exact_world, exact_gpt2: token that must come last (before the end of sequence)."""
    seed: int = 0
    """exact_world, exact_gpt2: seed of the random base model."""
    rarity: float = 0.0
    """exact_world: added to the base logits of the required tokens; negative makes the oracle rarer."""
    path: str | None = None
    """jsonl, commongen: file of prompts, one object a line; or, for commongen, the folder with train.jsonl and
    dev.jsonl, where null looks in `data.root`."""
    val_path: str | None = None
    """jsonl: file of held-out prompts; null holds out the last `data.val_prompts` of `task.path`."""
    prompt_field: str = "prompt"
    """jsonl: field that holds the prompt."""
    references_field: str = "references"
    """jsonl: field that holds a list of reference texts, if any."""
    template: str = "Write one short sentence that uses all of these words: {words}."
    """commongen: request made of a concept set; `{words}` is replaced by the concepts."""
    num_concepts: int = 3
    """commongen: keep sets of this many concepts; 0 keeps all."""


@dataclass
class OracleConfig:
    """What judges a finished text."""

    name: Literal["task", "lexical", "regex", "length", "user"] = "task"
    """`task` takes the oracle that the task brings; the others replace it."""
    function: str | None = None
    """user: importable `module:callable`, a function (prompts, texts) -> scores in [0, 1] or an Oracle."""
    pattern: str | None = None
    """regex: pattern searched in the text."""
    ignore_case: bool = True
    """regex: match without regard to case."""
    words: list[str] = field(default_factory=list)
    """lexical: words that must all occur, in any inflection; empty takes the prompt's `concepts`."""
    min_words: int = 0
    """length: fewest words allowed."""
    max_words: int | None = None
    """length: most words allowed."""
    negate: bool = False
    """Train for the opposite of the oracle."""


@dataclass
class DataConfig:
    """Where data lies and how much of it is used."""

    root: str | None = None
    """Data root; null reads the environment variable DINADO_DATA."""
    cache: str = "cache"
    """Folder for converted models and rollout stores."""
    states: Literal["auto", "off", "float32", "bfloat16", "float16"] = "auto"
    """Keep the frozen base's hidden states with the rollouts, in this type, so that training need not run the base.
    `auto` keeps them in float32 where training reads each of them more than twice and they fit the limit."""
    states_limit_gb: float = 4.0
    """Most disk space, in GB, that the states of one run may take."""
    train_prompts: int = 160
    """Prompts whose rollouts are trained on; 0 takes all."""
    val_prompts: int = 48
    """Held-out prompts used for every `val/` number; 0 takes all."""


@dataclass
class RolloutConfig:
    """What is drawn, in how many rounds, into an on-disk store (docs/rollouts.md)."""

    per_prompt: int = 16
    """K, rollouts drawn for each prompt, over all rounds."""
    rounds: int = 1
    """Rounds of sampling, spread evenly over the optimiser steps: the first draws from the base, every later one from
    the model trained so far, and from the base too. Needs `targets.weights=balance` (or `importance`)."""
    until: float = 1.0
    """Share of the optimiser steps over which the rounds are spread; the steps after it see all rollouts."""
    base_share: float = 0.25
    """Share of the base in the rounds after the first; 0 draws from the model alone, 1 from the base alone."""
    budget: Literal["even", "needed"] = "even"
    """Rollouts of a prompt in the rounds after the first: as many for each, or more where few were accepted."""
    budget_cap: float = 4.0
    """`needed`: no prompt gets more than this many times the even share."""
    max_new_tokens: int = 28
    """Budget of a response; one that has not ended by then counts as truncated."""
    temperature: float = 1.0
    """Proposal temperature on top of `base.temperature`; above 1 flattens, and needs `targets.weights` to make up for
    it."""
    source: Literal["sample", "beam"] = "sample"
    """Draw rollouts, or take the `per_prompt` likeliest ones of a beam search (needs `targets.weights=likelihood`)."""
    top_k: int = 0
    """Truncate the proposal to the k likeliest tokens; 0 is off."""
    top_p: float = 1.0
    """Truncate the proposal to the smallest set of this mass; 1 is off."""
    truncated: Literal["fail", "score", "drop"] = "fail"
    """Responses cut off by the budget: `fail` scores them 0, `score` lets the oracle judge them as they are, `drop`
    leaves them out."""
    block_size: int = 8
    """Prompts that are sampled and stored together, the unit of resuming; the texts do not depend on it."""
    seed: int = 0
    """Seed of the rollouts, separate from the training seed so that seeds can share a store."""


@dataclass
class TargetConfig:
    """How stored rollouts become training targets."""

    weights: Literal["uniform", "importance", "likelihood", "balance"] = "uniform"
    """What a rollout counts for, self-normalised per prompt: `importance` is p / s with its own proposal s, `balance` p
    over the mixture of all proposals so far, `likelihood` p itself over distinct responses."""
    complement: bool = False
    """`likelihood`: half of a prompt's rollouts stand for everything that is not among the other half."""
    smoothing: Literal["none", "pareto"] = "none"
    """`pareto` replaces the largest weights of a prompt by what a fitted tail expects of them."""
    clip: float = 10.0
    """Largest weight, relative to the mean of its prompt; 0 never clips."""
    root: Literal["learned", "store"] = "learned"
    """Success rate of a prompt, R(c): learned by the norm head, or known from the prompt's own K rollouts."""
    candidates: int = 16
    """For objective.lookahead: the base's likeliest tokens that are looked into at each position."""
    positives_share: float = 0.0
    """Share of accepted rollouts in every optimiser step, reweighted so that the loss keeps its expectation; 0 takes
    rollouts as they come. Helps where the oracle is rare."""


@dataclass
class ObjectiveConfig:
    """The loss over per-token statistics (docs/methods.md)."""

    token_ce: float = 1.0
    """Weight of the cross entropy at every response token (NADO, equation 8)."""
    terminal_ce: float = 0.0
    """Weight of the cross entropy at the last token only (the published DiNADO loss has 1 here, 0 above)."""
    value_ce: float = 0.0
    """Weight of the cross entropy of V, the value before each token. With norm=mean it trains the norm head alone."""
    regulariser: float = 0.5
    """Weight of forward consistency, summed over tokens."""
    direction: Literal["expected_first", "predicted_first"] = "expected_first"
    """f_KL(E || R) or f_KL(R || E), E being the base's expectation of the next R."""
    detach: Literal["none", "expected", "predicted", "values"] = "none"
    """What in the regulariser gets no gradient: one of its sides, or `values`, which leaves it to the ratios alone."""
    consistency: Literal["bernoulli", "poisson"] = "bernoulli"
    """Divergence of the regulariser: f_KL of Bernoulli means, or the generalised KL divergence of Poisson means."""
    norm: Literal["linf", "mean"] = "linf"
    """Soft, Merge: what the norm head predicts, the largest R over next tokens or its mean under p."""
    norm_input: Literal["base", "policy"] = "base"
    """Whose states the norm head reads (dinado_merge, and the root of dinado_hard): the frozen base's, as published, or
    the policy's as it stands, without gradient, which saves a pass of the base."""
    norm_taps: list[float] = field(default_factory=lambda: [1.0])
    """Depths that the norm head reads (dinado_merge, and the root of dinado_hard), as fractions: 0 the token
    embeddings, 1 the last layer."""
    support: int = 0
    """Soft, Merge: L-infinity norm over this many likeliest tokens only; 0 is the whole vocabulary."""
    overflow: float = 1.0
    """Weight of relu(log R)^2, which keeps an unbounded R below 1 (Hard, and the mean norm)."""
    path: float = 0.0
    """Weight of the same cross entropies on the telescoped value R(c) prod q/p: the ratios, not the norm alone, then
    have to explain the oracle (nado, dinado_soft, dinado_merge; dinado_hard is nothing else)."""
    path_loss: Literal["bernoulli", "poisson"] = "bernoulli"
    """Loss of the telescoped value (dinado_hard, and `objective.path`), which is not bounded by 1: `bernoulli` is the
    cross entropy with an overflow penalty, `poisson` the generalised KL divergence with slope R - C."""
    lookahead: float = 0.0
    """Weight of KL(target || q) at every prefix, with the target p U^sharpness: U is the value of the beginning that
    each likely token would make, estimated from the oracle's `progress` (docs/methods.md). A prefix counts by its own U
    over the mean of all."""
    sharpness: float = 1.0
    """Power of U in the lookahead target; more than 1 makes up for values that see only part of what decides."""
    floor: float = 0.0
    """What certain failure counts for in the lookahead target, U = floor + (1 - floor) R; above 0 keeps q from paying
    any price to avoid it."""
    masks: Literal["correct", "official"] = "correct"
    """`official` repeats the index arithmetic of the published code: no first token, no end-of-sequence."""


@dataclass
class NetworkConfig:
    """The oracle network: a small causal transformer on the base's hidden states (nado, dinado_soft, dinado_hard)."""

    layers: int = 2
    """Transformer layers."""
    width: int = 256
    """Hidden width."""
    heads: int = 4
    """Attention heads."""
    taps: list[float] = field(default_factory=lambda: [1.0])
    """Depths of the base that are read, as fractions: 0 the token embeddings, 1 the last layer."""
    head: Literal["free", "tied"] = "free"
    """Vocabulary head: a matrix of its own, or the base's output embeddings behind a learned projection."""
    pointer: bool = False
    """Let it raise or lower the tokens of the prompt and of the text so far, and their neighbours (tied head only)."""


@dataclass
class LoraConfig:
    """Low-rank adapters on the base (dinado_merge, sft, and dinado_hard with `parameters=lora`)."""

    r: int = 16
    """Rank."""
    alpha: float = 32.0
    """Scale; the update is alpha / r * B A."""
    dropout: float = 0.0
    """Dropout on the adapter's input."""
    targets: str | list[str] = "all-linear"
    """Module names to adapt, or `all-linear`."""


@dataclass
class OptimConfig:
    """Optimiser, schedule and batch."""

    lr: float = 1e-3
    """Peak learning rate."""
    norm_lr: float | None = None
    """Learning rate of the norm head; null uses `optim.lr`."""
    norm_steps: int = 0
    """Steps in which the norm head alone learns, from states of the frozen base, before any ratio moves; not counted in
    `optim.steps` (dinado_merge; in dinado_soft the body of the network learns with it)."""
    weight_decay: float = 0.01
    """AdamW weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    warmup: float = 0.05
    """Share of the steps over which the rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """What the rate does after the warm-up."""
    batch_size: int = 64
    """Rollouts in an optimiser step, over all processes and accumulated micro-batches."""
    micro_batch: int | None = None
    """Rollouts in one forward pass of one process; null is `batch_size / devices`."""
    batch_tokens: int | None = None
    """Response tokens in an optimiser step, in place of `batch_size` rollouts; of long responses it then holds few."""
    micro_tokens: int | None = None
    """With `batch_tokens`: about how many of them one forward pass of one process may hold; null is all it has."""
    rows_per_prompt: int = 8
    """Rollouts of one prompt that travel together, so that the prompt is encoded once."""
    steps: int = 800
    """Optimiser steps."""
    clip_norm: float = 1.0
    """Gradient norm above which gradients are scaled down; 0 is off."""


@dataclass
class TrainerConfig:
    """Lightning's Trainer."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Hardware."""
    devices: int = 1
    """Processes on each node."""
    num_nodes: int = 1
    """Nodes."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Arithmetic of the networks; losses are float32 whatever it is."""
    compile: bool = False
    """Compile the layers of base and network with torch.compile; the first steps wait for that."""
    checkpointing: bool = False
    """Compute the layers of a policy again in the backward pass instead of keeping what happens inside them."""
    shard_base: bool = False
    """Leave each process of a node a part of every layer of the base, which come together one at a time (FSDP2): for a
    base that does not fit one GPU."""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """Write where the time of training goes to `fit-profile.txt` in the run folder; `pytorch` adds a trace."""
    val_every: int = 200
    """Optimiser steps between validations; 0 validates only at the end."""
    log_every: int = 10
    """Optimiser steps between logged training numbers."""
    checkpoint_every: int = 200
    """Optimiser steps between checkpoints (`last.ckpt`)."""
    progress: bool = True
    """Progress bars."""


@dataclass
class EvalConfig:
    """What is measured, during training and at the end."""

    samples_per_prompt: int = 8
    """Controlled samples for each held-out prompt."""
    rollouts_per_prompt: int = 16
    """Held-out base rollouts for each prompt, from which KL to the optimum is estimated."""
    best_of: int = 8
    """n of the best-of-n reference row; 0 leaves it out."""
    text_metrics: bool = True
    """BLEU-4, ROUGE-L and CIDEr where the task has references."""
    show: int = 6
    """Sample texts shown before and after."""
    exact_samples: int = 2000
    """Exact worlds: sequences drawn from q* for the Monte-Carlo average of KL(q*||q)."""


@dataclass
class LoggingConfig:
    """Where numbers go besides metrics.jsonl (docs/logging.md)."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; `offline` needs no account. WANDB_MODE=offline|online|disabled overrides it."""
    project: str | None = None
    """W&B project; null takes WANDB_PROJECT, else `dinado`."""
    group: str | None = None
    """W&B group; null takes WANDB_RUN_GROUP, else the experiment, the method and what was set besides its file, but no
    seed."""
    name: str | None = None
    """W&B run name; null takes WANDB_NAME, else the method, what was set besides the experiment's file, the seed."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""
    artifacts: list[str] = field(default_factory=list)
    """What W&B keeps besides numbers, any of `checkpoints` (the last one, uploaded when the run has finished) and
    `rollouts` (by reference: where they lie and their checksums, no content)."""
    tensorboard: bool = False
    """TensorBoard event files in `tensorboard/` of the run folder."""
    csv: bool = False
    """The numbers of metrics.jsonl as a table, `csv/metrics.csv` in the run folder."""


@dataclass
class Config:
    """One experiment."""

    description: str = ""
    """One line, shown in the list of experiments."""
    method: Literal["nado", "dinado_hard", "dinado_soft", "dinado_merge", "sft"] = "dinado_merge"
    """How scores become log R."""
    parameters: Literal["auto", "network", "lora", "full"] = "auto"
    """What is trained: an oracle network beside the base, adapters in it, or all its weights. `auto`: network for
    nado, dinado_soft and dinado_hard, lora for dinado_merge and sft; network for all on the exact world."""
    sft_data: Literal["positives", "references"] = "positives"
    """sft: imitate the rollouts that the oracle accepted, or the task's references."""
    seed: int = 0
    """Seed of initialisation and batch order."""
    alpha: float = 1.0
    """Control strength when decoding, p * R^alpha."""
    runs: str = "runs"
    """Folder that holds the runs."""
    base: BaseConfig = field(default_factory=BaseConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    oracle: OracleConfig = field(default_factory=OracleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
