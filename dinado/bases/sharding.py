"""Sharding of a base that does not fit one device: its layers are split over ranks and gathered one by one (FSDP2).

Only frozen weights are sharded. Trained weights are small and stay whole on every rank; they are synchronised and
saved as with DDP. Embeddings and output head stay whole as well, because objectives read the head a chunk at a time.

Layers are gathered by collectives, so all ranks have to run the base equally often. By themselves they would not:
responses differ in length, ranks in their share of the work, and batches in the number of passes. A rank that is done
with its own passes therefore keeps serving the collectives of the others (:meth:`Shards.in_step`).
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
    """The synchronisation of the ranks that hold shards of one base.

    Args:
        body: the transformer below the output head; every pass of the base runs it once.
        group: the process group of the ranks that hold a shard, for tensors on the CPU.
    """

    def __init__(self, body: nn.Module, group: dist.ProcessGroup) -> None:
        self._body = body
        self._group = group
        self._announces = False
        body.register_forward_pre_hook(self._announce, prepend=True)

    @contextmanager
    def in_step(self, answer: Callable[[Tensor], None] | None = None) -> Iterator[None]:
        """Run a block in which ranks may run the base unequal numbers of times.

        All ranks enter and leave the block together. The block must not wait for another rank in any other way. A
        nested block is part of the outer one.

        Args:
            answer: runs the base on the shortest text, token ids ``[1, 1]``, when another rank runs the base; None
                runs it without gradient.
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
        """Return the sum of a number over the ranks: how many of them are about to run the base."""
        total = torch.tensor(number)
        dist.all_reduce(total, group=self._group)
        return int(total)

    @torch.no_grad()
    def _pass(self, ids_11: Tensor) -> None:
        self._body(ids_11, use_cache=False)

    def _one_token(self) -> Tensor:
        return torch.zeros((1, 1), dtype=torch.long, device=next(self._body.parameters()).device)


def shard_base(base: BaseLM, processes: int, device: torch.device) -> None:
    """Shard every layer of a base over the processes of a machine; adapters stay whole.

    Args:
        base: not yet on the device, which holds one whole layer at a time. Its adapters are injected already, because
            peft would take the sizes of a shard for those of a layer.
        processes: the number of processes that share a base, all on one machine, so that no weights cross the network.
        device: where this process computes; the unsharded weights are still to be moved there.

    Raises:
        UserError: the model has no transformer layers.
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
    # The root shards nothing itself; it prefetches the next layer while one computes.
    known = type(body)
    fully_shard(body, mesh=mesh, ignored_params=whole)
    # FSDP2 changes the class of the body, and transformers looks up by class name which states it can return.
    type(body).__module__, type(body).__qualname__ = known.__module__, known.__qualname__
    group, _ = dist.new_subgroups(processes, backend="gloo")
    base.shards = Shards(body, group)


def bytes_held(model: nn.Module) -> tuple[int, int]:
    """Return the bytes of a model's weights that this process holds, and those of the whole model."""
    held = total = 0
    for parameter in model.parameters():
        here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held, total = held + here.nbytes, total + parameter.numel() * parameter.element_size()
    return held, total
