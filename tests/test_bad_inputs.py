"""What users get wrong, a line each: exit code 2, one line that names it, no traceback, and nothing of theirs touched.

Every case is a command typed in a folder that holds a finished run, prompts and an oracle module, spoilt first where
the case says so. Faults that strike a good command in the middle are in tests/faults.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from commands import Result, process
from helpers import exact_gpt2_words, tiny_llama

from dinado.bases.markov import build_word_tokenizer
from engine.checkpoints import DurableCheckpoints, read_checkpoint

RUN = "runs/exact_world/good"
LAST = f"{RUN}/checkpoints/last.ckpt"
ORACLES = """
import math
def good(prompts, texts): return [1.0 for _ in texts]
def nan(prompts, texts): return [math.nan for _ in texts]
def two(prompts, texts): return [2.0 for _ in texts]
def few(prompts, texts): return [1.0]
def words(prompts, texts): return ["yes" for _ in texts]
def crash(prompts, texts): raise KeyError("classifier")
def alone(texts): return [1.0 for _ in texts]
def nothing(prompts, texts): pass
number = 3
"""


class Case(NamedTuple):
    """One mistake.

    Attributes:
        words: the command.
        says: what the line has to say.
        spoil: done in the folder first.
    """

    words: str
    says: str
    spoil: Callable[[], object] = lambda: None


def put(name: str, content: str | bytes) -> Callable[[], object]:
    """Write a file."""
    file = Path(name)
    return lambda: file.write_bytes(content if isinstance(content, bytes) else content.encode())


def concepts(value: str) -> str:
    """Two prompts with a field ``concepts``."""
    return "".join(f'{{"prompt": "{i} 4", "concepts": {value}}}\n' for i in (3, 4))


def cut(name: str) -> Callable[[], object]:
    """Cut a file in two."""
    return lambda: os.truncate(name, Path(name).stat().st_size // 2)


def other_weights() -> None:
    """A checkpoint, whole and vouched for, with the weights of something else."""
    checkpoint = read_checkpoint(Path(LAST))
    DurableCheckpoints().save_checkpoint(checkpoint | {"state_dict": {"w": torch.ones(2)}}, LAST)


def change(old: str, new: str) -> Callable[[], object]:
    """Change a setting in the finished run's config.yaml."""
    file = Path(RUN) / "config.yaml"

    def spoil() -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return spoil


JSONL = "train.py quickstart base.name=model task.name=jsonl task.path=prompts.jsonl data.train_prompts=0 " + (
    "data.val_prompts=1 rollouts.max_new_tokens=3 rollouts.per_prompt=4 eval.rollouts_per_prompt=2 "
    "eval.max_rollouts=4 eval.best_of=0 "
    "trainer.accelerator=cpu data.cache=cache runs=new objective.lookahead.weight=0 "
)
MINE = JSONL + "oracle.name=user oracle.function=mine:"
LEXICAL = JSONL + "oracle.name=lexical"
EXACT = "train.py exact_world runs=new data.cache=cache "

