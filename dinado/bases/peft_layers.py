"""Layers that peft has put around a model's own."""

from __future__ import annotations

from typing import Any


def fold_adapters(model: Any) -> bool:
    """Add every adapter to the weights of its layer and remove it; return whether there was one."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = False
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            plain = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], plain)
        found = True
    # transformers would otherwise save, and switch, adapters that are no longer there.
    vars(model).pop("peft_config", None)
    if getattr(model, "_hf_peft_config_loaded", False):
        model._hf_peft_config_loaded = False
    return found
