"""What a Megatron-LM checkpoint says beside its tensors: `common.pt`, read without running what a stranger put into it.

Megatron-LM pickles the whole `argparse.Namespace` of a run into `common.pt`, with enumerations of megatron-core among the
values. The unpickler here admits the namespace, plain values and tensors; an enumeration becomes its name and value, so
that nothing of Megatron is imported. Every other class or function is refused by name before it is looked up.
"""

from __future__ import annotations

import argparse
import collections
import pickle
import re
import signal
import types
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_native.checkpoint.layout import in_one_line
from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError

_ADMITTED: dict[tuple[str, str], Any] = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("types", "SimpleNamespace"): types.SimpleNamespace,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("signal", "Signals"): signal.Signals,
} | {
    (module, kind.__name__): kind
    for module in ("builtins", "__builtin__")
    for kind in (set, frozenset, bytearray, complex)
}
_ENUMERATIONS = re.compile(r"megatron\.core\.([a-z_]+\.)*(enums|rerun_state_machine)$")


@dataclass(frozen=True)
class _Enumeration:
    """Stands in for an enumeration of megatron-core: makes text of a value."""

    name: str

    def __call__(self, *values: Any) -> str:
        return f"{self.name}({', '.join(map(repr, values))})"


def _member(kind: Any, name: Any) -> Any:
    """The one use of `getattr` that is admitted: Python 3.11.0 to 3.11.3 pickle an enumeration's member by it."""
    if isinstance(kind, _Enumeration) and isinstance(name, str):
        return f"{kind.name}.{name}"
    if kind is signal.Signals and name in signal.Signals.__members__:
        return signal.Signals[name]
    raise UserError("names builtins.getattr")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "signal" and isinstance(getattr(signal, name, None), signal.Signals):
            return getattr(signal, name)
        if _ENUMERATIONS.match(module) and "." not in name:
            return _Enumeration(f"{module}.{name}")
        if name == "getattr" and module in ("builtins", "__builtin__"):
            return _member
        raise UserError(f"names {module}.{name}")


class _PlainPickle:
    """What torch.load takes for the module `pickle`."""

    __name__ = "megatron_native.checkpoint.megatron_common"
    Unpickler = _PlainUnpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **arguments: Any) -> Any:
        return _PlainUnpickler(file, **arguments).load()


def read_megatron_common(folder: Path) -> dict[str, Any]:
    """`common.pt` of a Megatron-LM checkpoint as plain values, tensors and namespaces.

    Raises:
        UserError: it is missing or damaged, or names a class or function that a run's settings don't need.
    """
    path = folder / "common.pt"
    try:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):  # torch.load would run its code
                raise UserError("holds a TorchScript program")
        value = torch.load(path, map_location="cpu", pickle_module=_PlainPickle, weights_only=False)
    except FileNotFoundError:
        raise UserError(f"{folder} was cut short: common.pt is missing.") from None
    except UserError as refusal:
        raise UserError(
            f"{path} {refusal}, which the settings of a run don't need, so it was not run. The file was made by something "
            "else or tampered with: don't adopt this checkpoint unless you trust where it came from; then load and save "
            "it there without that object."
        ) from None
    except Exception as error:  # a damaged archive or pickle can raise nearly anything
        raise UserError(f"{path} is damaged ({type(error).__name__}: {in_one_line(error)}); copy it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__} where a checkpoint's settings belong; copy it again.")
    return value


def arguments_of(common: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the Megatron-LM run that saved; empty where it saved none."""
    arguments = common.get("args")
    return dict(vars(arguments)) if isinstance(arguments, argparse.Namespace | types.SimpleNamespace) else {}


def refuse_other_model(arguments: Mapping[str, Any], config: ModelConfig, source: Path) -> None:
    """Raise `UserError` naming a setting of the run that says another model than `config`; absent ones are passed over."""
    scaling = config.rope_scaling
    expected: dict[str, tuple[Any, ...]] = {
        "num_layers": (config.num_layers,),
        "hidden_size": (config.hidden_size,),
        "ffn_hidden_size": (config.ffn_hidden_size,),
        "num_attention_heads": (config.num_attention_heads,),
        "kv_channels": (config.kv_channels,),
        "rotary_base": (config.rotary_base,),
        "norm_epsilon": (config.norm_epsilon,),
        "untie_embeddings_and_output_weights": (not config.tie_word_embeddings,),
        "qk_layernorm": (config.qk_layernorm,),
        "use_rope_scaling": (scaling is not None,),
        "position_embedding_type": ("rope",),
        "normalization": ("RMSNorm",),
        "swiglu": (True,),
        "apply_layernorm_1p": (False,),
        "rotary_interleaved": (False,),
        "rotary_percent": (1.0,),
        "num_experts": (None, 0),
        "multi_latent_attention": (False,),
    }
    if config.num_query_groups != config.num_attention_heads or arguments.get("group_query_attention"):
        expected["num_query_groups"] = (config.num_query_groups,)
    if scaling is not None:
        expected["rope_scaling_factor"] = (scaling.factor,)
    for name, accepted in expected.items():
        if name in arguments and arguments[name] not in accepted:
            raise UserError(
                f"{source} was trained with {name} = {arguments[name]!r}, and config.json says {accepted[0]!r}: the model "
                "would compute something else than the one that was trained. Give the config.json that belongs to it."
            )
