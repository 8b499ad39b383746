"""One node of a run on several: which it is, how its ranks meet those of the others, and how they ended.

Every node runs one launcher (`pretrain --nnodes N --node-rank R --rdzv-endpoint HOST:PORT --nproc G`). When its ranks have
ended, it leaves a `NodeOutcome` for whoever started all of them: an exit code alone would not tell a run that is saved and
wants to go on from one whose ranks were ended because another node's died.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from megatron_native.errors import UserError
from megatron_native.manifest import write_json

State = Literal["done", "requeue", "user_error", "stopped", "stopping", "failed"]
"""How the ranks of a node ended: through; saved, and want to go on; on an error of the user's; because a rule stopped the run;
lost while the run was stopping as asked; or died."""


@dataclass(frozen=True)
class NodePlace:
    """A node's place among those of a run.

    Raises:
        UserError: it can't be.
    """

    nodes: int
    rank: int
    """This node, counted from 0; its ranks are `rank * processes` and on."""
    endpoint: str
    """`HOST:PORT` at which node 0 listens, and the others look for it."""
    logs: Path | None = None
    """Folder that all nodes see, for every rank's stderr and the outcome of every node."""

    def __post_init__(self) -> None:
        if self.nodes < 1 or not 0 <= self.rank < self.nodes:
            raise UserError(
                f"--nnodes {self.nodes} --node-rank {self.rank}: the rank goes from 0 to the number of nodes minus 1."
            )
        host, _, port = self.endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(
                f"--rdzv-endpoint {self.endpoint!r}: write HOST:PORT, node 0 and a port that is free there."
            )

    def stderr_of(self, rank: int) -> Path | None:
        """Where the stderr of a rank of the run goes; None: to the launcher's own."""
        return None if self.logs is None else stderr_file(self.logs, rank)


def stderr_file(logs: Path, rank: int) -> Path:
    """Where a rank's stderr lies under the folder of logs."""
    return logs / "stderr" / f"rank_{rank:05d}.txt"


@dataclass(frozen=True)
class NodeOutcome:
    """How the ranks of one node ended."""

    node_rank: int
    host: str
    state: State
    message: str = ""
    deaths: list[dict[str, Any]] = field(default_factory=list)
    """`rank` and `exit_code` of the ranks that died first on this node."""
    time: float = 0.0
    """When: seconds since 1970, by the node's own clock."""

    def write(self, logs: Path) -> None:
        """Leave it under the folder of logs."""
        (logs / "outcomes").mkdir(parents=True, exist_ok=True)
        write_json(logs / "outcomes" / f"node_{self.node_rank:05d}.json", asdict(self))


def read_outcomes(logs: Path) -> list[NodeOutcome]:
    """What nodes have left under the folder of logs, in the nodes' order; a file that can't be read counts as none."""
    outcomes = []
    for path in sorted((logs / "outcomes").glob("node_*.json")):
        try:
            outcome = NodeOutcome(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if outcome.state in get_args(State):
            outcomes.append(outcome)
    return outcomes
