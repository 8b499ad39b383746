"""The buffers through which Transformer Engine overlaps tensor-parallel communication with matrix products, on CUDA.

megatron-core carries the flag `tp_comm_overlap` alone; the buffers are the trainer's to make. What to make is decided by
`config/user_buffers.py`. Never run on a GPU: written against Transformer Engine's interface from 2.9 to 2.11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from megatron_native.errors import UserError

if TYPE_CHECKING:
    from megatron_native.config.user_buffers import UserBuffers

# Flags of Transformer Engine's linear layers that send a product's communication through a buffer.
_FLAGS = (
    "ub_overlap_ag_fprop", "ub_overlap_rs_fprop", "ub_overlap_ag_dgrad", "ub_overlap_rs_dgrad", "ub_bulk_dgrad",
    "ub_bulk_wgrad",
)  # fmt: skip


def make_user_buffers(buffers: UserBuffers, base: Any = None) -> None:
    """Make the buffers of this process; collective, after the parallel state is up and before the model is built.

    Args:
        buffers: their size, one set a quantisation mode, and the settings of each matrix product.
        base: Transformer Engine's module that makes them; by default `transformer_engine.pytorch.module.base`.

    Raises:
        UserError: Transformer Engine is not installed, or refuses (a GPU without multicast, for one).
    """
    if base is None:
        try:
            base = import_module("transformer_engine.pytorch.module.base")
        except ImportError as error:
            raise UserError(
                f"parallel.tp_comm_overlap needs Transformer Engine, which can't be imported here ({error}): install the extra "
                "'gpu', or set parallel.tp_comm_overlap=false."
            ) from error
    modes = [getattr(base.UserBufferQuantizationMode, mode.upper()) for mode in buffers.quantization_modes]
    try:
        base.initialize_ub(
            shape=list(buffers.shape),
            tp_size=buffers.tp_size,
            quantization_modes=modes,
            ub_cfgs={name: dict(settings) for name, settings in buffers.ub_cfgs.items()},
            bootstrap_backend=buffers.bootstrap_backend,
        )
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"Transformer Engine can't make the buffers of parallel.tp_comm_overlap ({' '.join(str(error).split())}): set "
            "parallel.tp_comm_overlap=false to train without that overlap."
        ) from error


@contextmanager
def without_user_buffers(chunks: Sequence[Any]) -> Iterator[None]:
    """Let the layers of model chunks communicate without buffers inside: those have the training step's size alone."""
    switched: list[tuple[Any, str]] = []
    for chunk in chunks:
        for module in chunk.modules():
            for flag in _FLAGS:
                if getattr(module, flag, False) is True:
                    setattr(module, flag, False)
                    switched.append((module, flag))
    try:
        yield
    finally:
        for module, flag in switched:
            setattr(module, flag, True)
