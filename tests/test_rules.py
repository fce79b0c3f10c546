"""Every rule across settings: what is refused, what is accepted, and what is quietly put aside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dinado.errors import ConfigError
from workbench.settings import derived, loader, schema
from workbench.settings.parameterisations import PARAMETERISATIONS

POLICIES = " or ".join(row.name for row in PARAMETERISATIONS.values() if row.policy)
PLAIN = str(Path(__file__).parent / "experiments" / "plain.yaml")


def fails(experiment: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loader.load(experiment, overrides)
    return str(caught.value)


VALID = [
    (PLAIN, "method=dinado_soft"),
    (PLAIN, "method=dinado_hard parameters=lora lora.r=4"),
    (PLAIN, "method=dinado_hard network.width=64"),
    (PLAIN, "method=sft sft_data=references lora.r=4"),
    (PLAIN, "rollouts.top_p=0.9 targets.weights=importance targets.clip=5"),
    (PLAIN, "method=dinado_merge objective.norm.kind=mean"),
    (PLAIN, "parameters=full"),
    (PLAIN, "objective.norm.kind=mean objective.oracle.overflow=2"),
    (PLAIN, "objective.norm.kind=linf objective.norm.support=50 objective.oracle.overflow=2"),
    (PLAIN, "method=dinado_hard objective.oracle.overflow=2 targets.root=store"),
    ("quickstart", "method=dinado_soft"),
    ("commongen_smollm2", "method=nado"),
    (PLAIN, "trainer.devices=2 optim.micro_batch=16"),
    (PLAIN, "trainer.devices=2 trainer.shard_base=true"),
    (PLAIN, "oracle.name=user oracle.function=my.module:score"),
    (PLAIN, "oracle.name=regex oracle.pattern=a+$"),
    (PLAIN, "oracle.name=length oracle.max_words=3"),
    (PLAIN, "oracle.name=lexical oracle.words=[sun]"),
    (PLAIN, "task.name=jsonl task.path=a.jsonl task.val_path=b.jsonl"),
    (PLAIN, "task.name=commongen task.path=folder"),
    (PLAIN, "base.run=runs/a/b"),
    (PLAIN, "task.name=exact_gpt2 task.ends_with=3"),
    ("exact_world", "method=dinado_merge network.layers=1"),
    ("exact_world", "method=sft"),
    ("exact_world", "task.rarity=-2 oracle.negate=true"),
]
INVALID = [
    # keys of another task or oracle
    (PLAIN, "task.vocab_size=12", "command line: task.vocab_size=12: ignored by task.name=brief, it"),
    ("exact_world", "task.path=a", "belongs to jsonl, commongen"),
    ("exact_world", "task.name=exact_gpt2 task.rarity=1", "task.rarity=1.0: ignored by task.name=exact_gpt2"),
    (PLAIN, "oracle.pattern=a", "ignored by oracle.name=task, it belongs to regex"),
    (PLAIN, "oracle.name=regex oracle.pattern=a oracle.words=[b]", "ignored by oracle.name=regex"),
    # a base in parts
    (PLAIN, "trainer.shard_base=true", "trainer.devices=1 leaves nobody to share the base with"),
    (PLAIN, "trainer.devices=2 trainer.shard_base=true parameters=full", "only what is frozen is shared out; use lora"),
    (PLAIN, "trainer.devices=2 trainer.shard_base=true trainer.compile=true", "set trainer.compile=false"),
    ("exact_gpt2", "trainer.devices=2 trainer.shard_base=true", "fits anywhere; leave it out"),
    # settings the method does not read
    (PLAIN, "method=sft data.states=float32", "ignored, training never runs the frozen base here"),
    (PLAIN, "method=nado trainer.checkpointing=true", "ignored, it belongs to policies"),
    (PLAIN, "optim.batch_tokens=100 optim.micro_batch=4", "counts rollouts, and optim.batch_tokens is set"),
    (PLAIN, "optim.micro_tokens=100", "belongs to optim.batch_tokens, which is null"),
    (PLAIN, "sft_data=references", "sft_data=references: ignored, it belongs to method=sft"),
    (PLAIN, "method=sft objective.consistency.weight=1", "objective.consistency.weight=1.0: ignored"),
    (PLAIN, "method=nado objective.norm.kind=mean", "belongs to dinado_soft, dinado_merge, dinado_hard"),
    (PLAIN, "method=dinado_hard objective.norm.support=5", "belongs to dinado_soft, dinado_merge"),
    (PLAIN, "objective.consistency.weight=0 objective.consistency.direction=predicted_first",
     "objective.consistency.weight is 0"),
    (PLAIN, "objective.consistency.weight=0 objective.consistency.detach=expected",
     "objective.consistency.weight is 0"),
    (PLAIN, "objective.norm.kind=linf objective.oracle.overflow=2", "log R cannot rise above 0"),
    (PLAIN, "method=nado objective.oracle.overflow=2", "log R cannot rise above 0"),
    (PLAIN, "method=nado targets.root=store", "targets.root=store: ignored, nado has no norm"),
    (PLAIN, "method=sft targets.root=store", "sft has no norm"),
    (PLAIN, "method=dinado_hard objective.consistency.weight=1",
     "ignored, dinado_hard is forward-consistent by construction"),
    (PLAIN, "method=dinado_hard objective.consistency.detach=expected", "ignored, dinado_hard is forward-consistent"),
    (PLAIN, "method=dinado_hard objective.path.weight=1",
     "objective.path.weight=1.0: ignored, its values are the telescoped ones"),
    (PLAIN, "method=dinado_hard optim.norm_steps=5",
     "optim.norm_steps=5: ignored, it belongs to dinado_soft, dinado_merge, where"),
    (PLAIN, "method=nado objective.norm.taps=[0.5]", "objective.norm.taps=[0.5]: ignored, it belongs to dinado_soft"),
    (PLAIN, "method=dinado_soft objective.norm.input=policy", "objective.norm.input=policy: ignored, no norm head"),
    (PLAIN, "method=dinado_hard targets.root=store objective.norm.taps=[0.5]", "ignored, no norm head reads the base"),
    (PLAIN, "method=dinado_merge objective.path.loss=poisson", "ignored, it belongs to dinado_hard, and to objective"),
    (PLAIN, "method=dinado_merge objective.consistency.weight=0 objective.consistency.divergence=poisson",
     "objective.consistency.weight is 0"),
    (PLAIN, "method=dinado_merge objective.norm.taps=[2]", "objective.norm.taps=[2.0]: must be from 0 to 1"),
    (PLAIN, "method=dinado_merge objective.norm.taps=[]", "objective.norm.taps=[]: the norm head needs at least one"),
    (PLAIN, "network.width=64", "network.width=64: ignored, lora is trained"),
    (PLAIN, "parameters=full lora.r=4", "lora.r=4: ignored, full is trained"),
    (PLAIN, "method=nado lora.r=4", "lora.r=4: ignored, network is trained"),
    ("exact_world", "method=dinado_merge lora.r=4", "lora.r=4: ignored, network is trained"),
    (PLAIN, "targets.clip=3", "targets.weights=uniform has nothing to clip"),
    (PLAIN, "objective.lookahead.floor=0.2", "ignored, objective.lookahead.weight is 0"),
    (PLAIN, "objective.lookahead.sharpness=2", "ignored, objective.lookahead.weight is 0"),
    (PLAIN, "objective.lookahead.candidates=8", "ignored, objective.lookahead.weight is 0"),
    (PLAIN, "method=sft objective.lookahead.weight=1", "method=sft has a loss of its own"),
    (PLAIN, "objective.lookahead.weight=1 objective.lookahead.floor=1", "must be at least 0 and below 1"),
    (PLAIN, "objective.lookahead.weight=1 objective.lookahead.candidates=0", "must be above 0"),
    ("exact_world", "base.name=gpt2", "task.name=exact_world brings its own base"),
    (PLAIN, "base.name=gpt2 base.run=runs/a/b", "ignored, base.run replaces it"),
    (PLAIN, "base.run=runs/a/b base.dtype=bfloat16", "base.dtype=bfloat16: ignored, base.run brings its own"),
    (PLAIN, "base.run=runs/a/b base.temperature=1.0", "base.temperature=1.0: ignored, at 1 the temperature"),
    ("exact_world", "base.run=runs/a/b", "base.run=runs/a/b: ignored, task.name=exact_world brings its own base"),
    (PLAIN, "method=nado optim.norm_lr=1e-3", "optim.norm_lr=0.001: ignored, there is no norm head"),
    # parameters
    (PLAIN, "method=nado parameters=lora", "parameters=lora: nado; use network or auto"),
    (PLAIN, "method=dinado_soft parameters=full", "use network or auto"),
    (PLAIN, "parameters=network", f"parameters=network: dinado_merge; use {POLICIES} or auto"),
    (PLAIN, "method=sft parameters=network", f"use {POLICIES} or auto"),
    ("exact_world", "method=dinado_merge parameters=lora", "no weights to adapt; use network or auto"),
    # proposal
    (PLAIN, "rollouts.temperature=1.2", "rollouts.temperature=1.2: the proposal is not the base"),
    (PLAIN, "rollouts.rounds=3", "rollouts.rounds=3: the proposal is not the base, so set targets.weights=balance"),
    (PLAIN, "rollouts.rounds=0 targets.weights=balance", "rollouts.rounds=0: must be above 0"),
    (PLAIN, "rollouts.rounds=3 targets.weights=likelihood", "likelihood belongs to one round"),
    (PLAIN, "rollouts.rounds=9 targets.weights=balance", "rollouts.per_prompt=16: a round has to have 2 rollouts"),
    (PLAIN, "rollouts.rounds=3 targets.weights=balance optim.steps=2", "rollouts.rounds=3: more than optim.steps=2"),
    (PLAIN, "rollouts.base_share=0.5", "rollouts.base_share=0.5: ignored, rollouts.rounds=1 has no later round"),
    (PLAIN, "rollouts.budget=needed", "rollouts.budget=needed: ignored, rollouts.rounds=1"),
    (PLAIN, "rollouts.rounds=2 targets.weights=balance rollouts.budget_cap=2", "it belongs to rollouts.budget=needed"),
    (PLAIN, "rollouts.base_share=1.5", "rollouts.base_share=1.5: must be from 0 to 1"),
    (
        PLAIN,
        "method=sft sft_data=references rollouts.rounds=2 targets.weights=balance",
        "sft_data=references samples nothing to train on",
    ),
    (PLAIN, "rollouts.source=beam", "a search draws nothing, so set targets.weights=likelihood"),
    (PLAIN, "rollouts.source=beam targets.weights=likelihood rollouts.until=0.5", "rounds=1 has no later round"),
    (PLAIN, "rollouts.source=beam targets.weights=likelihood rollouts.top_k=3", "ignored by rollouts.source=beam"),
    (PLAIN, "rollouts.source=beam targets.weights=likelihood targets.complement=true", "needs draws from the base"),
    (PLAIN, "targets.complement=true", "targets.complement=true: belongs to targets.weights=likelihood"),
    (
        PLAIN,
        "targets.weights=likelihood targets.complement=true rollouts.top_k=9",
        "rollouts.top_k=9: targets.complement needs rollouts from the base",
    ),
    (PLAIN, "targets.smoothing=pareto", "targets.weights=uniform has nothing to smooth"),
    (PLAIN, "rollouts.top_k=50", "set targets.weights=importance"),
    (PLAIN, "rollouts.top_p=0.9", "set targets.weights=importance"),
    # objective and network
    (PLAIN, "objective.oracle.token_ce=0", "objective.oracle.terminal_ce is 0 too"),
    (PLAIN, "objective.norm.kind=mean objective.norm.support=5", "ignored by objective.norm.kind=mean"),
    ("exact_world", "network.width=30", "not divisible by network.heads=4"),
    ("exact_world", "network.taps=[]", "at least one layer"),
    # batch
    (PLAIN, "trainer.devices=3 optim.batch_size=64", "optim.batch_size=64: not divisible by trainer.devices=3"),
    (PLAIN, "optim.batch_size=64 trainer.devices=2 trainer.num_nodes=2 optim.micro_batch=32",
     "optim.micro_batch=32"),
    # task
    ("exact_world", "task.vocab_size=7 task.required=[7]", "task.required=[7]: outside task.vocab_size=7"),
    ("exact_world", "task.avoided=[12]", "outside task.vocab_size=12"),
    ("exact_world", "task.ends_with=12", "outside task.vocab_size=12"),
    ("exact_world", "task.required=[0]", "not the end of sequence"),
    ("exact_world", "task.ends_with=0", "not the end of sequence"),
    ("exact_world", "task.avoided=[3]", "token 3 is also required"),
    ("exact_world", "task.avoided=[5] task.ends_with=5", "token 5 is also required"),
    ("exact_world", "task.length=2 task.ends_with=5", "too short for 3 required tokens"),
    (PLAIN, "task.name=jsonl", "needs task.path"),
    (PLAIN, "task.name=commongen task.template=hello", "has no {words}"),
    # oracle
    ("exact_world", "oracle.name=length oracle.min_words=1", "use oracle.name=task"),
    (PLAIN, "oracle.name=user", "oracle.function=null: oracle.name=user needs an importable module:callable"),
    (PLAIN, "oracle.name=user oracle.function=score", "needs an importable module:callable"),
    (PLAIN, "oracle.name=regex", "needs oracle.pattern"),
    (PLAIN, "oracle.name=regex oracle.pattern=(", "not a regular expression"),
    (PLAIN, "oracle.name=length", "needs oracle.min_words or oracle.max_words"),
    (PLAIN, "oracle.name=length oracle.min_words=3 oracle.max_words=2", "below oracle.min_words=3"),
    # ranges
    (PLAIN, "optim.steps=0", "optim.steps=0: must be above 0"),
    (PLAIN, "optim.lr=nan", "optim.lr=nan: must be above 0"),
    (PLAIN, "optim.lr=inf", "must be above 0"),
    (PLAIN, "base.temperature=0", "must be above 0"),
    (PLAIN, "alpha=-1", "must be 0 or more"),
    (PLAIN, "seed=-1", "must be from 0 to 4294967295"),
    (PLAIN, "rollouts.top_p=0", "must be above 0 and at most 1"),
    (PLAIN, "optim.warmup=1.5", "must be from 0 to 1"),
    (PLAIN, "optim.betas=[0.9,1.0]", "optim.betas=[0.9, 1.0]: must be at least 0 and below 1"),
    ("exact_world", "task.rarity=nan", "must be a finite number"),
    ("exact_world", "task.vocab_size=1", "must be 2 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("experiment", "overrides"), VALID)
def test_valid_combinations(experiment, overrides):
    loader.load(experiment, overrides.split())


@pytest.mark.parametrize(("experiment", "overrides", "message"), INVALID)
def test_invalid_combinations(experiment, overrides, message):
    assert message in fails(experiment, *overrides.split())


def test_every_number_has_a_range():
    """A numeric setting without a range would take NaN."""
    numeric = {key for key, leaf in schema.leaves().items() if re.search(r"\b(int|float)\b", leaf.type_name)}
    listed = [key for key, leaf in schema.leaves().items() if leaf.about.range is not None]
    numeric -= {key for key in numeric if schema.leaves()[key].choices}  # names of dtypes
    assert sorted(listed) == sorted(numeric)


def test_settings_of_another_choice_in_files(write):
    parent = write("task: {name: exact_world, vocab_size: 9}", "parent")
    assert "task.vocab_size=9: ignored by task.name=brief" in fails(write("task: {name: brief, vocab_size: 9}"))
    assert loader.load(write("extends: parent\ntask: {name: brief}")).config.task.vocab_size == 12
    write("task: {name: brief}", "other")
    assert "child.yaml: task.vocab_size=9" in fails(write("extends: other\ntask: {vocab_size: 9}", "child"))
    assert loader.load(parent).config.task.vocab_size == 9


def test_files_may_serve_several_methods(write):
    path = write(
        "method: dinado_merge\nnetwork: {width: 64}\nlora: {r: 4}\n"
        "objective: {norm: {kind: mean}}\nsft_data: references"
    )
    for method in ("nado", "dinado_hard", "dinado_soft", "dinado_merge", "sft"):
        config = loader.load(path, [f"method={method}"]).config
        assert (config.network.width, config.lora.r) == (64, 4)


def test_reset_settings_share_no_state(write):
    path = write("task: {name: exact_world, required: [1]}")
    first = loader.load(path, ["task.name=brief"]).config
    first.task.required.append(5)
    assert loader.load(path, ["task.name=brief"]).config.task.required == [3, 7]


@pytest.mark.parametrize(
    ("overrides", "trained"),
    [
        ("method=nado", "network"),
        ("method=dinado_hard", "network"),
        ("method=dinado_soft", "network"),
        ("method=dinado_merge", "lora"),
        ("method=sft", "lora"),
        ("method=sft parameters=full", "full"),
        ("method=dinado_merge task.name=exact_world", "network"),
        ("method=sft task.name=exact_world", "network"),
        ("method=dinado_merge task.name=exact_gpt2", "lora"),
    ],
)
def test_resolved_parameters(overrides, trained):
    assert derived.resolved_parameters(loader.load(PLAIN, overrides.split()).config) == trained


def test_settings_of_choices_name_choices_that_there_are():
    for section in ("task", "oracle"):
        inside = {key: leaf for key, leaf in schema.leaves().items() if leaf.section == section}
        choices = set(inside[f"{section}.name"].choices)
        owned = {key for key, leaf in inside.items() if leaf.about.belongs_to}
        assert owned == set(inside) - {f"{section}.name", "oracle.negate"}
        assert all(set(leaf.about.belongs_to) <= choices for leaf in inside.values())
    assert schema.leaves()["task.path"].about.belongs_to == ("jsonl", "commongen")


def test_every_setting_says_what_it_decides():
    roles = {key: leaf.role for key, leaf in schema.leaves().items()}
    assert {key for key, role in roles.items() if role == "seed"} == {"seed", "rollouts.seed"}
    decide = {"trainer.precision", "trainer.keep_best"}
    ways = [key for key in roles if key.startswith(("logging.", "trainer.")) and key not in decide]
    assert {roles[key] for key in ways} == {"execution"}
    assert {roles[key] for key in decide} == {"outcome"}
    assert roles["optim.lr"] == roles["base.dtype"] == "outcome"
    agreeing = {key for key, leaf in schema.leaves().items() if leaf.agree}
    assert {"base.name", "task.rarity", "oracle.words", "alpha", "eval.exact_samples", "data.val_prompts"} <= agreeing
    assert not {"task.path", "base.dtype", "eval.show", "seed", "optim.lr"} & agreeing
    assert all(roles[key] == "target" for key in agreeing), "only the target has to agree"


def test_old_names_are_one_line_that_names_the_new_one(write):
    renamed = schema.renamed()
    assert renamed["objective.regulariser"] == "objective.consistency.weight" and len(renamed) == 18
    assert "objective.norm=mean: this setting is now called objective.norm.kind" in fails(PLAIN, "objective.norm=mean")
    assert "this setting is now called objective.path.weight" in fails(write("objective: {path: 1.0}"))
    block = write("methods:\n  nado:\n    targets: {candidates: 4}")
    assert "methods: nado: targets.candidates: this setting is now called objective.lookahead" in fails(block)


def test_an_unknown_method_is_refused_everywhere():
    assert "expected nado | dinado_soft | dinado_merge | dinado_hard | sft" in fails(PLAIN, "method=ppo")
    config = loader.load(PLAIN).config
    config.method = "ppo"
    for ask in (derived.resolved_parameters, derived.uses_rollouts, derived.depths_read, derived.looks_ahead):
        with pytest.raises(KeyError, match="ppo"):
            ask(config)
