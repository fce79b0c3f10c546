"""The table of tasks, and the settings of the ``task`` section, without importing torch.

A task is a file in datamodules/tasks/ and a row here; settings of its own stand in :class:`TaskConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.settings.fields import FINITE, NOT_NEGATIVE, POSITIVE, SEED, VOCABULARY, WORD, setting


@dataclass(frozen=True)
class TaskKind:
    """A row of the table of tasks.

    Attributes:
        name: value of the setting ``task.name``.
        summary: one line.
        module: ``module:function`` that makes a ``TaskSource`` of the settings.
        exact: whether it is an exact world, which brings its own base and is known in closed form.
        adaptable: whether its base has weights that adapters can change.
        asks: what its own oracle asks of a text; empty for a task without one, or where the summary says it.
    """

    name: str
    summary: str
    module: str
    exact: bool = False
    adaptable: bool = True
    asks: str = ""


TOKENS = "the tokens of task.required, none of task.avoided, and task.ends_with last"

TASKS: dict[str, TaskKind] = {
    row.name: row
    for row in (
        TaskKind(
            name="exact_world",
            summary="an order-1 Markov base and an oracle over tokens, known in closed form",
            module="datamodules.tasks.exact_task:source",
            exact=True,
            adaptable=False,
            asks=TOKENS,
        ),
        TaskKind(
            name="exact_gpt2",
            summary="the same with a random GPT-2 of two layers, known by enumeration",
            module="datamodules.tasks.exact_task:source",
            exact=True,
            asks=TOKENS,
        ),
        TaskKind(
            name="commongen",
            summary="a sentence that uses all of a few given words",
            module="datamodules.tasks.commongen:source",
            asks="all of the given words, in any inflection",
        ),
        TaskKind(
            name="jsonl",
            summary="prompts from a file",
            module="datamodules.tasks.jsonl:source",
        ),
        TaskKind(
            name="brief",
            summary="one short sentence about an everyday noun; needs no data",
            module="datamodules.tasks.brief:source",
            asks="at most fifteen words, the noun among them",
        ),
    )
}

EXACT = tuple(row.name for row in TASKS.values() if row.exact)


@dataclass
class TaskConfig:
    """Prompts, references and the oracle that comes with them."""

    name: str = setting(
        "brief", "Which task; the other keys of this section say which tasks they belong to.", choices=tuple(TASKS)
    )
    vocab_size: int = setting(
        12, "Number of tokens, the end-of-sequence token (id 0) included.", VOCABULARY, belongs_to=EXACT
    )
    length: int = setting(10, "Maximum number of tokens in a response.", POSITIVE, belongs_to=EXACT)
    required: list[int] = setting([3, 7], "Tokens that must all occur.", WORD, belongs_to=EXACT)
    avoided: list[int] = setting([], "Tokens that must not occur.", WORD, belongs_to=EXACT)
    ends_with: int | None = setting(
        None, "Token that must come last (before the end of sequence).", WORD, belongs_to=EXACT
    )
    seed: int = setting(0, "Seed of the random base model.", SEED, belongs_to=EXACT, repeats=3)
    rarity: float = setting(
        0.0,
        "Number added to the base logits of the required tokens; a negative one makes the oracle rarer.",
        FINITE,
        belongs_to=("exact_world",),
    )
    path: str | None = setting(
        None,
        """File of prompts, one JSON object a line; or, for commongen, the folder with train.jsonl and dev.jsonl, where
        null looks in `data.root`.""",
        belongs_to=("jsonl", "commongen"),
        place=True,
        agree="",  # the path of a file does not determine its content
    )
    val_path: str | None = setting(
        None,
        "File of held-out prompts; null holds out the last `data.val_prompts` of `task.path`.",
        belongs_to=("jsonl",),
        place=True,
        agree="",
    )
    prompt_field: str = setting(
        "prompt",
        """Field that holds the prompt: a text, or a conversation as a list of messages with `role` and `content`. A row
        without it may hold a conversation in `messages`.""",
        belongs_to=("jsonl",),
    )
    references_field: str = setting(
        "references", "Field that holds a list of reference texts, if any.", belongs_to=("jsonl",)
    )
    completion_field: str | None = setting(
        "completion",
        """Field that holds a completion of the prompt, made by whoever; the last answer of a conversation is one too.
        Completions serve as references, for `method=sft sft_data=references`; null takes the prompts alone.""",
        belongs_to=("jsonl",),
    )
    label_field: str = setting(
        "label",
        "Field that tells whether the completion is a good one; false ones are not imitated.",
        belongs_to=("jsonl",),
    )
    template: str = setting(
        "Write one short sentence that uses all of these words: {words}.",
        "Request made of a concept set; `{words}` is replaced by the concepts.",
        belongs_to=("commongen",),
    )
    num_concepts: int = setting(
        3, "Keep sets of this many concepts; 0 keeps all.", NOT_NEGATIVE, belongs_to=("commongen",)
    )
