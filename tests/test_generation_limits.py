"""What ``generate()`` of a controlled model refuses, in one line each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import base_lm, random_lora, random_network
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StaticCache

from dinado.control.controlled_lm import ControlledLM
from dinado.errors import UserError

IDS = torch.tensor([[3, 1, 2, 5, 5, 4]])


def run(model: ControlledLM, ids: Tensor = IDS, **settings: Any) -> None:
    model.generate(ids, **({"max_new_tokens": 4, "attention_mask": torch.ones_like(ids)} | settings))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cache_implementation": "static"}, "cache_implementation=static"),
        ({"cache_implementation": "offloaded"}, "cache_implementation=offloaded"),
        ({"cache_implementation": "quantized"}, "cache_implementation=quantized"),
        ({"cache_implementation": "paged"}, "cache_implementation=paged"),
        ({"generation_config": GenerationConfig(cache_implementation="static")}, "cache_implementation=static"),
        ({"past_key_values": DynamicCache(offloading=True)}, "that base and control cannot share"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"dola_layers": "high"}, "DoLa"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group beam search"),
        ({"num_beams": 2, "num_beam_groups": 2}, "group beam search"),
        ({"force_words_ids": [[3]], "num_beams": 2}, "constrained beam search"),
        ({"custom_generate": "someone/decoding"}, "code from a hub"),
        ({"assistant_early_exit": 1}, "assistant_early_exit"),
        ({"prompt_lookup_num_tokens": 2, "num_beams": 2}, "set num_beams=1"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"output_attentions": True}, "output_attentions"),
        ({"alpha": float("nan")}, "one finite number"),
        ({"alpha": "1"}, "one finite number"),
        ({"alpha": 0.5, "guidance_scale": 1.5}, "build ControlledLM"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}, "pad prompts on the left"),
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, "dimensions"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "give input_ids"),
    ],
)
def test_what_would_be_wrong_is_refused_in_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        run(ControlledLM(random_network(base_lm("gpt2"))), **settings)
    assert "\n" not in str(caught.value)


def test_an_assistant_takes_no_alpha() -> None:
    model = ControlledLM(random_network(base_lm("gpt2")))
    with pytest.raises(UserError, match="build ControlledLM"):
        run(model, assistant_model=model.base.model, alpha=0.5)


def test_caches_of_others_are_refused() -> None:
    model = ControlledLM(random_lora(base_lm("gpt2")))
    static = StaticCache(config=model.base.model.config, max_cache_len=20)
    with pytest.raises(UserError, match="StaticCache"):
        run(model, past_key_values=static)
    with pytest.raises(UserError, match="StaticCache"), torch.no_grad():
        model(IDS, past_key_values=static)
    of_base, own = DynamicCache(), DynamicCache()
    with torch.no_grad():
        model.base.model(IDS, past_key_values=of_base)
        model(IDS, past_key_values=own)
    longer = torch.cat([IDS, IDS], 1)
    with pytest.raises(UserError, match="another model"):
        run(model, longer, past_key_values=of_base)
    with pytest.raises(UserError, match="another alpha"):
        run(model, longer, past_key_values=own, alpha=0.5)
    with pytest.raises(UserError, match="holds 6 tokens"):
        run(model, past_key_values=own)
    wide = DynamicCache()
    with torch.no_grad():
        model(IDS, past_key_values=wide, alpha=0.5)
        model(IDS[:, :1], past_key_values=wide)
        with pytest.raises(UserError, match="another alpha"):
            model(IDS[:, :1], past_key_values=wide, alpha=0.5)


def test_other_entry_points() -> None:
    model = ControlledLM(random_network(base_lm("markov")))
    with pytest.raises(UserError, match="call generate"):
        model.generate_batch([[1, 2, 3]])
    with pytest.raises(UserError, match="save_pretrained"):
        model.push_to_hub("somewhere")
    with pytest.raises(UserError, match="labels"):
        model(IDS, labels=IDS)
    with pytest.raises(UserError, match="one finite number"):
        ControlledLM(model.scores, float("inf"))
