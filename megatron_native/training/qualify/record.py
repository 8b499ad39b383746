"""The record of what a kind of machine has passed, and the refusal to train at scale without it.

Records are JSON, one file a machine key (platform, GPU, driver, torch, Transformer Engine, megatron-core), under the user's
cache folder or where the variable `MEGATRON_NATIVE_QUALIFY_RECORD` says. A later ladder updates the rungs that it ran.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.manifest import parameters_hash, software_versions, write_json
from megatron_native.platform import Platform
from megatron_native.training.qualify.verdict import RungResult

FORMAT = "megatron-native/qualification/1"
RECORD_VARIABLE = "MEGATRON_NATIVE_QUALIFY_RECORD"
"""Environment variable: the file of the record, instead of the one in the cache folder."""
UNQUALIFIED_VARIABLE = "MEGATRON_NATIVE_UNQUALIFIED"
"""Environment variable: `1` starts at scale without a record."""
SCALE = 8
"""More processes than this, or more than one node, are scale."""

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class MachineKey:
    """What a record holds for, and nothing else."""

    platform: str
    gpu: str
    driver: str
    torch: str
    transformer_engine: str
    megatron_core: str

    @property
    def file_name(self) -> str:
        """Name of its record in the cache folder."""
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", self.gpu).strip("-").lower() or self.platform
        return f"{gpu}-{parameters_hash(asdict(self))[:12]}.json"

    def __str__(self) -> str:
        return (
            f"{self.gpu}, driver {self.driver}, torch {self.torch}, Transformer Engine {self.transformer_engine}, "
            f"megatron-core {self.megatron_core}"
        )


def machine_key(platform: Platform) -> MachineKey:
    """The key of this process's machine."""
    import torch

    versions = software_versions(("transformer-engine", "megatron-core"))
    gpu, driver = "none", "none"
    if platform.name == "cuda":
        gpu, driver = torch.cuda.get_device_name(platform.device), driver_version()
    return MachineKey(
        platform.name, gpu, driver, torch.__version__, versions.get("transformer-engine", "none"),
        versions.get("megatron-core", "none"),
    )  # fmt: skip


def driver_version() -> str:
    """NVIDIA's driver, as the kernel says it; `unknown` where it does not."""
    try:
        found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", _DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def record_path(key: MachineKey, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the record of a key is kept."""
    if environment.get(RECORD_VARIABLE):
        return Path(environment[RECORD_VARIABLE])
    cache = environment.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache else Path.home() / ".cache"
    return folder / "megatron-native" / "qualified" / key.file_name


def read_record(path: Path, key: MachineKey) -> dict[str, Any] | None:
    """The record at `path`; None where there is none, it can't be read, or it is another machine's."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("key") != asdict(key):
        return None
    return record


def update_record(
    path: Path, key: MachineKey, results: Sequence[RungResult], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write what was found into the record of the key; what another machine left there is replaced.

    A rung that did not run now keeps its earlier verdict.

    Args:
        path: the record's file.
        key: the machine.
        results: the rungs of this ladder.
        about: what else is worth knowing of it, kept with every rung.
    """
    record = read_record(path, key) or {"format": FORMAT, "key": asdict(key), "rungs": {}}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for result in results:
        if result.verdict != "not run" or result.rung not in record["rungs"]:
            record["rungs"][result.rung] = {**result.as_dict(), "date": now, **about}
    try:
        write_json(path, record)
    except OSError as error:
        raise UserError(
            f"the record {path} can't be written ({error.strerror}): give --record FILE in a folder that can be written to."
        ) from error
    return record


def needed_rungs(run: RunConfig, platform: str, world_size: int, local_world_size: int) -> dict[str, str]:
    """The rungs that a run needs passed before it starts, each with the setting that asks for it; none on a small scale."""
    if platform != "cuda" or (world_size <= SCALE and world_size <= local_world_size):
        return {}
    needed: dict[str, str] = {}
    if run.training.precision == "fp8":
        needed |= dict.fromkeys(("logits", "masters", "fp8"), "training.precision fp8")
    parallel = run.parallel
    for setting in ("overlap_grad_reduce", "overlap_param_gather", "tp_comm_overlap"):
        if getattr(parallel, setting):
            needed.setdefault("overlaps", f"parallel.{setting}")
    return needed


def refusal(needed: Mapping[str, str], record: Mapping[str, Any] | None, key: MachineKey, path: Path) -> str | None:
    """Why a run that needs these rungs may not start, and the way out; None where it may."""
    rungs = (record or {}).get("rungs", {})
    lacking = {name: reason for name, reason in needed.items() if rungs.get(name, {}).get("verdict") != "passed"}
    if not lacking:
        return None
    settings = ", ".join(dict.fromkeys(lacking.values()))
    names = ", ".join(f"{name} ({rungs[name]['verdict']})" if name in rungs else name for name in lacking)
    return (
        f"{settings} on more than one node or more than {SCALE} GPUs wants a machine that has passed qualify, and {path} has "
        f"no passed rung {names} for {key}. Run `megatron-native qualify --config run.yaml --nproc 8` on one such node "
        f"(meant to take ten minutes), or start with --unqualified (or {UNQUALIFIED_VARIABLE}=1) to go without."
    )


def check_qualified(run: RunConfig, platform: Platform) -> None:
    """Refuse to train at scale what this kind of machine has not passed. Collective where it may refuse.

    Raises:
        UserError: on every rank, with the command to run.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = needed_rungs(run, platform.name, platform.world_size, local)
    if not needed or os.environ.get(UNQUALIFIED_VARIABLE, "") not in ("", "0"):
        return
    import torch.distributed as dist

    found: list[str | None] = [None]
    if platform.is_main:
        key = machine_key(platform)
        path = record_path(key)
        found = [refusal(needed, read_record(path, key), key, path)]
    dist.broadcast_object_list(found, src=0)
    if found[0] is not None:
        raise UserError(found[0])
