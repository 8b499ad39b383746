"""What a forward pass keeps for its backward pass: unique storages that autograd holds, counted as they come and go.

It counts on real tensors and on meta tensors alike, so that a plan's figures and a run's are made by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OUTSIDE = ""
"""The submodule name of what is kept outside of every module: the loss over its mask."""


@dataclass
class _Storage:
    """A storage that at least one saved tensor lies in."""

    storage: Any
    component: str
    holders: int = 0


class _Held:
    """A saved tensor as autograd holds it; when autograd lets go, so does the count."""

    __slots__ = ("_count", "_key", "tensor")

    def __init__(self, tensor: Tensor, key: int, count: SavedTensors) -> None:
        self.tensor, self._key, self._count = tensor, key, count
        count.take(key)

    def __del__(self) -> None:
        self._count.release(self._key)


class SavedTensors:
    """Counts the storages that autograd keeps while `counting()` is entered; parameters are not counted.

    Args:
        modules: their parameters are excluded, and their submodules' names say which component a tensor belongs to.
        component: component of a submodule's name; the innermost module that runs decides.
    """

    def __init__(self, modules: Iterable[nn.Module], component: Callable[[str], str] = str) -> None:
        self._modules = list(modules)
        self._component = component
        self._excluded = {_key(parameter) for module in self._modules for parameter in module.parameters()}
        self._storages: dict[int, _Storage] = {}
        self._running: list[str] = []
        self.peak: dict[str, int] = {}
        """Component → bytes at the moment at which all together were most."""
        self.peak_bytes = 0

    @contextmanager
    def counting(self) -> Iterator[SavedTensors]:
        """Count what is saved inside; what is released is followed even after."""
        handles = []
        for module in self._modules:
            for name, submodule in module.named_modules():
                handles.append(submodule.register_forward_pre_hook(self._enter(self._component(name))))
                handles.append(submodule.register_forward_hook(self._leave, always_call=True))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor):
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def by_component(self) -> dict[str, int]:
        """Component → bytes kept now. A storage that several share is its first keeper's."""
        found: dict[str, int] = {}
        for one in self._storages.values():
            found[one.component] = found.get(one.component, 0) + one.storage.nbytes()
        return found

    def bytes(self) -> int:
        """Bytes kept now: a storage that was emptied until it is computed again counts as it is."""
        return sum(one.storage.nbytes() for one in self._storages.values())

    def note_peak(self) -> None:
        """Take what is kept now as the peak if it is more than ever before; done on everything that is saved too."""
        if (now := self.bytes()) > self.peak_bytes:
            self.peak_bytes, self.peak = now, self.by_component()

    def take(self, key: int) -> None:
        """One more saved tensor lies in a storage."""
        self._storages[key].holders += 1

    def release(self, key: int) -> None:
        """One fewer."""
        one = self._storages[key]
        one.holders -= 1
        if not one.holders:
            del self._storages[key]

    def _enter(self, component: str) -> Callable[..., None]:
        return lambda *_: self._running.append(component)

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def _pack(self, tensor: Tensor) -> Any:
        key = _key(tensor)
        if key in self._excluded:
            return _Uncounted(tensor)
        if key not in self._storages:
            component = self._running[-1] if self._running else self._component(OUTSIDE)
            self._storages[key] = _Storage(tensor.untyped_storage(), component)
        held = _Held(tensor, key, self)
        self.note_peak()
        return held


class _Uncounted:
    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
