"""The CPU as a training platform: a contained substitute for the CUDA calls that megatron-core makes.

megatron-core names CUDA in places where nothing depends on it: a device argument, a stream to order, a memory figure,
the state of a random generator. `install()` supplies those on the CPU, for this process, so that the very same
trainer runs on gloo. It is loud: a CUDA function that is not listed here raises `UnsupportedOnCpuError` with its name,
since a silent no-op would be a wrong result somewhere else. It refuses to be installed where CUDA devices are.

The redirection of device arguments is a `TorchFunctionMode`, which torch keeps per thread: a thread that runs model
code of its own enters `device_redirection()` first.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")

# Questions about CUDA that have an honest answer without it; torch and transformers ask them too.
_ANSWERED_BY_TORCH = frozenset({
    "is_available", "device_count", "is_initialized", "is_bf16_supported", "is_tf32_supported",
    "is_current_stream_capturing", "get_arch_list",
})


class UnsupportedOnCpuError(RuntimeError):
    """megatron-core (or this project) called a CUDA function that the CPU platform does not know."""


class _DeviceRedirection(TorchFunctionMode):
    """Sends every tensor that is asked for on CUDA to another device, and reports tensors by the type names of CUDA."""

    def __init__(self, device: torch.device = _CPU) -> None:
        super().__init__()
        self.device = device

    def _redirect(self, device: Any) -> Any:
        if isinstance(device, torch.device):
            return self.device if device.type == "cuda" else device
        if isinstance(device, str) and device.startswith("cuda"):
            return self.device
        return device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self._redirect(kwargs["device"])}
        if func is torch.Tensor.to:
            args = tuple(self._redirect(argument) for argument in args)
        elif func is torch.Tensor.cuda:
            return args[0] if self.device == _CPU else args[0].to(self.device)
        elif func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The distributed optimizer sorts parameters by the type names of CUDA.
            return f"torch.cuda.{func(*args).rpartition('.')[2]}"
        return func(*args, **kwargs)


class _Stream:
    """A stream on a device that runs everything in order: waiting and recording have nothing to do."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> _Event:
        return event or _Event()

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Event:
    """An event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        raise UnsupportedOnCpuError("torch.cuda.Event.elapsed_time: there is no device clock on the CPU platform.")


class _DefaultGenerators:
    """`torch.cuda.default_generators[device]`: the CPU's generator, whatever the index."""

    def __getitem__(self, _: Any) -> torch.Generator:
        return torch.default_generator

    def __len__(self) -> int:
        return 1


def _nullcontext(*_: Any, **__: Any) -> Any:
    return contextlib.nullcontext()  # may be entered again, as CUDA's may


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _seed_cpu_generator(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _zero(*_: Any, **__: Any) -> int:
    return 0


def _substitutes(device: torch.device) -> dict[str, Any]:
    """What stands in for each attribute of `torch.cuda`, by name, where `device` stands for CUDA's."""
    stream = _Stream()
    return {
        "current_device": lambda: device,  # megatron-core passes it on as a device argument
        "set_device": _nothing,
        "synchronize": _nothing,
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": lambda *_, **__: stream,
        "default_stream": lambda *_, **__: stream,
        "set_stream": _nothing,
        "stream": _nullcontext,
        "device": _nullcontext,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": _seed_cpu_generator,  # megatron-core's RNG tracker seeds its named states through it
        "manual_seed_all": _nothing,  # torch.manual_seed calls it after seeding the CPU's own generator
        "default_generators": _DefaultGenerators(),
        "_lazy_call": lambda call, **_: call(),
        "_lazy_init": _nothing,
        "empty_cache": _nothing,
        "reset_peak_memory_stats": _nothing,
        "memory_allocated": _zero,
        "max_memory_allocated": _zero,
        "memory_reserved": _zero,
        "max_memory_reserved": _zero,
        "memory_stats": lambda *_, **__: {},
        "get_device_capability": lambda *_, **__: (0, 0),
    }


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnsupportedOnCpuError(
            f"torch.cuda.{name} was called, which the CPU platform does not know. If it can be answered without a "
            "GPU, add it to the table in megatron_native/platform/cpu.py; otherwise this feature needs a GPU."
        )

    return refuse


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """megatron-core hands its fusions to `torch.compile` when it is imported. They are for GPUs, and off here; loading the
    compiler's backends for them takes a second.
    """
    compiler = torch.compile
    torch.compile = lambda function: function
    try:
        yield
    finally:
        torch.compile = compiler


class CpuSubstitute:
    """The installed substitute; `remove()` puts torch back as it was.

    Args:
        device: stands for CUDA's: the CPU, or `meta` for a model without storage (`platform/fake.py`).
    """

    def __init__(self, device: torch.device = _CPU) -> None:
        self.device = device
        self._originals: list[tuple[Any, str, Any]] = []
        self._mode: TorchFunctionMode | None = None

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._originals.append((owner, name, getattr(owner, name, None)))
        setattr(owner, name, value)

    def install(self) -> None:
        """Put every substitute in its place and enter the device redirection on this thread."""
        # First megatron-core, and torch's compiler, whose tables list torch.cuda's functions as they are.
        with _nothing_compiled():
            from megatron.core import jit
            from megatron.core.tensor_parallel import random as megatron_random
        import torch._dynamo

        self._replace(jit, "jit_fuser", jit.noop_decorator)  # also of what is imported later

        cuda = torch.cuda
        table = _substitutes(self.device)
        for name in dir(cuda):
            member = getattr(cuda, name)
            if name in table or name.startswith("_") or name in _ANSWERED_BY_TORCH:
                continue
            if isinstance(member, types.FunctionType) and member.__module__.startswith("torch.cuda"):
                self._replace(cuda, name, _refusal(name))
        for name, value in table.items():
            self._replace(cuda, name, value)
        self._replace(cuda.random, "get_rng_state", table["get_rng_state"])
        self._replace(cuda.random, "set_rng_state", table["set_rng_state"])
        # What megatron-core's RNG tracker took from torch.cuda by name when it was imported.
        self._replace(megatron_random, "_lazy_call", table["_lazy_call"])
        self._replace(megatron_random, "_lazy_init", table["_lazy_init"])
        self._mode = _DeviceRedirection(self.device)
        self._mode.__enter__()

    def remove(self) -> None:
        """Undo `install`."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        while self._originals:
            owner, name, value = self._originals.pop()
            setattr(owner, name, value)


def device_redirection() -> TorchFunctionMode:
    """A context in which device arguments of CUDA mean the CPU: for threads other than the installing one."""
    return _DeviceRedirection()


_installed: CpuSubstitute | None = None


def install() -> CpuSubstitute:
    """Make this process a CPU platform; a second call changes nothing.

    Raises:
        UnsupportedOnCpuError: CUDA devices are visible, where the substitute has no place.
    """
    global _installed
    if _installed is not None:
        return _installed
    if torch.cuda.is_available():
        raise UnsupportedOnCpuError("The CPU substitute is never installed on a machine with CUDA devices; hide them first.")
    substitute = CpuSubstitute()
    substitute.install()
    _installed = substitute
    return substitute


def remove() -> None:
    """Take the substitute out again, if it is in."""
    global _installed
    if _installed is not None:
        _installed.remove()
        _installed = None
