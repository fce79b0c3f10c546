"""The control as a logits processor, for ``generate()`` calls of the base model itself.

A processor sees token ids and scores, and no cache: it keeps one of its own, of base and control, and brings it up to
date by comparing the ids with those of the call before. Whatever happened in between (a token more, beams that changed
places, rejected candidates, another prompt), the longest beginning that has been read is kept.

Axes: P prompts, S prompt tokens, N rows, M rows of the call before, L tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from dinado.bases.architecture import check_length
from dinado.bases.path_check import TOLERANCE
from dinado.bases.shared_prefix import positions_PS
from dinado.control.generation_limits import check_alpha
from dinado.errors import UserError
from dinado.parameters.composed import Mixture
from dinado.parameters.parameterisation import Parameterisation


class ControlLogitsProcessor(LogitsProcessor):
    """Turn the scores of the base into those of p * R^alpha, normalised, so that beams compare as they should.

    With adapters inside the base, call ``generate()`` within ``scores.off()``. The base's own temperature is applied
    here, so the call's temperature stays 1. Built-in processors that run before this one see log p and not log q: those
    that forbid tokens do the same to both, a repetition penalty does not.

    Args:
        scores: the trained parameterisation.
        alpha: control strength.
        attention_mask: the mask ``[P, S]`` of the call's prompts, which processors are not given. Without it, leading
            padding tokens are padding; where the padding token may also begin a text, they are refused instead.

    Raises:
        UserError: alpha is not a finite number.
    """

    def __init__(self, scores: Parameterisation, alpha: float = 1.0, *, attention_mask: Tensor | None = None) -> None:
        self.scores = scores
        self.alpha = check_alpha(alpha)
        self._prompt_mask_PS = attention_mask
        self._prompts: Tensor | None = None
        self._cache, self._version = DynamicCache(), -1
        self._ids_ML = torch.zeros((0, 0), dtype=torch.long)
        self._mask_ML = self._ids_ML

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores ``[N, V]`` plus ``log q - log p`` of the next token.

        Args:
            input_ids: prompt and response so far, ``[N, L]``.
            scores: what the base gave for them, up to a constant.

        Raises:
            UserError: the padding is not known, the base's adapters are on, or the scores are not the base's.
        """
        base = self.scores.base
        if base.has_adapters and base.switched_on:
            raise UserError(
                "the base's adapters are on, so generate() runs the policy; call it inside `with scores.off():`"
            )
        if scores.shape[1] != base.vocab_size or input_ids.shape[1] == 0:
            raise UserError(
                f"generate() of another model, or without token ids: {scores.shape[1]} scores for "
                f"{input_ids.shape[1]} tokens, and the base has {base.vocab_size}"
            )
        mask_NL = self._mask(input_ids)
        kept = self._keep_common(input_ids, mask_NL)
        if base.context is not None:
            check_length(base.context, int(mask_NL.sum(1).max()))
        where = {"attention_mask": mask_NL, "position_ids": positions_PS(mask_NL)[:, kept:]}
        # A pass that is interrupted fills a part of the layers; nothing of the cache counts until it is done.
        self._ids_ML = input_ids.new_zeros((0, 0))
        with self.scores.on():
            both = Mixture.of(self.scores, 1.0, asks_base=True)
            log_p_NLV, log_r_NLV = both.log_p_and_r(input_ids[:, kept:], self._cache, 1, where)
        self._ids_ML, self._mask_ML = input_ids.clone(), mask_NL
        # What generate() sees is at temperature 1, whatever temperature is part of p.
        plain_NV = (log_p_NLV[:, -1] * base.temperature).log_softmax(1)
        if kept == 0 or kept + 1 < input_ids.shape[1]:
            self._check_scores(scores, plain_NV)
        log_q_NV = (log_p_NLV[:, -1] + self.alpha * log_r_NLV[:, -1]).log_softmax(1)
        return scores + (log_q_NV - plain_NV).to(scores.dtype)

    def _mask(self, ids_NL: Tensor) -> Tensor:
        """Return 1 where a token is real, ``[N, L]``: as given, or with leading padding tokens left out."""
        base, given_PS = self.scores.base, self._prompt_mask_PS
        if given_PS is None:
            mask_NL = ((ids_NL != base.pad_id).cumsum(1) > 0).long()
            begins = {*base.eos_ids, base.tokenizer.bos_token_id}
            if base.pad_id in begins and not bool(mask_NL[:, 0].all()):
                raise UserError(
                    "a text begins with the padding token, which is also an ordinary token of this base; give "
                    "ControlLogitsProcessor the attention_mask of the prompts"
                )
            return mask_NL
        rows, width = given_PS.shape
        repeats, left = divmod(len(ids_NL), rows)
        first = self._prompts is None
        if left or ids_NL.shape[1] < width or (first and ids_NL.shape[1] > width):
            raise UserError(
                f"attention_mask is {rows} x {width}, and the call has {len(ids_NL)} x {ids_NL.shape[1]} tokens; give "
                "the mask of the call's own prompts"
            )
        mask_NS = given_PS.to(ids_NL.device).long().repeat_interleave(repeats, 0)
        prompts = torch.where(mask_NS > 0, ids_NL[:, :width], -1)[::repeats]
        if self._prompts is not None and not torch.equal(prompts, self._prompts):
            raise UserError("attention_mask belongs to other prompts; make a new ControlLogitsProcessor for each call")
        self._prompts = prompts
        return torch.cat([mask_NS, torch.ones_like(ids_NL[:, width:])], 1)

    def _keep_common(self, ids_NL: Tensor, mask_NL: Tensor) -> int:
        """Cut the cache to what all rows share with some row of the call before; return its length, at most L - 1."""
        width = min(self._ids_ML.shape[1], ids_NL.shape[1] - 1)
        # An optimiser step since the call before has made the cached states stale.
        version, self._version = self._version, sum(p._version for p in self.scores.parameters())
        kept = 0
        if width and version == self._version and self._ids_ML.device == ids_NL.device:
            pairs = ((ids_NL, mask_NL), (self._ids_ML, self._mask_ML))
            now, before = (torch.where(mask > 0, ids, -1)[:, :width] for ids, mask in pairs)
            same_NM = torch.stack([(row == before).long().cumprod(1).sum(1) for row in now])
            longest_N, from_N = same_NM.max(1)
            kept = int(longest_N.min())
        if kept == 0:
            self._cache = DynamicCache()
            return 0
        if not torch.equal(from_N, torch.arange(len(self._ids_ML), device=from_N.device)):
            self._cache.batch_select_indices(from_N)
        self._cache.crop(kept - self._ids_ML.shape[1])
        return kept

    def _check_scores(self, scores_NV: Tensor, plain_NV: Tensor) -> None:
        """Refuse scores of which most differ from the base's; processors that ran before may have changed a few."""
        difference_NV = scores_NV.float() - plain_NV
        difference_NV = difference_NV.masked_fill(~difference_NV.isfinite(), torch.nan)
        off_NV = (difference_NV - difference_NV.nanmedian(1, keepdim=True).values).abs()
        limit = TOLERANCE.get(self.scores.base.model.dtype, 0.5)
        typical = off_NV.nanmedian(1).values
        if bool((typical > limit).any()):
            raise UserError(
                f"the scores are not those of the base (they differ by {float(typical.nan_to_num().max()):.2g} nats): "
                "the call has another model, padding or temperature, or a cache with a beginning that input_ids lack"
            )