CASES = {
    # Command lines
    "no such experiment": Case("train.py quikstart", "did you mean quickstart?"),
    "two experiments": Case("train.py quickstart exact_world", "exact_world: one word too many"),
    "an unknown option": Case("train.py quickstart --dryrun", "did you mean --dry-run?"),
    "an option without its value": Case("train.py --resume", "--resume needs a value"),
    "a value for a flag": Case("train.py quickstart --json=yes", "--json takes no value"),
    "a short option": Case("train.py quickstart -n", "unknown option -n"),
    "help on nothing": Case("train.py --help optm", "did you mean optim?"),
    "json of nothing": Case("train.py quickstart --dry-run --json", "--json prints the numbers of a run"),
    "trying out a resumed run": Case(f"train.py --resume {RUN} --fast-dev-run", "has its own settings"),
    "going on without a job": Case("train.py quickstart --continue", "--continue"),
    "evaluate nothing": Case("evaluate.py", "error: "),
    "evaluate two runs": Case(f"evaluate.py {RUN} {RUN}", "one word too many"),
    "generate without a run": Case("generate.py --prompt x", "error: "),
    "generate with settings": Case(f"generate.py {RUN} alpha=2 --prompt x", "takes no settings"),
    "generate in no mode": Case(f"generate.py {RUN} --prompt x --mode dance", "dance"),
    "a prompt twice": Case(f"generate.py {RUN} --prompt x --input prompts.jsonl", "not both"),
    "a number that is none": Case(f"generate.py {RUN} --prompt x --num two", "--num two: give a whole number"),
    "none of something": Case(f"generate.py {RUN} --prompt x --num 0", "of 1 or more"),
    "an output that is a folder": Case(f"generate.py {RUN} --prompt x --output runs", "--output runs"),
    "to go on with no file": Case(f"generate.py {RUN} --prompt x --continue", "belong to --output FILE"),
    "a page of nothing": Case(f"generate.py {RUN} --prompt x --html page.html", "--html belongs to --explain"),
    "a page in no folder": Case(
        f"generate.py {RUN} --prompt 3 --explain --html no/page.html", "cannot write no/page.html"
    ),
    "an output in no folder": Case(f"generate.py {RUN} --prompt x --output no/where.jsonl", "in a folder that exists"),
    # Settings
    "an unknown key": Case(EXACT + "optim.learning_rate=1", "no such key"),
    "a key without its section": Case(EXACT + "lr=1", "did you mean optim.lr?"),
    "a section for a key": Case(EXACT + "optim=1", "optim is a section"),
    "a word for a number": Case(EXACT + "optim.lr=fast", "expected float"),
    "a half step": Case(EXACT + "optim.steps=1.5", "expected int"),
    "a choice that is none": Case(EXACT + "method=dinado_sft", "did you mean dinado_soft?"),
    "a list that is none": Case(EXACT + "task.required=[3,", "task.required"),
    "a negative rate": Case(EXACT + "optim.lr=-1", "optim.lr"),
    "no steps": Case(EXACT + "optim.steps=0", "optim.steps"),
    "an infinite rate": Case(EXACT + "optim.lr=nan", "optim.lr"),
    "a share above one": Case(EXACT + "rollouts.base_share=2 rollouts.rounds=2 targets.weights=balance", "base_share"),
    "weights that do not fit": Case(EXACT + "rollouts.temperature=2", "set targets.weights=importance"),
    "rounds without weights": Case(EXACT + "rollouts.rounds=4", "set targets.weights=balance"),
    "more rounds than steps": Case(
        EXACT + "optim.steps=3 rollouts.rounds=4 targets.weights=balance", "more than optim.steps=3"
    ),
    "a setting that nothing reads": Case(EXACT + "rollouts.until=0.5", "ignored"),
    "adapters in a table": Case(EXACT + "parameters=lora", "parameters"),
    "a batch that cannot be shared": Case(EXACT + "optim.micro_batch=7", "optim.micro_batch"),
    "a token that there is not": Case(EXACT + "task.required=[99]", "task.required"),
    "an oracle that nothing obeys": Case(EXACT + "task.required=[3] task.avoided=[3]", "task."),
    "a mode W&B does not have": Case(EXACT + "logging.wandb=maybe", "logging.wandb"),
    "a GPU that is not there": Case(EXACT + "trainer.accelerator=gpu", "error: "),
    # Files
    "an experiment that is a folder": Case("train.py ./runs", "error: "),
    "an experiment file that is not there": Case("train.py mine.yaml", "mine.yaml"),
    "an experiment that is not YAML": Case("train.py mine.yaml", "mine.yaml", put("mine.yaml", "optim: [")),
    "an experiment that is a list": Case("train.py mine.yaml", "mine.yaml", put("mine.yaml", "- 1\n- 2\n")),
    "a key twice": Case("train.py mine.yaml", "seed", put("mine.yaml", "seed: 1\nseed: 2\n")),
    "an experiment that extends itself": Case("train.py mine.yaml", "mine", put("mine.yaml", "extends: mine.yaml\n")),
    "an experiment that runs code": Case(
        "train.py mine.yaml", "mine.yaml", put("mine.yaml", "seed: !!python/object/apply:os.system ['touch hacked']\n")
    ),
    "an experiment in another encoding": Case("train.py mine.yaml", "mine.yaml", put("mine.yaml", b"seed: \xff\n")),
    "an unknown key in a file": Case("train.py mine.yaml", "optim.lrr", put("mine.yaml", "optim: {lrr: 1}\n")),
    "prompts that are not there": Case(JSONL + "oracle.name=regex oracle.pattern=2 task.path=no.jsonl", "no.jsonl"),
    "no prompts": Case(JSONL + "oracle.name=regex oracle.pattern=2", "prompts.jsonl", put("prompts.jsonl", "")),
    "prompts that are not JSON": Case(
        JSONL + "oracle.name=regex oracle.pattern=2", "line 2", put("prompts.jsonl", '{"prompt": "3"}\nhello\n')
    ),
    "a prompt of another name": Case(
        JSONL + "oracle.name=regex oracle.pattern=2", "prompt", put("prompts.jsonl", '{"text": "3"}\n')
    ),
    "prompts in another encoding": Case(
        JSONL + "oracle.name=regex oracle.pattern=2", "UTF-8", put("prompts.jsonl", b'{"prompt": "\xff"}\n')
    ),
    "a prompt that is a number": Case(
        JSONL + "oracle.name=regex oracle.pattern=2", "prompt", put("prompts.jsonl", '{"prompt": 3}\n')
    ),
    "too few prompts": Case(
        JSONL + "oracle.name=regex oracle.pattern=2", "prompts.jsonl", put("prompts.jsonl", '{"prompt": "3 4"}\n')
    ),
    "a base that is not there": Case(
        JSONL + "oracle.name=regex oracle.pattern=2 base.name=./nowhere", "base.name=./nowhere"
    ),
    "a base that is no model": Case(
        JSONL + "oracle.name=regex oracle.pattern=2 base.name=./runs", "runs: cannot be loaded"
    ),
    "a base cut short": Case(
        JSONL + "oracle.name=regex oracle.pattern=2", "model: cannot be loaded", cut("model/model.safetensors")
    ),
    "a cache that is a file": Case(JSONL + "oracle.name=regex oracle.pattern=2 data.cache=prompts.jsonl", "data.cache"),
    "runs in a file": Case(EXACT + "runs=prompts.jsonl", "runs=prompts.jsonl"),
    "CommonGen that is not there": Case(
        "train.py commongen_smollm2 runs=new data.cache=cache task.path=nowhere", "nowhere"
    ),
    # Oracles
    "no oracle": Case(JSONL, "oracle"),
    "concepts that are a number": Case(LEXICAL, "`concepts` is '3'", put("prompts.jsonl", concepts("3"))),
    "concepts that are numbers": Case(LEXICAL, "`concepts` is '[1, 2]'", put("prompts.jsonl", concepts("[1, 2]"))),
    "concepts without letters": Case(LEXICAL, "with letters or digits", put("prompts.jsonl", concepts('["!!!"]'))),
    "no concepts": Case(LEXICAL, "has no `concepts`", put("prompts.jsonl", concepts("[]"))),
    "a pattern that is none": Case(JSONL + "oracle.name=regex oracle.pattern=(", "oracle.pattern"),
    "no pattern": Case(JSONL + "oracle.name=regex", "oracle.pattern"),
    "an oracle in no module": Case(JSONL + "oracle.name=user oracle.function=nowhere:good", "nowhere"),
    "an oracle that the module lacks": Case(MINE + "goood", "goood"),
    "an oracle that is no function": Case(MINE + "number", "number"),
    "an oracle without a name": Case(JSONL + "oracle.name=user oracle.function=mine", "module:callable"),
    "an oracle that does not parse": Case(MINE + "good", "mine", put("mine.py", "def good(:\n")),
    "an oracle that says NaN": Case(MINE + "nan", "nan for prompt"),
    "an oracle that says 2": Case(MINE + "two", "scores must lie in [0, 1]"),
    "an oracle that says too little": Case(MINE + "few", "one number for each text"),
    "an oracle that says words": Case(MINE + "words", "words failed on"),
    "an oracle that says nothing": Case(MINE + "nothing", "nothing failed on"),
    "an oracle that crashes": Case(MINE + "crash", "KeyError"),
    "an oracle of another shape": Case(MINE + "alone", "must take (prompts, texts)"),
    # Runs and checkpoints
    "no such run": Case("train.py --resume runs/exact_world/goood", f"the latest is {RUN}"),
    "a folder that is no run": Case("train.py --resume runs", f"the latest in it is {RUN}"),
    "a run without its settings": Case(
        f"train.py --resume {RUN}", "is not a run", lambda: Path(RUN, "config.yaml").unlink()
    ),
    "a run with broken settings": Case(f"train.py --resume {RUN}", "config.yaml", put(f"{RUN}/config.yaml", "seed: [")),
    "a checkpoint cut short": Case(f"train.py --resume {RUN}", "last.ckpt is damaged", cut(LAST)),
    "a checkpoint that is something else": Case(f"train.py --resume {RUN}", "last.ckpt is damaged", put(LAST, "hello")),
    "a checkpoint nobody vouches for": Case(
        f"train.py --resume {RUN}", "SHA256SUMS is missing", lambda: Path(LAST).with_name("SHA256SUMS").unlink()
    ),
    "evaluate a damaged checkpoint": Case(f"evaluate.py {RUN}", "last.ckpt is damaged", cut(LAST)),
    "generate from a damaged checkpoint": Case(f"generate.py {RUN} --prompt 3", "last.ckpt is damaged", cut(LAST)),
    "a checkpoint of another model": Case(f"train.py --resume {RUN}", "does not fit", other_weights),
    "a checkpoint of another base": Case(
        f"train.py --resume {RUN}", "trained on another base", change("\n  seed: 0", "\n  seed: 9")
    ),
    "a checkpoint of another batch size": Case(
        f"train.py --resume {RUN} optim.batch_size=32 optim.steps=8", "optim.batch_size=16"
    ),
    "a checkpoint of another oracle": Case(f"train.py --resume {RUN} task.required=[3] optim.steps=8", "the oracle="),
    "fewer steps than are done": Case(f"train.py --resume {RUN} optim.steps=4", "has done 6 steps"),
    "a checkpoint of another shape": Case(f"train.py --resume {RUN} network.width=32", "does not fit"),
    "evaluate a run without a checkpoint": Case(
        f"evaluate.py {RUN}", "no checkpoint yet", lambda: shutil.rmtree(Path(LAST).parent)
    ),
    "a base from a run that is none": Case("train.py quickstart runs=new base.run=runs/none", "runs/none"),
    "a store of something else": Case(
        f"evaluate.py {RUN}",
        "manifest.json",
        lambda: [file.write_text("{}") for file in Path("cache/rollouts").glob("*/manifest.json")],
    ),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, prompts, a base and oracles; places in it are relative to it."""
    folder = tmp_path_factory.mktemp("template")
    tiny_llama(12).save_pretrained(folder / "model")
    build_word_tokenizer(12).save_pretrained(folder / "model")
    lines = [json.dumps({"prompt": f"{i} {j}"}) for i in (3, 4) for j in (6, 7)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "mine.py").write_text(ORACLES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = exact_gpt2_words(".", "method=nado", "network.width=16", "network.heads=2", "task.seed=0")
        result = process("train.py", "exact_world", *words, WANDB_RUN_ID="good")
    assert result.code == 0, result.err
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, and so what says how the good run ended."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if "__pycache__" not in file.parts}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(importlib.sys.modules, "mine", raising=False)  # type: ignore[attr-defined]
    case = CASES[name]
    case.spoil()
    before = contents(folder)
    script, *words = case.words.split()
    result = command(importlib.import_module(script.removesuffix(".py")), *words)
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert result.code == 2 and len(lines) == 1, result
    assert lines[0].startswith("error: ") and case.says in lines[0], lines[0]
    assert "Traceback" not in result.out
    after = contents(folder)
    assert {file for file in before if after.get(file) != before[file]} == set(), "something of theirs was touched"
    assert not Path("hacked").exists()


def test_there_are_sixty_at_least() -> None:
    assert len(CASES) >= 60
