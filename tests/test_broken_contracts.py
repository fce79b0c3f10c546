"""The contracts find what is wrong: each implementation here breaks one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import pytest
import torch
from contracts import method, oracle, parameters
from helpers import base_lm
from torch import Tensor, nn

from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.oracles import Oracle
from dinado.parameters.full import Full
from dinado.parameters.lora import Lora
from dinado.prompt import Prompt
from lightning_modules.diagnostics import HeldOut
from lightning_modules.rollout_method import Terms
from lightning_modules.sft import Sft
from lightning_modules.step_numbers import StepNumbers
from workbench.settings import loader

LORA = {"r": 2, "alpha": 4.0, "dropout": 0.0, "targets": "all-linear"}


class Counts(Oracle):
    """Sound: the share of the letters that are the letter of its setting."""

    def __init__(self, letter: str = "o") -> None:
        self.letter = letter

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [text.count(self.letter) / max(1, len(text)) for text in texts]


class RelativeToBatch(Counts):
    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        scores = super().score(prompts, texts)
        return [score / max(1e-9, *scores, 0.0) for score in scores]


class HidesItsSetting(Counts):
    def settings(self) -> Any:
        return None


class LosesItsSetting(Counts):
    def __reduce__(self) -> tuple[type, tuple[str]]:
        return LosesItsSetting, ("e",)


class TooFar(Counts):
    def progress(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        return [2.0 for _ in texts]


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (RelativeToBatch, oracle.a_batch_is_its_texts_one_by_one),
        (HidesItsSetting, oracle.the_fingerprint_names_the_settings),
        (LosesItsSetting, oracle.a_pickled_oracle_is_the_same),
        (TooFar, oracle.scores_are_probabilities),
    ],
)
def test_oracle(kind: Callable[..., Oracle], check: Any) -> None:
    check(oracle.OracleCase(lambda: Counts("o"), lambda: Counts("e")))
    with pytest.raises((AssertionError, ValueError)):
        check(oracle.OracleCase(lambda: kind("o"), lambda: kind("e")))


class StartsElsewhere(Full):
    @classmethod
    def inject(cls, base: BaseLM, **settings: Any) -> Self:
        scores = super().inject(base, **settings)
        parameters.perturb(scores.trained().values())
        return scores


class MeasuresNothing(Full):
    def change_norm(self) -> float:
        return 0.0


class LeavesOneOut(Full):
    def groups(self) -> list[list[nn.Parameter]]:
        return [group[1:] for group in super().groups()]


class FoldsTheBase(Full):
    def fold(self) -> nn.Module:
        return self.base.model


class TrainsTheBase(Full):
    @classmethod
    def inject(cls, base: BaseLM, **settings: Any) -> Self:
        scores = cls(base, base)
        base.model.requires_grad_(True)
        return scores


class ForgetsTheTemperature(Full):
    def log_q(self, batch: RolloutBatch) -> Tensor:
        return super().log_q(batch) / self.base.temperature


class HasAWeightForNothing(Full):
    def __init__(self, base: BaseLM, policy: BaseLM) -> None:
        super().__init__(base, policy)
        self.idle = nn.Parameter(torch.zeros(3))


class DependsOnMore(Full):
    """The policy is moved by a weight that is not trained, and not the same in every process."""

    @classmethod
    def inject(cls, base: BaseLM, **settings: Any) -> Self:
        scores = super().inject(base, **settings)
        frozen = scores.policy.model.get_output_embeddings().weight.requires_grad_(False)
        frozen.data = frozen + 0.1 * torch.randn(frozen.shape)
        return scores


class NeverOff(Lora):
    @classmethod
    def inject(cls, base: BaseLM, **settings: Any) -> Self:
        scores = super().inject(base, **settings)
        base._switches.clear()
        return scores


class StaysInside(Lora):
    def fold(self) -> nn.Module:
        model: nn.Module = self.base.model
        return model


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (StartsElsewhere, parameters.starts_at_the_base),
        (MeasuresNothing, parameters.measures_its_change),
        (LeavesOneOut, parameters.groups_are_a_partition),
        (FoldsTheBase, parameters.folds_or_says_why_not),
        (TrainsTheBase, parameters.switches_off_and_on),
        (ForgetsTheTemperature, parameters.statistics_agree),
        (ForgetsTheTemperature, parameters.decodes_what_was_trained),
        (HasAWeightForNothing, parameters.gradients_reach_what_is_trained),
        (DependsOnMore, parameters.a_folder_brings_it_back),
        (NeverOff, parameters.switches_off_and_on),
        (StaysInside, parameters.folds_or_says_why_not),
    ],
)
def test_parameterisation(kind: type[Full] | type[Lora], check: Any) -> None:
    settings = LORA if issubclass(kind, Lora) else {}

    def inject(base: BaseLM, seed: int) -> Any:
        return kind.inject(base, link="identity", seed=seed, **settings)

    with pytest.raises(AssertionError):
        check(parameters.ParametersCase(lambda: base_lm("gpt2", temperature=1.3), inject, policy=True))


class CountsWeights(Sft):
    def terms(self, batch: RolloutBatch) -> Terms:
        terms = super().terms(batch)
        return terms._replace(loss_B=terms.loss_B * batch.weight_B)


class DividesByWidth(Sft):
    def terms(self, batch: RolloutBatch) -> Terms:
        terms = super().terms(batch)
        return terms._replace(loss_B=terms.loss_B / batch.response_BT.shape[1])


class PredictsR(Sft):
    def terms(self, batch: RolloutBatch) -> Terms:
        terms = super().terms(batch)
        return terms._replace(log_r_BT=terms.held_out.log_q_BT)


class EvaluatesTheBase(Sft):
    def terms(self, batch: RolloutBatch) -> Terms:
        return super().terms(batch)._replace(held_out=HeldOut(batch.log_p_BT, batch.known_log_p_BT))


class LogsNothingKnown(Sft):
    def measure(self, terms: Terms, batch: RolloutBatch, numbers: StepNumbers) -> None:
        super().measure(terms, batch, numbers)
        numbers.mean("mine", terms.loss_B)


class SavesTheBase(Sft):
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


class TrainsNothing(Sft):
    def terms(self, batch: RolloutBatch) -> Terms:
        terms = super().terms(batch)
        return terms._replace(loss_B=terms.loss_B * 0)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (CountsWeights, method.gives_each_rollout_a_loss),
        (DividesByWidth, method.a_batch_is_its_rows_one_by_one),
        (PredictsR, method.predicts_r_if_the_table_says_so),
        (EvaluatesTheBase, method.evaluates_the_model_that_decodes),
        (LogsNothingKnown, method.logs_finite_numbers),
        (SavesTheBase, method.a_checkpoint_holds_what_was_trained),
        (TrainsNothing, method.trains_what_it_says),
    ],
)
def test_method(kind: type[Sft], check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.sft.Sft", kind)
    config = loader.load("exact_gpt2", ["method=sft"]).config
    with pytest.raises(AssertionError):
        check(method.MethodCase(config, lambda: base_lm("gpt2", temperature=1.3)))
