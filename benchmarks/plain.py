"""A plain implementation of the training step, which the speed benchmarks compare ours with.

It works as published code does: every prompt is repeated for each of its rollouts, all rows are padded to one
rectangle, the frozen base runs at every step, and some ten tensors over [rows, positions, vocabulary] are formed,
prompt and padding positions included. The loss is the same function of the same numbers, and the tests check that both
implementations have the same gradients.

Axes: B rows, S prompt tokens, L = S + T positions, T response tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dinado.bases.shared_prefix import positions_PS
from dinado.batch import RolloutBatch
from dinado.control.oracle_network import NetworkStates
from dinado.objectives.values import TokenValues
from dinado.parameters.network import Network
from dinado.parameters.policy import Policy
from lightning_modules.rollout_method import RolloutMethod
from lightning_modules.value_loss import value_loss


def plain_loss(method: RolloutMethod, batch: RolloutBatch) -> Tensor:
    """Compute the loss of a step of NADO, Soft or Merge (L-infinity norm over the whole vocabulary, learned root)."""
    ids_BL = torch.cat([batch.prompt_ids_PS[batch.prompt_of_row_B], batch.response_BT], 1)
    mask_BL = torch.cat([batch.prompt_mask_PS[batch.prompt_of_row_B], batch.response_mask_BT], 1)
    where = {"attention_mask": mask_BL, "position_ids": positions_PS(mask_BL)}
    scores, base = method.scores, method.base
    with torch.no_grad(), scores.off():
        out = base.model(ids_BL, output_hidden_states=True, use_cache=False, **where)
        log_p_BLV = (out.logits.float() / base.temperature).log_softmax(-1)
    if isinstance(scores, Policy):
        policy = scores.policy.model(ids_BL, use_cache=False, **where)
        log_q_BLV = (policy.logits.float() / base.temperature).log_softmax(-1)
        score_BLV = log_q_BLV - log_p_BLV
        norm_states = [out.hidden_states[base.layer(tap)].detach() for tap in method.config.objective.norm.taps]
    else:
        score_BLV, own_BLE = _network(scores, out, ids_BL, where)
        norm_states = [own_BLE]
    if method.norm_head is None:
        log_r_BLV = F.logsigmoid(score_BLV)
    else:
        norm_BL1 = score_BLV.amax(-1, keepdim=True)
        log_beta_BL1 = F.logsigmoid(method.norm_head(norm_states))[..., None]
        log_r_BLV = log_beta_BL1 + (score_BLV - norm_BL1)
    log_v_BL = (log_p_BLV + log_r_BLV).logsumexp(-1)
    start, length = batch.prompt_ids_PS.shape[1] - 1, batch.response_BT.shape[1]
    log_r_BT = log_r_BLV[:, start : start + length].gather(-1, batch.response_BT[..., None])[..., 0]
    values = TokenValues(log_r_BT, log_v_BL[:, start : start + length])
    loss = value_loss(values, batch.score_B, batch.response_mask_BT, None, method.config.objective)
    return (loss.total_B * batch.weight_B).sum() / batch.weight_total


def _network(scores: Network, out: object, ids_BL: Tensor, where: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    network, base = scores.network, scores.base
    taps = [out.hidden_states[base.layer(tap)] for tap in scores.taps]  # type: ignore[attr-defined]
    features = network.features(taps, ids_BL, base.head)
    own_BLE = network.body(inputs_embeds=features, use_cache=False, **where).last_hidden_state
    head = network.head(base.head)
    hidden_BLD = network.score_hidden(NetworkStates(own_BLE, None))
    return F.linear(hidden_BLD.to(head.weight_VD.dtype), head.weight_VD, head.bias_V).float() * head.scale, own_BLE
