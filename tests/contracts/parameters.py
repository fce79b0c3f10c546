"""The contract of a parameterisation.

Axes: B responses, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from helpers import PROMPT_OF, PROMPTS, RESPONSES, batch_of, plain_log_probs, prompt_tokens
from torch import Tensor, nn

from dinado.bases.acceleration import checkpoint_layers
from dinado.bases.causal import BaseLM
from dinado.batch import RolloutBatch
from dinado.control.controlled_lm import ControlledLM
from dinado.parameters.parameterisation import CannotFold, Needs, Parameterisation


class ParametersCase(NamedTuple):
    """A parameterisation under test.

    Attributes:
        base: makes the base anew.
        inject: makes the parameterisation around a base, from a seed.
        policy: whether its row says that it is a policy.
    """

    base: Callable[[], BaseLM]
    inject: Callable[[BaseLM, int], Parameterisation]
    policy: bool


def perturb(parameters: Iterable[nn.Parameter], seed: int = 0) -> None:
    """Move weights off their start, by a tenth of a standard normal number."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream))


def moved(case: ParametersCase) -> tuple[Parameterisation, RolloutBatch]:
    """Return a parameterisation that is away from its start, in eval mode, and a batch."""
    base = case.base()
    batch = batch_of(base)
    scores = case.inject(base, 0).eval()
    perturb(scores.trained().values())
    return scores, batch


def teacher_forced(model: nn.Module, base: BaseLM, temperature: float = 1.0) -> list[Tensor]:
    """Return the log-probabilities ``[T, V]`` of each response of the batch from a plain pass of its own."""
    prompts = [prompt_tokens(base, PROMPTS[row]) for row in PROMPT_OF]
    return [plain_log_probs(model, ids, tokens, temperature) for ids, tokens in zip(prompts, RESPONSES, strict=True)]


