"""A device that computes on the CPU and is as strict as a GPU about where tensors lie.

An operation on tensors of both places is an error, as on a GPU, unless one of them is a scalar or an index; numbers
come back with ``.cpu()``, ``.tolist()`` or ``.item()`` alone. Kernels, precision, streams and NCCL are not pretended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
aten = torch.ops.aten
MIXED = (
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
)
"""Operations that a GPU allows on tensors of both places."""
_library = torch.library.Library("aten", "IMPL")
moved = {"here": 0, "there": 0}
"""Number of copies to the device and from it."""


class Pretended(torch.Tensor):
    """A tensor on the device; ``inner`` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        """Wrap a CPU tensor."""
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device(),
            requires_grad=False,
        )
        wrapped.inner = inner
        return wrapped

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.inner!r})"

    def tolist(self) -> Any:
        """Return plain numbers, which torch does for no subclass."""
        return self.inner.tolist()

    def data_ptr(self) -> int:
        """Return where the numbers lie."""
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Copy the numbers; torch would copy a storage, of which there is none."""
        copied: torch.Tensor = Pretended(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save the numbers, as a checkpoint of a GPU's tensors does."""
        return self.inner.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Sees what makes tensors on the device out of nothing or out of a CPU tensor."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


def device() -> torch.device:
    return torch.device(NAME, 0)


def computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the numbers, after a check of the places."""
    leaves = tree_leaves((args, kwargs))
    there = any(isinstance(leaf, Pretended) for leaf in leaves)
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Pretended)]
    if there and function not in MIXED and any(leaf.dim() for leaf in here):
        shapes = [(tuple(leaf.shape), str(leaf.device)) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, but found {shapes}")
    if function is aten._fused_sdp_choice.default:
        return 0  # the plain formula
    target = kwargs.get("device")
    wanted = there if target is None else torch.device(target).type == NAME
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
        if function is aten._to_copy.default and wanted != there:
            moved["there" if wanted else "here"] += 1
    kwargs.pop("pin_memory", None) if there else None
    plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Pretended) else leaf, (args, kwargs))
    out = function(*plain[0], **plain[1])
    if not wanted:
        return out
    out = tree_map(lambda leaf: Pretended(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)
    return return_and_correct_aliasing(function, args, kwargs, out) if there else out


@contextmanager
def pretending() -> Iterator[torch.device]:
    """Let tensors be moved to the device within the context."""
    _register()
    with Mode():
        yield device()


def _register() -> None:
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    module = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        synchronize=lambda *args: None,
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        get_rng_state=lambda *args: torch.get_rng_state(),
        set_rng_state=lambda state, *args: torch.set_rng_state(state),
    )
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    for name in ("empty.memory_format", "empty_strided"):  # torch.tensor makes its result below any mode
        _library.impl(name, partial(_made, getattr(aten, name.split(".")[0])), "PrivateUse1")
    _library.impl("_copy_from", _copied, "PrivateUse1")


def _copied(source: torch.Tensor, target: Pretended, non_blocking: bool = False) -> Pretended:
    target.inner.copy_(source.inner if isinstance(source, Pretended) else source)
    return target


def _made(make: Any, *args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Pretended:
    return Pretended(make(*args, device="cpu", **kwargs))
