"""The model card of an exported run: what it was trained to do, what was measured, how to use it and to train it again.

A card is the ``README.md`` of an exported folder, with metadata for the Hugging Face Hub at its head.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dinado.bases.causal import BaseLM
from dinado.bases.origin import Origin, origin_of
from dinado.evaluation.measures import measure
from dinado.evaluation.result_rows import Row
from dinado.evaluation.result_table import cell
from engine.results import last_numbers
from workbench.run_folder import RunFolder, find_run
from workbench.run_status import status
from workbench.settings import schema
from workbench.settings.config import Config
from workbench.settings.derived import method_of, resolved_parameters, task_of
from workbench.settings.loaded import text
from workbench.settings.loader import from_run_folder
from workbench.settings.oracles import ORACLES, TASK

SHOWN = ("val/success", "val/kl_to_optimum", "val/gap_closed", "val/kl_from_base")
SETTINGS = "training.yaml"
"""The run's resolved settings, beside the card."""
LIBRARY = {"merged": "transformers", "adapter": "peft", "controlled": "dinado"}
RELATION = {"merged": "finetune", "adapter": "adapter", "controlled": "adapter"}
MEANING = """\
`success` is the share of samples that satisfy the oracle. `KL(q*||q)` is the distance to the optimum
`q* = p C / R`: the base `p`, restricted by the oracle `C` and otherwise unchanged. `gap closed` is the share of the
base's distance that training took away, and `KL(q||p)` is what the control cost. Both distances are in nats a text."""

PLAIN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = {name}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
{inputs}
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

name = {name}
tokenizer = AutoTokenizer.from_pretrained(name)
base = AutoModelForCausalLM.from_pretrained({place})
base.generation_config = GenerationConfig.from_pretrained(name)
model = PeftModel.from_pretrained(base, name)
{inputs}
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
CONTROLLED = """\
from dinado import ControlledLM, Prompt

model = ControlledLM.from_pretrained({name})
ids, mask = model.base.encode_prompts([Prompt("1", {prompt})])
output = model.generate(ids, attention_mask=mask, max_new_tokens={tokens})
print(model.base.decode(output[0, ids.shape[1] :].tolist()))
"""
CHAT = """\
messages = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""


def write_card(folder: Path, run: RunFolder, config: Config, base: BaseLM, kind: str, name: str) -> None:
    """Write ``README.md`` and ``training.yaml`` into an exported folder.

    Args:
        run: the run, whose final numbers the card reports.
        kind: ``merged``, ``adapter`` or ``controlled``.
        name: what ``from_pretrained`` is given: a folder, or a name on the hub.
    """
    origin, numbers = _origin(config), measured(run)
    title = f"{method_of(config).title} on {base.name.rpartition('/')[2]}"
    data = ModelCardData(
        base_model=origin.hub_name,
        library_name=LIBRARY[kind],
        pipeline_tag="text-generation",
        tags=["dinado", config.method],
        model_name=name.rpartition("/")[2],
        eval_results=list(_results(config, numbers)) or None,
        base_model_relation=RELATION[kind] if origin.hub_name else None,
        license=origin.licence.get("license"),
        license_name=origin.licence.get("license_name"),
        license_link=origin.licence.get("license_link"),
    )
    parts = [
        f"# {title}",
        "A language model that was trained to satisfy an oracle and to write as its base does otherwise.",
        *_numbers_section(config, run, numbers),
        *_usage_section(config, run, base, kind, name),
        *_training_section(config, base, origin),
        *_again_section(run),
    ]
    body = "\n\n".join(parts)
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / "README.md")
    (folder / SETTINGS).write_bytes((run.path / "config.yaml").read_bytes())


def measured(run: RunFolder) -> Row:
    """Return the final numbers of a run; empty if it has not finished, or for weights other than its last."""
    if status(run.path) != "finished" or run.trained != RunFolder(run.path).trained:
        return {}
    return last_numbers(run)


def _results(config: Config, numbers: Row) -> Iterator[EvalResult]:
    for key in SHOWN:
        if math.isfinite(value := numbers.get(key, math.nan)):
            low, high = numbers.get(f"{key}_low", math.nan), numbers.get(f"{key}_high", math.nan)
            interval = f" (95 % interval {low:.3f} to {high:.3f})" if math.isfinite(low) else ""
            yield EvalResult(
                task_type="text-generation",
                dataset_type=config.task.name,
                dataset_name=f"{config.task.name}, held-out prompts",
                metric_type=key.removeprefix("val/"),
                metric_name=f"{measure(key).label}{interval}",
                metric_value=value,
            )


def _numbers_section(config: Config, run: RunFolder, numbers: Row) -> Iterator[str]:
    yield "## Results"
    if not numbers:
        yield "These weights were not measured: the run had not finished with them."
        return
    base = {key.replace("base/", "val/"): value for key, value in numbers.items() if key.startswith("base/")}
    rows = [f"| {_label(key)} | {cell(base, key)} | {cell(numbers, key)} |" for key in SHOWN]
    yield "\n".join(["| | base | this model |", "|---|---|---|", *rows])
    prompts = len(_records(run, "held_out"))
    yield f"Measured on {prompts} held-out prompts; 95 % intervals over prompts.\n{MEANING}"


def _usage_section(config: Config, run: RunFolder, base: BaseLM, kind: str, name: str) -> Iterator[str]:
    yield "## Use"
    yield f"```python\n{snippet(config, run, base, kind, name)}```"
    if kind == "controlled":
        yield "The model's logits hold the temperature already: sample at temperature 1, without top-k or top-p."
    else:
        yield (
            f"The model is `softmax(logits / {base.temperature:g})`, without top-k or top-p, up to "
            f"{config.rollouts.max_new_tokens} tokens.\n`generation_config.json` says so; with other settings it is "
            "another distribution, and the numbers above are not its own."
        )
    if base.chat_template:
        system = "" if base.system_prompt is None else f", with the system message {json.dumps(base.system_prompt)}"
        yield f"Requests go through the chat template{system}."
    else:
        yield "Prompts are plain text, without a chat template."


def snippet(config: Config, run: RunFolder, base: BaseLM, kind: str, name: str) -> str:
    """Return a short program that samples one text."""
    samples = _records(run, "after")
    prompt = str(samples[0]["prompt"]) if samples else ""
    if kind == "controlled":
        return CONTROLLED.format(name=_quoted(name), prompt=_quoted(prompt), tokens=config.rollouts.max_new_tokens)
    if base.chat_template:
        inputs = CHAT.format(prompt=_quoted(prompt))
    else:
        start = base.tokenizer.bos_token or base.tokenizer.eos_token  # what an empty prompt is read as
        written = prompt if base.tokenizer(prompt)["input_ids"] else start
        inputs = f'inputs = tokenizer({_quoted(written)}, return_tensors="pt")'
    if kind == "merged":
        return PLAIN.format(name=_quoted(name), inputs=inputs)
    source = base.source
    assert source is not None, "bases that were made in memory have no adapter folder"
    revision = "" if source.revision is None else f", revision={_quoted(source.revision)}"
    place = f"{_quoted(source.path)}{revision}, dtype={_quoted(source.dtype)}"
    return ADAPTER.format(name=_quoted(name), place=place, inputs=inputs)


def _training_section(config: Config, base: BaseLM, origin: Origin) -> Iterator[str]:
    yield "## Training"
    method, task = method_of(config), task_of(config)
    revision = "" if config.base.revision is None else f", revision {config.base.revision}"
    licence = origin.licence.get("license")
    rounds = f" in {config.rollouts.rounds} rounds" if config.rollouts.rounds > 1 else ""
    rollouts = f"{config.rollouts.per_prompt} rollouts a prompt{rounds}"
    prompts = config.data.train_prompts or "all"
    lines = [
        f"* Base: {base.name}{revision}, temperature {base.temperature:g}{f', licence {licence}' if licence else ''}.",
        f"* Oracle: {oracle_line(config)}.",
        f"* Method: {method.title} ({method.source}): {method.summary}; trained weights: "
        f"`parameters={resolved_parameters(config)}`.",
        f"* Data: task `{task.name}` ({task.summary}); {prompts} prompts, {rollouts} of at most "
        f"{config.rollouts.max_new_tokens} tokens.",
    ]
    yield "\n".join(lines)
    rows = [f"| `{key}` | `{value}` |" for key, value in settings_that_matter(config)]
    if rows:
        yield "Settings other than the defaults that took part:"
        yield "\n".join(["| setting | value |", "|---|---|", *rows])


def oracle_line(config: Config) -> str:
    """Return the oracle's name, and what it asks of a text."""
    kind, settings = ORACLES[config.oracle.name], config.oracle
    name, asks = kind.name, kind.summary
    if kind.name == TASK:
        name, asks = f"of the task `{config.task.name}`", task_of(config).asks or task_of(config).summary
    own = [leaf for leaf in schema.leaves().values() if leaf.section == "oracle" and kind.name in leaf.about.belongs_to]
    given = [f"`{leaf.key}={text(schema.get(config, leaf.key))}`" for leaf in own]
    line = f"{name}: {asks}{', '.join(['', *given])}"
    truncated = f"; a text that is cut off: `rollouts.truncated={config.rollouts.truncated}`"
    return f"{'the opposite of ' if settings.negate else ''}{line}{truncated}"


