"""What this machine has: its GPUs and the packages that the GPU path stands on, as `config/requirements.py` asks for them."""

from __future__ import annotations

from importlib import import_module, metadata

from megatron_native.config.megatron import has_nvidia_apex
from megatron_native.config.requirements import Machine


def this_machine() -> Machine:
    """The GPUs that this process sees, and the installed versions."""
    import torch

    capabilities = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    return Machine(
        gpu=torch.cuda.get_device_name(0) if capabilities else "",
        compute_capability=min(capabilities) if capabilities else None,
        megatron_core=metadata.version("megatron-core"),
        transformer_engine=_version("transformer-engine"),
        has_apex=has_nvidia_apex(),
    )


def _version(package: str) -> str | None:
    """The version of an installed package; in containers Transformer Engine may have no record of its installation."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    try:
        return str(import_module(package.replace("-", "_")).__version__)
    except (ImportError, AttributeError):
        return None
