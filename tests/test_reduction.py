"""The derivative of the pass over the vocabulary, against finite differences; and what lower precision does to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vocabulary_case import LINKS

from dinado.objectives import reduction
from dinado.objectives.reduction import Head, reduce_vocabulary

N, V, D, E, K = 5, 7, 4, 3, 2


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tokens() -> Tensor:
    """Two a position, the same one twice somewhere."""
    found = torch.randint(V, (N, K), generator=torch.Generator().manual_seed(1))
    found[0, 1] = found[0, 0]
    return found


def base(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Head]:
    return draw(N, D, seed=2, dtype=dtype), Head(draw(V, D, seed=3, dtype=dtype), draw(V, seed=4, dtype=dtype), 0.7)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("support", [None, 0, 3])
@pytest.mark.parametrize("link", [*LINKS, "alone"])
def test_derivatives(
    link: str, support: int | None, trained: bool, bias: bool, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``alone`` is a policy without its base; ``support`` None asks for no maximum."""
    monkeypatch.setattr(reduction, "CHUNK_ELEMENTS", 2 * V)
    inputs = [draw(N, E, seed=5), draw(V, E, seed=6), *([draw(V, seed=7)] if bias else [])]
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(trained or index == 0)

    def compute(score_NE: Tensor, weight_VE: Tensor, bias_V: Tensor | None = None) -> tuple[Tensor, ...]:
        found = reduce_vocabulary(
            score_NE,
            Head(weight_VE, bias_V, 1.3, cap),
            tokens(),
            "log_ratio" if link == "alone" else link,  # type: ignore[arg-type]
            None if link == "alone" else (base()[0], base()[1]._replace(cap=cap)),
            maximum=support is not None,
            support=support or 0,
        )
        assert all(values.dtype == torch.float64 for values in found)
        return tuple(values for values in found if values.requires_grad)

    assert torch.autograd.gradcheck(compute, inputs)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("link", LINKS)
def test_bfloat16_states_are_reduced_in_float32(link: str, trained: bool) -> None:
    def gradients(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        score_NE = draw(N, E, seed=5, dtype=dtype).requires_grad_()
        weight_VE = draw(V, E, seed=6, dtype=dtype).requires_grad_(trained)
        found = reduce_vocabulary(
            score_NE,
            Head(weight_VE),
            tokens(),
            link,
            base(dtype),
            maximum=True,  # type: ignore[arg-type]
        )
        wanted = [score_NE, weight_VE] if trained else [score_NE]
        grads = torch.autograd.grad(found.score_NK.sum() + found.maximum_N.sum(), wanted)
        assert [grad.dtype for grad in grads] == [dtype] * len(wanted)
        return found.score_NK, list(grads)

    exact, exact_grads = gradients(torch.float32)
    rough, rough_grads = gradients(torch.bfloat16)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.1)
    for a, b in zip(rough_grads, exact_grads, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.15)


@pytest.mark.parametrize("trained", [False, True])
def test_mixed_precision_holds_in_the_backward_pass(trained: bool) -> None:
    """Logits computed again are those of the forward pass: the two cancel in a gradient that is 0."""
    score_NE = draw(N, E, seed=5, dtype=torch.float32).requires_grad_()
    weight_VE = draw(V, E, seed=6, dtype=torch.float32).requires_grad_(trained)
    asked = torch.arange(V).expand(N, V)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reduce_vocabulary(score_NE, Head(weight_VE), asked, "log_ratio")
    # The gradient of sum_v q(v) log q(v) with q held fixed is 0; with logits of another precision it is not.
    q_NV = found.score_NK.detach().exp()
    (grad_NE,) = torch.autograd.grad((q_NV * found.score_NK).sum(), score_NE)
    assert found.score_NK.dtype == torch.float32
    # With a frozen matrix the product of q with it was formed in bfloat16.
    assert grad_NE.abs().max() < (1e-5 if trained else 2e-2)


def test_no_tokens_at_all() -> None:
    score_0E = torch.zeros(0, E, requires_grad=True)
    found = reduce_vocabulary(score_0E, Head(draw(V, E, dtype=torch.float32)), torch.zeros(0, K).long(), "log_ratio")
    assert found.score_NK.shape == (0, K)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("support", [0, 3])
@pytest.mark.parametrize("link", LINKS)
def test_tokens_that_tie_share_the_gradient_of_the_maximum(
    link: str, support: int, trained: bool, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where training begins all scores tie; the published maximum spreads its gradient over them, as amax does."""
    monkeypatch.setattr(reduction, "CHUNK_ELEMENTS", 2 * V)
    base_ND, base_head = base()
    base_head = base_head._replace(cap=cap)
    score_NE, weight_VE, bias_V = draw(N, E, seed=5), draw(V, E, seed=6), torch.zeros(V, dtype=torch.float64)
    if link == "log_ratio":  # a policy that is the base still
        score_NE, (weight_VE, bias_V, *_) = base_ND.clone(), base_head
        weight_VE, bias_V = weight_VE.clone(), bias_V.clone()
    else:  # a head of zeros; in one row the scores differ
        weight_VE = torch.zeros_like(weight_VE)
        weight_VE[2] = draw(E, seed=8)
        score_NE[:-1] = 0
    inputs = [score_NE, weight_VE, bias_V]
    for index, tensor in enumerate(inputs):
        tensor.requires_grad_(trained or index == 0)
    head = Head(weight_VE, bias_V, 0.7, cap)
    found = reduce_vocabulary(score_NE, head, tokens(), link, (base_ND, base_head), maximum=True, support=support)  # type: ignore[arg-type]
    logits_NV, p_NV = head.logits(score_NE).double(), base_head.logits(base_ND).double().log_softmax(-1)
    score_NV = logits_NV.log_softmax(-1) - p_NV if link == "log_ratio" else reduction.link_scores(link, logits_NV)  # type: ignore[arg-type]
    if support:
        score_NV = score_NV.gather(1, p_NV.topk(support, 1).indices)
    if link == "log_ratio":
        assert found.maximum_N.tolist() == pytest.approx([0.0] * N, abs=1e-12)
        score_NV = score_NV.round(decimals=9) + (score_NV - score_NV.detach())
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    weight_N = torch.arange(1.0, N + 1, dtype=torch.float64)
    ours = torch.autograd.grad(found.maximum_N @ weight_N, wanted)
    theirs = torch.autograd.grad(score_NV.amax(1) @ weight_N, wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
