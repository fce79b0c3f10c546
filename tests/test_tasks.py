"""Tasks: what is read, what is refused, and that training and held-out prompts stay apart."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import datasets
import pytest
import torch

from datamodules.tasks import Task, build_task
from dinado.errors import DataError, OracleError
from dinado.prompt import Prompt
from workbench.settings.config import Config


def write(path: Path, rows: list[dict] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(task: str, train: int = 0, val: int = 0, **settings: object) -> Config:
    config = Config()
    config.task.name = task  # type: ignore[assignment]
    config.data.train_prompts, config.data.val_prompts = train, val
    for key, value in settings.items():
        section, _, field = key.rpartition("__")
        target = getattr(config, section or "task")
        assert hasattr(target, field), key
        setattr(target, field, value)
    return config


def concept_set(id_: str, *concepts: str) -> dict:
    return {"id": id_, "concepts": list(concepts), "references": [f"{' '.join(concepts)} {i}" for i in range(2)]}


@pytest.fixture
def commongen(tmp_path: Path) -> Path:
    """A data root with twelve training sets, one of them a held-out set in another order, and three held-out sets."""
    train = [concept_set(f"train-{i}", f"noun{i}", "walk", "dog") for i in range(10)]
    train += [concept_set("train-same", "run", "cat", "boy"), concept_set("train-four", "a", "b", "c", "d")]
    dev = [concept_set(f"dev-{i}", f"noun{i + 20}", "walk", "dog") for i in range(2)]
    dev.append(concept_set("dev-2", "boy", "cat", "run"))
    write(tmp_path / "commongen" / "train.jsonl", train)
    write(tmp_path / "commongen" / "dev.jsonl", dev)
    return tmp_path


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


class TestExact:
    @pytest.mark.parametrize("name", ["exact_world", "exact_gpt2"])
    def test_one_empty_prompt_and_an_oracle_over_tokens(self, name: str) -> None:
        task = build_task(make(name, required=[3, 7], avoided=[5], ends_with=7))
        assert [(prompt.id, prompt.text) for prompt in task.train_prompts] == [("0", "")]
        assert task.val_prompts == task.train_prompts
        assert not task.has_references
        responses = ["3 7", "3 1 7 0", "3 5 7", "7 3", "7", ""]
        assert task.oracle(task.train_prompts * 6, responses).tolist() == [1, 1, 0, 0, 0, 0]


class TestCommonGen:
    def test_requests_references_and_oracle(self, commongen: Path) -> None:
        task = build_task(make("commongen", data__root=str(commongen), template="Use {words}!"))
        prompt = next(prompt for prompt in task.val_prompts if prompt.id == "dev-2")
        assert prompt.text == "Use boy, cat, run!"
        assert prompt.references == ["boy cat run 0", "boy cat run 1"]
        assert task.has_references
        assert task.oracle([prompt] * 2, ["The boys ran after a cat.", "The boys ran."]).tolist() == [1, 0]

    def test_held_out_sets_are_left_out_of_training_in_any_order(
        self, commongen: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            task = build_task(make("commongen", data__root=str(commongen)))
        assert {prompt.id for prompt in task.train_prompts} == {f"train-{i}" for i in range(10)}
        assert "left out 1 training prompts" in caplog.text

    @pytest.mark.parametrize(("count", "expected"), [(0, 11), (3, 10), (4, 1)])
    def test_sets_are_chosen_by_size(self, commongen: Path, count: int, expected: int) -> None:
        write(commongen / "commongen" / "dev.jsonl", [concept_set("d3", "x", "y", "z"), concept_set("d4", *"wxyz")])
        train = commongen / "commongen" / "train.jsonl"
        rows = [json.loads(line) for line in train.read_text().splitlines() if "train-same" not in line]
        write(train, rows)
        task = build_task(make("commongen", data__root=str(commongen), num_concepts=count))
        assert len(task.train_prompts) == expected
        assert all(count in (0, len(prompt.data["concepts"])) for prompt in task.train_prompts + task.val_prompts)

    def test_order_is_shuffled_fixed_and_a_smaller_cut_is_a_prefix(self, commongen: Path) -> None:
        def ids(train: int, seed: int) -> list[str]:
            torch.manual_seed(seed)
            config = make("commongen", train=train, data__root=str(commongen))
            config.seed = seed
            return [prompt.id for prompt in build_task(config).train_prompts]

        everything = ids(0, seed=0)
        assert everything == ids(0, seed=1) == ids(100, seed=2)
        assert everything[:4] == ids(4, seed=3)
        assert everything != sorted(everything)

    def test_the_environment_names_the_data_root(self, commongen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DINADO_DATA", str(commongen))
        assert len(build_task(make("commongen")).val_prompts) == 3

    def test_no_data_root(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("DINADO_DATA", raising=False)
        with pytest.raises(DataError, match=r"data\.root or DINADO_DATA"):
            build_task(make("commongen"))
        monkeypatch.setenv("DINADO_DATA", str(tmp_path / "none"))
        with pytest.raises(DataError, match="none is not a folder; correct DINADO_DATA"):
            build_task(make("commongen"))

    def test_a_folder_of_its_own_and_a_missing_file(self, commongen: Path) -> None:
        folder = commongen / "commongen"
        assert len(build_task(make("commongen", path=str(folder))).val_prompts) == 3
        (folder / "dev.jsonl").unlink()
        with pytest.raises(DataError, match=r"dev\.jsonl does not exist"):
            build_task(make("commongen", path=str(folder)))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"id": "x", "concepts": ["a"]}, "has no field 'references'"),
            ({"id": "x", "concepts": [], "references": []}, "none of them blank"),
            ({"id": "x", "concepts": ["a", " "], "references": []}, "none of them blank"),
            ({"id": "x", "concepts": 3, "references": []}, "'concepts' must be a text or a list"),
        ],
    )
    def test_malformed_rows_are_named(self, commongen: Path, row: dict, message: str) -> None:
        write(commongen / "commongen" / "train.jsonl", [concept_set("ok", "a", "b", "c"), row])
        with pytest.raises(DataError, match=rf"train\.jsonl line 2.*{message}"):
            build_task(make("commongen", data__root=str(commongen)))

    def test_template_needs_a_place_for_the_words(self, commongen: Path) -> None:
        with pytest.raises(DataError, match=r"task\.template has no \{words\}"):
            build_task(make("commongen", data__root=str(commongen), template="Write something."))

    def test_nothing_left_after_filtering(self, commongen: Path) -> None:
        with pytest.raises(DataError, match="no train prompts are left"):
            build_task(make("commongen", data__root=str(commongen), num_concepts=7))

    def test_hub_rows_are_grouped_by_concept_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(name: str, split: str) -> datasets.Dataset:
            assert name == "allenai/common_gen"
            words = ["ski", "hill", "go"] if split == "train" else ["cat", "sit", "mat"]
            sentences = [f"{split} {i}" for i in range(3)]
            rows = [{"concept_set_idx": 0, "concepts": words, "target": sentence} for sentence in sentences]
            rows.append({"concept_set_idx": 1, "concepts": [split, *words[1:]], "target": "other"})
            return datasets.Dataset.from_list(rows)

        monkeypatch.setattr(datasets, "load_dataset", load)
        task = build_task(make("commongen", path="allenai/common_gen"))
        by_id = {prompt.id: prompt for prompt in task.train_prompts + task.val_prompts}
        assert set(by_id) == {"train-0", "train-1", "validation-0", "validation-1"}
        assert by_id["train-0"].references == ["train 0", "train 1", "train 2"]
        assert by_id["validation-1"].data["concepts"] == ["validation", "sit", "mat"]

    def test_hub_errors_are_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(name: str, split: str) -> None:
            raise ConnectionError("cannot reach the hub\nmore")

        monkeypatch.setattr(datasets, "load_dataset", offline)
        with pytest.raises(DataError, match=r"task\.path=some/where is neither .*: cannot reach the hub$"):
            build_task(make("commongen", path="some/where"))
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list([{"text": "a"}]))
        with pytest.raises(DataError, match="has no column 'concept_set_idx'"):
            build_task(make("commongen", path="some/where"))

    @pytest.mark.data
    def test_the_published_data(self, data_root: Path) -> None:
        task = build_task(make("commongen", data__root=str(data_root), num_concepts=0))
        assert len(task.val_prompts) == 993
        assert len(task.train_prompts) == 32_650  # of 32,651 sets one is also held out
        assert task.has_references
        held_out = {frozenset(prompt.data["concepts"]) for prompt in task.val_prompts}
        assert not any(frozenset(prompt.data["concepts"]) in held_out for prompt in task.train_prompts)
        references = [(prompt, prompt.references[0]) for prompt in task.val_prompts]
        scores = task.oracle(*zip(*references, strict=True))
        assert scores.mean().item() == pytest.approx(0.993, abs=0.002)


class TestJsonl:
    def rows(self, count: int, **extra: object) -> list[dict]:
        return [{"prompt": f"Say {i}.", **extra} for i in range(count)]

    def regex(self, task: str = "jsonl", **settings: object) -> Config:
        return make(task, oracle__name="regex", oracle__pattern="yes", **settings)

    def test_holds_out_the_end_of_the_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.jsonl", self.rows(10, topic="x", references="Yes."))
        task = build_task(self.regex(path=str(path), val=3))
        assert sorted(texts(task.val_prompts)) == ["Say 7.", "Say 8.", "Say 9."]
        assert sorted(texts(task.train_prompts)) == [f"Say {i}." for i in range(7)]
        assert task.train_prompts[0].data == {"topic": "x", "references": ["Yes."]}
        assert task.has_references
        assert task.oracle(task.val_prompts[:2], ["YES", "no"]).tolist() == [1, 0]

    def test_two_files_other_fields_and_ids(self, tmp_path: Path) -> None:
        train = write(tmp_path / "a.jsonl", [{"q": "One?", "id": 5, "refs": ["a", "b"]}, {"q": "Two?"}])
        val = write(tmp_path / "b.jsonl", '{"q": "Three?"}\n\n{"q": "  two? ", "note": 1}\n')
        config = self.regex(path=str(train), val_path=str(val), prompt_field="q", references_field="refs")
        task = build_task(config)
        assert [(prompt.id, prompt.references) for prompt in task.train_prompts] == [("5", ["a", "b"])]
        assert {prompt.id: prompt.text for prompt in task.val_prompts} == {"val-0": "Three?", "val-1": "  two? "}
        assert not task.has_references

    @pytest.mark.parametrize("val", [0, 6, 48])
    def test_holding_out_too_much(self, tmp_path: Path, val: int) -> None:
        path = write(tmp_path / "p.jsonl", self.rows(10))
        with pytest.raises(DataError, match=rf"has 10 prompts, of which data\.val_prompts={val} cannot"):
            build_task(self.regex(path=str(path), val=val))

    def test_ids_must_be_unique_over_both_sides(self, tmp_path: Path) -> None:
        train = write(tmp_path / "a.jsonl", [{"prompt": "One", "id": "7"}, {"prompt": "Two", "id": "8"}])
        val = write(tmp_path / "b.jsonl", [{"prompt": "Three", "id": 7}])
        with pytest.raises(DataError, match="prompt id '7' is used more than once"):
            build_task(self.regex(path=str(train), val_path=str(val)))

    def test_needs_an_oracle(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.jsonl", self.rows(4))
        with pytest.raises(OracleError, match=r"set oracle\.name"):
            build_task(make("jsonl", path=str(path), val=1))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
            ('["a"]\n', "line 1 is not a JSON object"),
            ('{"text": "a"}\n', r"line 1 has no field 'prompt' \(task\.prompt_field\); it has 'text'"),
            ('{"prompt": "a"}\n\n{"prompt": "  "}\n', "line 3: field 'prompt' must be a text that is not blank"),
            ('{"prompt": 3}\n', "line 1: field 'prompt' must be a text"),
            ('{"prompt": "a", "references": [1]}\n', "line 1: field 'references' must be a text or a list"),
            ("", "has 0 prompts"),
        ],
    )
    def test_malformed_files_are_named(self, tmp_path: Path, text: str, message: str) -> None:
        path = write(tmp_path / "p.jsonl", text)
        with pytest.raises(DataError, match=message) as caught:
            build_task(self.regex(path=str(path), val=1))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    def test_missing_settings_and_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"set task\.path"):
            build_task(self.regex())
        with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
            build_task(self.regex(path=str(tmp_path / "none.jsonl")))
        binary = tmp_path / "b.jsonl"
        binary.write_bytes(b'{"prompt": "\xff"}')
        with pytest.raises(DataError, match="is not UTF-8"):
            build_task(self.regex(path=str(binary)))


@pytest.fixture(scope="module")
def demo() -> Task:
    return build_task(make("brief"))


class TestDemo:
    def test_prompts(self, demo: Task) -> None:
        assert (len(demo.train_prompts), len(demo.val_prompts)) == (240, 60)
        words = [prompt.data["concepts"][0] for prompt in demo.train_prompts + demo.val_prompts]
        assert len(set(words)) == 300
        assert demo.train_prompts[0].text == f'Write one short sentence about the word "{words[0]}".'

    def test_oracle_wants_few_words_and_the_noun(self, demo: Task) -> None:
        oracle = pickle.loads(pickle.dumps(demo.oracle))
        prompt = next(p for p in demo.val_prompts if p.data["concepts"] == ["bakery"])
        verdicts = {
            "The bakery smells of bread.": 1,
            "Bakeries open early.": 1,
            "The shop smells of bread.": 0,
            "bakery " + "a " * 14: 1,
            "bakery " + "a " * 15: 0,
            "": 0,
        }
        assert oracle([prompt] * len(verdicts), list(verdicts)).tolist() == list(verdicts.values())
