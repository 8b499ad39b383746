"""What skipping clean passages and the edit form save: accepted tokens a second on vLLM, against rewriting everything in full.

    .venv/bin/python benchmarks/rewrite_forms.py --make pairs.jsonl [--passages 40] [--soiled 0.2] [--data FOLDER]
    .venv-vllm/bin/python benchmarks/rewrite_forms.py --pairs pairs.jsonl [--worker FOLDER]

Passages are Saudi news; a share of them was soiled (punctuation, spacing, advertisements, markup and the like, from a
seed), the others are as they are. What is timed is the engine writing answers of the length that a faultless worker's would
have: the clean text, or the edits that make it. So every way ends in the same accepted text, and the worker's own quality is
left out. Every way runs in the same engine, in turn, after its prefix cache was emptied.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from results import machine, save

from megatron_native.alignment.backends.vllm_engine import VllmBackend, VllmSettings
from megatron_native.alignment.backends.worker import Worker
from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.edits import edits_between, render_edits
from megatron_native.alignment.passages import estimated_tokens
from megatron_native.alignment.prompts import render_rewriting

SOILED = ("punctuation", "spacing", "hamza", "advertisement", "broken_lines", "grammar", "markup")
SEED = 3
SETTINGS = VllmSettings(dtype="bfloat16", max_model_len=4096, max_num_seqs=64)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron-native"
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the archives")
    parser.add_argument("--worker", type=Path, default=cache / "smollm2-135m-instruct", help="Hugging Face folder")
    parser.add_argument("--passages", type=int, default=40, help="passages (40)")
    parser.add_argument("--soiled", type=float, default=0.2, help="share of passages that need a rewrite (0.2)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (3)")
    file = parser.add_mutually_exclusive_group(required=True)
    file.add_argument("--make", type=Path, metavar="FILE", help="write the pairs, and stop")
    file.add_argument("--pairs", type=Path, metavar="FILE", help="what --make wrote")
    arguments = parser.parse_args()
    if arguments.make:
        lines = [
            json.dumps(pair, ensure_ascii=False) for pair in made(arguments.data, arguments.passages, arguments.soiled)
        ]
        arguments.make.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    from megatron_native.alignment.first_look import FirstLook  # compiled code, which vLLM's processes must not import

    worker = Worker(arguments.worker)
    pairs = [tuple(json.loads(line)) for line in arguments.pairs.read_text(encoding="utf-8").splitlines()]
    soiled = sum(origin != clean for origin, clean in pairs)
    look = FirstLook()
    waiting = [pair for pair in pairs if not look.look(pair[0], {}).clean]
    missed = sum(origin != clean for origin, clean in pairs if look.look(origin, {}).clean)
    ways = {
        "everything, in full": (pairs, "full"), "what the first look leaves, in full": (waiting, "full"),
        "what the first look leaves, as edits": (waiting, "edits"),
    }  # fmt: skip
    tokens = sum(estimated_tokens(origin) for origin, _ in pairs)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    written: dict[str, int] = {}
    load_average = [round(os.getloadavg()[0], 1)]
    with closing(VllmBackend(worker, settings=SETTINGS)) as backend:
        for turn in range(arguments.rounds):
            for name, (chosen, form) in list(ways.items())[:: 1 if turn % 2 == 0 else -1]:
                took, written[name] = answered(backend, worker, chosen, form)
                seconds[name].append(took)
                print(name, round(took, 2), written[name], flush=True)
    load_average.append(round(os.getloadavg()[0], 1))
    plain = statistics.median(seconds["everything, in full"])
    rows: list[dict[str, Any]] = []
    for name, (chosen, _) in ways.items():
        middle = statistics.median(seconds[name])
        rows.append({
            "what": name, "asked": len(chosen), "tokens_written": written[name], "seconds": round(middle, 2),
            "accepted_tokens_per_s": round(tokens / middle, 1), "ratio": round(plain / middle, 2),
        })  # fmt: skip
    rows.append({
        "what": "soiled passages that the first look passes through", "asked": missed,
        "note": f"of {soiled} soiled among {len(pairs)}",
    })  # fmt: skip
    title = f"Skipping and the edit form: {len(pairs)} passages of news, {soiled} of them soiled, {worker.folder.name}"
    save("rewrite_forms", title, rows, machine(), load_average=load_average)


def made(data: Path, number: int, soiled: float) -> list[tuple[str, str]]:
    """(origin, what a faultless worker makes of it) of so many passages, in a seeded order."""
    from gate_mends import GOOD
    from gate_news import load

    bank, rng = load(data, SEED)["report"], random.Random(SEED)
    found: list[tuple[str, str]] = []
    while len(found) < round(number * soiled):
        one = GOOD[SOILED[len(found) % len(SOILED)]](rng, rng.choice(bank.passages), bank)
        if one is not None and one[1] != one[2]:
            found.append(one[1:])
    while len(found) < number:
        text = rng.choice(bank.passages)
        found.append((text, text))
    rng.shuffle(found)
    return found


def answered(backend: VllmBackend, worker: Worker, pairs: Sequence[tuple[str, ...]], form: str) -> tuple[float, int]:
    """Seconds in which the engine writes answers of the right length to all pairs, and their tokens."""
    from vllm import SamplingParams

    conduct = load_conduct("general")
    backend.llm.reset_prefix_cache()
    begun = time.perf_counter()
    prompts, parameters = [], []
    for origin, clean in pairs:
        answer = clean if form == "full" else render_edits(edits_between(origin, clean))
        length = len(worker.tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1
        messages = render_rewriting(conduct, origin, form=form, language="en")  # type: ignore[arg-type]  # one of the two
        prompts.append({"prompt_token_ids": worker.chat_ids(messages)})
        parameters.append(SamplingParams(temperature=0.0, max_tokens=length, min_tokens=length, ignore_eos=True))
    if prompts:
        backend.llm.generate(prompts, parameters, use_tqdm=False)
    return time.perf_counter() - begun, sum(one.max_tokens or 0 for one in parameters)


if __name__ == "__main__":
    main()
