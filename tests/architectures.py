"""Tiny random models of every causal architecture of transformers."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, OPTConfig, OPTForCausalLM
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

V = 50
WINDOW = 6
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "n_embed": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "embed_dim": 32,
    "emb_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "d_kv": 8,
    "rotary_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "sliding_window": WINDOW,
    "window_size": WINDOW,
    "initializer_range": 0.3,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "encoder_no_repeat_ngram_size": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 48,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "index_topk": 64,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": V,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "attention_dropout": 0.0,
    "dropout": 0.0,
}
"""Sizes by the names that configurations have for them."""
FIXES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    "bert": {"is_decoder": False},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma2": {"attn_logit_softcapping": None, "final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 3.0},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "zamba": {"layer_types": ["linear_attention", "hybrid"]},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": WINDOW},
}
"""What single architectures need besides."""

SPREAD = {"hrm_text": 0.1}
"""Standard deviation of the weights, where 0.3 amplifies the rounding of many passes through the same layers."""


def fields(kind: type) -> set[str]:
    return set(getattr(kind, "__dataclass_fields__", ())) | set(inspect.signature(kind.__init__).parameters)


def small_config(kind: type, **extra: Any) -> Any:
    """Return a small configuration of a class, its text part small as well."""
    names = fields(kind)
    settings = {name: value for name, value in SIZES.items() if name in names} | FIXES.get(kind.model_type, {}) | extra
    if "kv_lora_rank" in names:  # latent attention has as many keys as queries
        settings["num_key_value_heads"] = SIZES["num_attention_heads"]
    for name, part in getattr(kind, "sub_configs", {}).items():
        if name in ("text_config", "decoder", "vision_config") and part.__name__ != "AutoConfig":
            settings[name] = small_config(part).to_dict()
    return kind(**settings)


def architectures() -> dict[str, tuple[type, type]]:
    """Return the configuration and model class of every causal architecture, by its name."""
    found = {}
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        found.setdefault(kind.model_type, (kind, model[0] if isinstance(model, tuple) else model))
    return found


def build_multimodal() -> Gemma3ForConditionalGeneration:
    """Return a tiny Gemma 3 with a vision tower, as the published models from 4B on have."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"image_token_index": 40, "boi_token_index": 41, "eoi_token_index": 42, "mm_tokens_per_image": 4}
    config = Gemma3Config(
        text_config=small_config(Gemma3TextConfig).to_dict(),
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        **tokens,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Gemma3ForConditionalGeneration(config).eval()
        for parameter in model.get_decoder().parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def build_narrow() -> OPTForCausalLM:
    """Return a tiny OPT whose embeddings are narrower than its layers, as OPT-350m's are."""
    config = small_config(OPTConfig)
    config.word_embed_proj_dim, config.do_layer_norm_before = 16, False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return OPTForCausalLM(config).eval()


def build(name: str, *, fill: bool = True) -> Any:
    """Return a tiny random model whose predictions are far from uniform; without ``fill`` as it was initialised."""
    kind, model_class = architectures()[name]
    transformers_logging.set_verbosity_error()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = model_class(small_config(kind)).eval()
        with torch.no_grad():
            for parameter in model.parameters() if fill else ():
                if parameter.ndim > 1 and parameter.is_floating_point():
                    parameter.normal_(0, SPREAD.get(name, 0.3))
    return model