def settings_that_matter(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the settings that are not at their default, decide the outcome and are read by this run."""
    for key, leaf in schema.leaves().items():
        value = schema.get(config, key)
        chooser = f"{leaf.section}.name"
        read = not leaf.about.belongs_to or schema.get(config, chooser) in leaf.about.belongs_to
        read = read and all(unread(config) is None for unread in leaf.unread)
        if read and value != leaf.default and leaf.role in ("target", "outcome") and not leaf.about.place:
            yield key, text(value).replace("|", r"\|")


def _again_section(run: RunFolder) -> Iterator[str]:
    yield "## Train it again"
    try:
        environment: dict[str, Any] = json.loads((run.path / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        environment = {}
    lines = []
    if command := environment.get("command"):
        lines.append(f"python {shlex.join([Path(command[0]).name, *command[1:]])}")
    lines.append(f"python train.py {SETTINGS}        # the same: all settings of the run, from this folder")
    yield "\n".join(f"    {line}" for line in lines)
    versions = environment.get("versions") or {}
    told = [f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if versions.get(name)]
    if commit := (environment.get("git") or {}).get("commit"):
        told.append(f"dinado at commit {commit}{' with changes' if environment['git'].get('dirty') else ''}")
    if told:
        yield f"It was trained with {', '.join(told)}."


def _origin(config: Config) -> Origin:
    """Return the origin of the base, that of the first run where a run's base is a run."""
    while config.base.run is not None:
        config = from_run_folder(find_run(config.base.run).path).config
    return Origin() if task_of(config).exact else origin_of(config.base.name, config.base.revision)


def _records(run: RunFolder, name: str) -> list[dict[str, Any]]:
    file = run.path / "samples" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def _label(key: str) -> str:
    """Return the name of a number as a cell of a table."""
    label = measure(key).label.replace("|", r"\|")
    return f"`{label}`" if "(" in label else label


def _quoted(value: str) -> str:
    """Return a string literal of Python."""
    return json.dumps(value, ensure_ascii=False)