def of_tokens(log_q: Sequence[Tensor]) -> Tensor:
    """Return the entries of the response tokens, padded to ``[B, T]``."""
    rows = [row.gather(1, torch.tensor(tokens)[:, None])[:, 0] for row, tokens in zip(log_q, RESPONSES, strict=True)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def starts_at_the_base(case: ParametersCase) -> None:
    """Check that injecting changes neither p nor the base's fingerprint, and q is p."""
    base = case.base()
    batch, fingerprint = batch_of(base), base.fingerprint
    log_p_BT = base.log_probs(batch)
    scores = case.inject(base, 0)
    assert scores.base is base and base.fingerprint == fingerprint
    assert scores.is_policy == case.policy, "the row and the class disagree on whether it is a policy"
    torch.testing.assert_close(scores.log_q(batch), log_p_BT, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores(batch).statistics.log_q, log_p_BT, rtol=0, atol=1e-5)
    assert scores.change_norm() == 0


def switches_off_and_on(case: ParametersCase) -> None:
    """Check that off() gives the pretrained base bit for bit, and that on() inside it gives q again."""
    base = case.base()
    batch = batch_of(base)
    log_p_BT = base.log_probs(batch)
    scores = case.inject(base, 0).eval()
    perturb(scores.trained().values())
    log_q_BT = scores.log_q(batch)
    assert (log_q_BT - log_p_BT).abs().max() > 1e-3, "the trained weights change nothing"
    with scores.off():
        assert torch.equal(base.log_probs(batch), log_p_BT)
        with scores.on():
            assert torch.equal(scores.log_q(batch), log_q_BT)
        assert torch.equal(base.log_probs(batch), log_p_BT)
    assert torch.equal(scores.log_q(batch), log_q_BT)


def gradients_reach_what_is_trained(case: ParametersCase) -> None:
    """Check that a loss of log q has a gradient to every trained weight and to no other."""
    scores, batch = moved(case)
    scores.train().log_q(batch).sum().backward()
    reached = {name for name, parameter in scores.named_parameters() if parameter.grad is not None}
    assert reached == set(scores.trained()) and reached
    assert all(parameter.grad.isfinite().all() for parameter in scores.trained().values() if parameter.grad is not None)


def statistics_agree(case: ParametersCase) -> None:
    """Check that log_q and the statistics, with and without a maximum, are those of one model."""
    scores, batch = moved(case)
    wanted, found = scores.log_q(batch), []
    for needs in (Needs(), Needs(maximum=True), Needs(maximum=True, taps=(0.5, 1.0)), Needs(taps=(0.5, 1.0))):
        scored = scores(batch, needs)
        torch.testing.assert_close(scored.statistics.log_q, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(scored.statistics.log_p, batch.log_p_BT, rtol=0, atol=1e-5)
        assert len(scored.taps) == len(needs.taps) and not any(tap.requires_grad for tap in scored.taps)
        assert scored.own_state_BTE.shape == (*wanted.shape, scores.own_width)
        if needs.maximum:
            found.append(scored.statistics.maximum)
    keep = batch.response_mask_BT.bool()
    for maximum in found:
        assert maximum is not None and (maximum - scored.statistics.score)[keep].min() > -1e-5
    assert all(state.shape[:2] == wanted.shape for state in scores.norm_input(batch, (1.0,)))


def decodes_what_was_trained(case: ParametersCase) -> None:
    """Check that decoding is the model of the statistics at strength 1, the base at 0, and p R^alpha between them."""
    scores, batch = moved(case)
    base = scores.base
    with scores.off():
        log_p = teacher_forced(base.model, base, base.temperature)
    log_q = teacher_forced(ControlledLM(scores, 1.0), base)
    torch.testing.assert_close(of_tokens(log_q), scores.log_q(batch).detach(), rtol=0, atol=1e-4)
    for row, expected in zip(teacher_forced(ControlledLM(scores, 0.0), base), log_p, strict=True):
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
    for row, p, q in zip(teacher_forced(ControlledLM(scores, 0.5), base), log_p, log_q, strict=True):
        torch.testing.assert_close(row, (0.5 * (p + q)).log_softmax(-1), rtol=0, atol=1e-4)
    ids_PS, mask_PS = base.encode_prompts(PROMPTS)
    texts = ControlledLM(scores, 0.5).generate(ids_PS, attention_mask=mask_PS, max_new_tokens=3, do_sample=False)
    assert texts.shape[0] == len(PROMPTS) and texts.shape[1] <= ids_PS.shape[1] + 3


def measures_its_change(case: ParametersCase) -> None:
    """Check that the norm of the change is above 0 once a weight has moved."""
    scores, _ = moved(case)
    norm = scores.change_norm()
    assert isinstance(norm, float) and 0 < norm < float("inf")


def a_checkpoint_brings_it_back(case: ParametersCase) -> None:
    """Check that the trained weights of one instance make another one, of another seed, the same model."""
    scores, batch = moved(case)
    state = {name: parameter.detach().clone() for name, parameter in scores.trained().items()}
    fresh = case.inject(case.base(), 1).eval()
    assert {name: p.shape for name, p in fresh.trained().items()} == {name: p.shape for name, p in state.items()}
    with torch.no_grad():
        for name, parameter in fresh.trained().items():
            parameter.copy_(state[name])
    torch.testing.assert_close(fresh.log_q(batch), scores.log_q(batch), rtol=0, atol=1e-6)


def a_folder_brings_it_back(case: ParametersCase) -> None:
    """Check that the saved controlled model is the same after loading, without and with a mixture of both models."""
    scores, _ = moved(case)
    ids_PS, mask_PS = scores.base.encode_prompts(PROMPTS)
    with TemporaryDirectory() as folder, torch.no_grad():
        ControlledLM(scores).save_pretrained(folder)
        again = ControlledLM.from_pretrained(folder, base=case.base())
        for alpha in (1.0, 0.5):
            found, wanted = (
                model(ids_PS, attention_mask=mask_PS, alpha=alpha).logits for model in (again, ControlledLM(scores))
            )
            assert torch.equal(found, wanted)


def folds_or_says_why_not(case: ParametersCase) -> None:
    """Check that a plain model computes the same, or the error gives the reason."""
    scores, batch = moved(case)
    base, log_q_BT = scores.base, scores.log_q(batch).detach()
    try:
        model = scores.fold()
    except CannotFold as reason:
        assert len(str(reason)) > 20 and "\n" not in str(reason)
        return
    assert case.policy, "an oracle network needs the base beside it"
    torch.testing.assert_close(of_tokens(teacher_forced(model, base, base.temperature)), log_q_BT, rtol=0, atol=1e-4)
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name, _ in case.base().model.named_parameters()}, "a plain model has the base's weights"


def groups_are_a_partition(case: ParametersCase) -> None:
    """Check that every trained weight is in one group of the optimiser; pairs and shared weights are trained."""
    scores = case.inject(case.base(), 0)
    trained = {id(parameter) for parameter in scores.trained().values()}
    grouped = [id(parameter) for group in scores.groups() for parameter in group]
    assert len(grouped) == len(set(grouped)) and set(grouped) == trained
    assert {id(parameter) for pair in scores.pairs() for parameter in (pair.a_rI, pair.b_Or)} <= trained
    assert {id(parameter) for parameter in scores.shared_with_norm()} <= trained


def layers_may_be_recomputed(case: ParametersCase) -> None:
    """Check that with recomputed layers the gradients are the same."""
    scores, batch = moved(case)
    if (model := scores.recomputable()) is None:
        return
    gradients = torch.autograd.grad(scores.log_q(batch).sum(), list(scores.trained().values()))
    checkpoint_layers(model)
    again = torch.autograd.grad(scores.log_q(batch).sum(), list(scores.trained().values()))
    for before, after in zip(gradients, again, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


CHECKS = (
    starts_at_the_base,
    switches_off_and_on,
    gradients_reach_what_is_trained,
    statistics_agree,
    decodes_what_was_trained,
    measures_its_change,
    a_checkpoint_brings_it_back,
    a_folder_brings_it_back,
    folds_or_says_why_not,
    groups_are_a_partition,
    layers_may_be_recomputed,
)
