"""A base that does not fit one device: its layers lie in parts on several, and come together one at a time (FSDP2).

Only what is frozen is shared out. What is trained is small, stays whole on every process and goes DDP's way, as do
checkpoints. Embeddings and output head stay whole as well, because objectives read the head a chunk at a time.

Layers come together by collectives, so all processes have to pass through the base equally often. They would not: texts
end sooner or later, shares of the work differ, and so does the number of passes that a batch takes. Hence a process
that is done with its own passes goes on answering those of the others (:meth:`Shards.in_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dinado.bases.acceleration import decoder_layers
from dinado.bases.causal import BaseLM
from dinado.errors import UserError


class Shards:
    """What keeps the processes that hold parts of one base in step.

    Args:
        body: the transformer below the output head; every pass of the base goes through it once.
        group: the processes that hold a part, for numbers on the CPU.
    """

    def __init__(self, body: nn.Module, group: dist.ProcessGroup) -> None:
        self._body = body
        self._group = group
        self._announces = False
        body.register_forward_pre_hook(self._announce, prepend=True)

    @contextmanager
    def in_step(self, answer: Callable[[Tensor], None] | None = None) -> Iterator[None]:
        """Run a block in which processes pass through the base as often as each of them likes.

        All of them enter and leave it together. The block must not wait for another process in any other way. A block
        inside such a block is part of that.

        Args:
            answer: passes through the base with the shortest text there is, token ids ``[1, 1]``, when another process
                does; None passes without gradient.
        """
        if self._announces:
            yield
            return
        self._announces = True
        try:
            yield
            self._announces = False
            while self._sum(0):
                (answer or self._pass)(self._one_token())
        finally:
            self._announces = False

    def _announce(self, *unused: Any) -> None:
        if self._announces:
            self._sum(1)

    def _sum(self, number: int) -> int:
        """The sum over the processes: how many of them are about to pass through the base."""
        total = torch.tensor(number)
        dist.all_reduce(total, group=self._group)
        return int(total)

    @torch.no_grad()
    def _pass(self, ids_11: Tensor) -> None:
        self._body(ids_11, use_cache=False)

    def _one_token(self) -> Tensor:
        return torch.zeros((1, 1), dtype=torch.long, device=next(self._body.parameters()).device)


def shard_base(base: BaseLM, processes: int, device: torch.device) -> None:
    """Leave each of a machine's processes its part of every layer of a base; adapters in them stay whole.

    Args:
        base: not yet on the device, which holds one whole layer at a time, and with the adapters that it is to have:
            peft would take the sizes of a part for those of a layer.
        processes: how many of them share a base, those of one machine: nothing of it crosses the network.
        device: where this process computes; what stays whole is still to be moved there.

    Raises:
        UserError: the model has no layers to do that with.
    """
    layers, body = decoder_layers(base.model), base.model.base_model
    if not layers:
        raise UserError("trainer.shard_base: this base has no transformer layers; set trainer.shard_base=false")
    machines = dist.get_world_size() // processes
    mesh = init_device_mesh(device.type, (machines, processes), mesh_dim_names=("machine", "part"))["part"]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    whole = {p for p in base.model.parameters() if p.requires_grad or id(p) not in inside}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    # The root holds nothing itself; it lets the next layer come while one computes.
    known = type(body)
    fully_shard(body, mesh=mesh, ignored_params=whole)
    # FSDP2 makes another class of it, and transformers knows by the name of a class which states it can hand out.
    type(body).__module__, type(body).__qualname__ = known.__module__, known.__qualname__
    group, _ = dist.new_subgroups(processes, backend="gloo")
    base.shards = Shards(body, group)


def bytes_held(model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's weights that this process holds, and of all of it."""
    held = total = 0
    for parameter in model.parameters():
        here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held, total = held + here.nbytes, total + parameter.numel() * parameter.element_size()
    return held, total
