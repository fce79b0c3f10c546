"""The controlled model q proportional to p * R^alpha as a transformers model with ``generate()``.

All models share one cache object, with the layers of trained models after the base's, so that cache operations of
``generate`` (beam reordering, batch selection, cropping) apply to all of them. A policy decodes without the base.

Axes: N rows, L new positions, V vocabulary, D width.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from dinado.bases.architecture import check_length
from dinado.bases.causal import BaseLM
from dinado.bases.joint_cache import check_kind, claim
from dinado.bases.shared_prefix import positions_PS
from dinado.control.generation_limits import check_alpha, check_call
from dinado.control.saved_control import MODEL_TYPE, read_saved, restore_scores, save_scores
from dinado.errors import UserError
from dinado.parameters.composed import Composed, Mixture
from dinado.parameters.parameterisation import Parameterisation

NOT_COMPUTED = ("labels", "inputs_embeds", "output_attentions", "output_hidden_states")
"""Arguments of other models' forward passes that ask for more than logits of token ids."""


class ControlledConfig(PreTrainedConfig):
    """The sizes that ``generate()`` reads: every layer of the cache keeps all keys and values."""

    model_type = MODEL_TYPE

    vocab_size: int = 1
    hidden_size: int = 1
    num_hidden_layers: int = 1
    max_position_embeddings: int | None = None


class ControlledLM(PreTrainedModel, GenerationMixin):
    """A transformers model that decodes with p * R^alpha.

    Args:
        scores: the trained parameterisation, or several composed.
        alpha: control strength; 0 is the base, 1 the trained model. A policy with another alpha runs the base too.
            ``forward`` and ``generate`` take another one for a single call.

    Raises:
        UserError: alpha is not a finite number.
    """

    config_class = ControlledConfig
    _supports_sdpa = True
    main_input_name = "input_ids"
    scores: Parameterisation | Composed

    def __init__(self, scores: Parameterisation | Composed, alpha: float = 1.0) -> None:
        base, alpha = scores.base, check_alpha(alpha)
        # The base's own config would bring what the wrapper has not: windows, experts, embeddings of its own.
        super().__init__(
            ControlledConfig(
                vocab_size=base.vocab_size,
                hidden_size=base.hidden_size,
                num_hidden_layers=Mixture.of(scores, alpha).num_layers,
                max_position_embeddings=base.context,
            )
        )
        self.scores = scores
        self.alpha = alpha
        # The base's own generation defaults (truncation, temperature) must not leak in: q is defined without them.
        self.generation_config = GenerationConfig(
            eos_token_id=list(base.eos_ids),
            pad_token_id=base.pad_id,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
        )

    @property
    def base(self) -> BaseLM:
        """The frozen base."""
        return self.scores.base

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        alpha: float | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits of q (log-probabilities up to a constant), ``[N, L, V]`` float32.

        Args:
            attention_mask: ``[N, past + L]``, 0 on left padding.
            position_ids: computed from the mask if not given.
            past_key_values: a plain dynamic cache, empty or filled by this model with an alpha that ran as many models.
            logits_to_keep: number of last positions to compute logits for; 0 for all.
            alpha: control strength of this call; None for the model's own.

        Raises:
            UserError: the text is longer than the base's context, the cache is of another kind or model, or an argument
                asks for what the model does not compute.
        """
        for name in NOT_COMPUTED:
            if unused.get(name) is not None and unused[name] is not False:
                raise UserError(f"{name}: a controlled model computes logits of token ids alone; leave it out")
        alpha = self.alpha if alpha is None else check_alpha(alpha)
        cache = DynamicCache() if past_key_values is None else past_key_values
        check_kind(cache)
        past, length = cache.get_seq_length(), input_ids.shape[1]
        mixture = Mixture.of(self.scores, alpha)
        claim(cache, mixture.num_layers, id(self.scores))
        if attention_mask is None:
            attention_mask = torch.ones((len(input_ids), past + length), dtype=torch.long, device=input_ids.device)
        if position_ids is None:
            position_ids = positions_PS(attention_mask)[:, -length:]
        if self.base.context is not None and attention_mask.shape[1] > self.base.context:
            check_length(self.base.context, int(position_ids.max()) + 1)
        where = {"attention_mask": attention_mask, "position_ids": position_ids}
        with nullcontext() if self.scores.switched_on else self.scores.on():
            logits = mixture.logits(input_ids, cache, logits_to_keep, where)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache if use_cache else None)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate from q; the arguments are those of :meth:`transformers.GenerationMixin.generate`, and ``alpha``.

        Raises:
            UserError: an argument asks for what base and control together cannot do; see
                :mod:`dinado.control.generation_limits`.
        """
        given = inspect.signature(super().generate).bind(*args, **kwargs).arguments
        check_call(given | given.pop("kwargs", {}), self.generation_config)
        return super().generate(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Raise :class:`UserError`: its paged cache holds the layers of one model."""
        raise UserError("continuous batching keeps the layers of one model in its cache; call generate() with a batch")

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Raise :class:`UserError`: a folder is uploaded as it was saved."""
        raise UserError("push_to_hub: call save_pretrained(folder) and upload the folder, as with `hf upload`")

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Save the trained weights, and in ``config.json`` what they belong to; the base stays where it is.

        The folder holds ``config.json`` and one safetensors file. An earlier save in it is replaced, at no moment
        leaving a mixture; any other content is refused.

        Raises:
            CheckpointError: the folder holds something else or cannot be written, or the weights have been folded.
            UserError: the model is composed of several runs.
        """
        if isinstance(self.scores, Composed):
            raise UserError(
                "several runs decode together here; save each of them, and compose them when they are loaded"
            )
        about = {
            "architectures": [type(self).__name__],
            "alpha": self.alpha,
            "generation": self.generation_config.to_diff_dict(),
        }
        save_scores(self.scores, Path(save_directory), about)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, base: BaseLM | str | Path | None = None) -> ControlledLM:
        """Load a folder that :meth:`save_pretrained` wrote, in evaluation mode; no code in it or its base is run.

        Args:
            base: the frozen base, or its folder or hub name; None for where it was when the folder was saved. Adapters
                are injected into a base that is given as an object.

        Raises:
            CheckpointError: it is no such folder, files are missing or damaged, or the base is another one.
        """
        saved = read_saved(Path(folder))
        scores = restore_scores(saved, base)
        model = cls(scores, saved.entry("alpha", (int, float)))
        model.generation_config = GenerationConfig.from_dict(saved.entry("generation", dict))
        return model.eval()
