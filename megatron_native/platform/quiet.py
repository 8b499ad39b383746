"""Keep quiet what libraries say about things a user can't act on; everything else they say stays."""

from __future__ import annotations

import logging
import os
import warnings

# (category, start of the message as a regular expression, module that says it)
_IGNORED: tuple[tuple[type[Warning], str, str], ...] = (
    # Transformer Engine and Apex are for GPUs; where they are needed and missing, the run says so itself.
    (UserWarning, r".*(Apex|apex|modelopt|TransformerEngine|Transformer Engine)", r"megatron\..*"),
    (UserWarning, r".*full scope is deprecated", r"megatron\..*"),
    # Set where it matters: the CUDA platform's environment has it.
    (UserWarning, r".*CUDA_DEVICE_MAX_CONNECTIONS", r"megatron\..*"),
    (FutureWarning, r".*", r"megatron\..*"),
    (DeprecationWarning, r".*", r"(megatron|torch)\..*"),
    # megatron-core's calls of torch, not ours.
    (FutureWarning, r".*torch\.distributed\.", r"torch\..*"),
    (FutureWarning, r".*", r"torch\.distributed\..*"),
    (UserWarning, r".*The \.grad attribute of a Tensor that is not a leaf", r".*"),
    (FutureWarning, r".*we are deprecating ShardedTensor", r".*"),
    (UserWarning, r".*barrier\(\): using the device", r"torch\..*"),
    (UserWarning, r".*TypedStorage is deprecated", r".*"),
    (FutureWarning, r".*we are deprecating ShardedTensor", r".*"),
)


def silence_libraries() -> None:
    """Install the filters, for this process and for the ones it starts. Call before importing megatron-core."""
    for category, message, module in _IGNORED:
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("megatron.core", "torch.distributed.checkpoint", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
