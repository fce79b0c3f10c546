"""Low-rank adapters inside the base (Hu et al., LoRA, 2021), through peft: one copy of the weights, two models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from dinado.bases.architecture import text_config
from dinado.bases.causal import BaseLM
from dinado.bases.peft_layers import fold_adapters
from dinado.bases.twins import check_plain
from dinado.errors import UserError
from dinado.objectives.reduction import Head, Link
from dinado.parameters.parameterisation import MatrixPair
from dinado.parameters.policy import Policy
from dinado.seeding import derive_seed


class Lora(Policy):
    """The base with adapters as policy; with the adapters off it is the base again.

    Args:
        base: adapters are injected into its model; its other weights stay frozen.
    """

    def __init__(self, base: BaseLM) -> None:
        super().__init__(base, base)
        base.add_switch(adapters_switched)

    @classmethod
    def inject(
        cls,
        base: BaseLM,
        *,
        link: Link,
        seed: int,
        r: int,
        alpha: float,
        dropout: float,
        targets: str | list[str],
    ) -> Self:
        """Inject adapters, zero at the start.

        Args:
            r: rank.
            alpha: the update of a weight matrix is alpha / r * B A.
            dropout: dropout rate on the adapter's input.
            targets: module names, or ``all-linear``.

        Raises:
            UserError: no module has such a name, the output embedding cannot be adapted, or the base has adapters.
        """
        check_plain(base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "lora"))
            _add_adapters(base, r=r, alpha=alpha, dropout=dropout, targets=targets)
        return cls(base)

    @property
    def head(self) -> Head:
        """The output head with the adapters on it, if it has any."""
        out, head = self.base.model.get_output_embeddings(), self.base.head
        for adapter in getattr(out, "active_adapters", ()):
            head = head._replace(weight_VD=head.weight_VD + out.get_delta_weight(adapter))
        return head

    def train(self, mode: bool = True) -> Self:
        """Switch the dropout of the adapters alone: a frozen base never applies its own."""
        super().train(mode)
        for name, module in self.base.model.named_modules():
            if name.endswith("lora_dropout"):
                module.train(mode)
        return self

    def fold(self) -> nn.Module:
        """Add every update to its weight matrix and remove the adapters."""
        model: nn.Module = self.base.model
        fold_adapters(model)
        self.base.remove_switch(adapters_switched)
        return model

    def save_adapter(self, folder: Path, base_name: str, revision: str | None) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, which peft and vLLM load onto the base."""
        from peft import get_peft_model_state_dict
        from peft.tuners.lora import LoraLayer
        from safetensors.torch import save_file

        model: Any = self.base.model
        ((name, config),) = model.peft_config.items()
        weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        named = {f"base_model.model.{key}": value.detach().cpu().contiguous() for key, value in weights.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = copy.copy(config)
        config.base_model_name_or_path, config.revision, config.inference_mode = base_name, revision, True
        # The modules by name, so that it matters to nobody how `all-linear` is resolved.
        adapted = [path for path, module in model.named_modules() if isinstance(module, LoraLayer)]
        config.target_modules, config.exclude_modules = _shortest_names(model, adapted), None
        config.save_pretrained(folder)

    def change_norm(self) -> float:
        """Compute ||scale B A||_F over all adapters from r x r matrices alone: ||BA||_F^2 = tr(B'B A A')."""
        total = 0.0
        for pair in self.pairs():
            a_rI, b_Or, scale = pair.a_rI.detach(), pair.b_Or.detach(), pair.scale
            total += scale**2 * float(((b_Or.T @ b_Or) * (a_rI @ a_rI.T)).sum())
        return total**0.5

    def pairs(self) -> list[MatrixPair]:
        """List A and B of every adapter, with the scale alpha / r."""
        from peft.tuners.lora import LoraLayer

        return [
            MatrixPair(module.lora_A[name].weight, module.lora_B[name].weight, scale)
            for module in self.base.model.modules()
            if isinstance(module, LoraLayer)
            for name, scale in module.scaling.items()
        ]


@contextmanager
def adapters_switched(model: nn.Module, on: bool) -> Iterator[None]:
    """Switch the adapters inside a model on or off for a while.

    peft's own switch also toggles requires_grad, which DistributedDataParallel must not see change.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = not on
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def _shortest_names(model: nn.Module, adapted: Sequence[str]) -> list[str]:
    """Return the last parts of the adapted modules' paths, or the whole paths where other modules share those."""
    last = {path.rpartition(".")[2] for path in adapted}
    inside = tuple(f"{path}." for path in adapted)  # the adapter's own parts
    others = (path for path, _ in model.named_modules() if path not in adapted and not path.startswith(inside))
    shared = any(path.rpartition(".")[2] in last for path in others)
    return sorted(adapted if shared else last)


def _add_adapters(base: BaseLM, *, r: int, alpha: float, dropout: float, targets: str | list[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    excluded = [name for name, module in base.model.named_modules() if _is_router(module)]
    excluded += _beside_the_decoder(base.model)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        exclude_modules=excluded or None,
        task_type="CAUSAL_LM",
    )
    try:
        inject_adapter_in_model(config, base.model)
    except ValueError as error:
        raise UserError(f"lora.targets={targets}: {str(error).splitlines()[0]}") from None
    for parameter in base.model.parameters():
        if parameter.requires_grad and parameter.dtype.itemsize < 4:
            parameter.data = parameter.data.float()  # a step of an adapter is too small for shorter types
    out = base.model.get_output_embeddings()
    if hasattr(out, "active_adapters"):
        # Folding the adapters would change the input embeddings too, and dropout before them would not be applied.
        if out.weight is base.model.get_input_embeddings().weight:
            raise UserError(
                "lora.targets adapts the output embedding, which this base reads its input with; leave it out"
            )
        if dropout:
            raise UserError("lora.targets adapts the output embedding, which lora.dropout cannot reach; set it to 0")


@torch.no_grad()
def _is_router(module: nn.Module) -> bool:
    """Tell whether a linear layer returns more than one tensor, as some routers of experts do; no adapter fits it."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return False
    try:
        return not isinstance(module(module.weight.new_zeros((2, module.in_features))), torch.Tensor)
    except Exception:  # a layer with an interface of its own
        return True


def _beside_the_decoder(model: Any) -> list[str]:
    """List the linear layers of a multimodal model that text does not pass, such as those of a vision tower."""
    if text_config(model) is model.config:
        return []
    passed = {id(model.get_output_embeddings()), *(id(module) for module in model.get_decoder().modules())}
    return [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) not in passed]
