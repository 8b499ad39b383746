"""Keep quiet what libraries say about things a user can't act on; everything else they say stays."""

from __future__ import annotations

import logging
import os
import warnings

# (category, start of the message as a regular expression, module that says it, why nobody needs to read it)
_IGNORED: tuple[tuple[type[Warning], str, str], ...] = (
    (UserWarning, r".*Transformer Engine and Apex are not installed", r"megatron\..*"),
    (UserWarning, r".*(Apex|apex|nvidia-modelopt|TransformerEngine|transformer_engine|modelopt)", r"megatron\..*"),
    (UserWarning, r".*barrier\(\): using the device", r"torch\..*"),
    (FutureWarning, r".*", r"megatron\..*"),
    (DeprecationWarning, r".*", r"(megatron|torch)\..*"),
    (UserWarning, r".*TypedStorage is deprecated", r".*"),
    (UserWarning, r".*no current CUDA context", r"torch\..*"),
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
