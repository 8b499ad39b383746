"""How fast real news is cut into passages, how full they are, and how far the estimate of tokens is from a tokenizer.

    python benchmarks/passages.py [--data FOLDER] [--tokenizer tokenizer.json]

Rates are MB of UTF-8 text a second of processor time on one core, the median of `--repeats` runs; splitting uses the
estimate. Fill is the tokens of a passage over the budget, of articles that need more than one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import machine, save

from megatron_native.alignment.passages import estimated_tokens, split
from megatron_native.alignment.sentence_bounds import sentence_ends


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to compare the estimate with")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the median counts (3)")
    arguments = parser.parse_args()
    archives = [zipfile.ZipFile(path) for path in sorted(arguments.data.glob("*.zip"))]
    texts = [article["content"] for archive in archives for article in json.loads(archive.read(archive.namelist()[0]))]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6

    def rate(work: Callable[[str], Any]) -> float:
        seconds = []
        for _ in range(arguments.repeats):
            start = time.process_time()
            for text in texts:
                work(text)
            seconds.append(time.process_time() - start)
        return round(megabytes / statistics.median(seconds), 1)

    rows: list[dict[str, Any]] = [{"name": "sentence_ends", "mb_per_s": rate(sentence_ends)}]
    rows.append({"name": "estimated_tokens", "mb_per_s": rate(estimated_tokens)})
    for budget, context in ((1024, 0), (512, 0), (512, 64), (128, 0)):
        found = [split(text, budget, context=context) for text in texts]
        fill = [passage.tokens / budget for passages in found if len(passages) > 1 for passage in passages]
        speed = rate(lambda text, budget=budget, context=context: split(text, budget, context=context))
        rows.append({
            "name": f"split, budget {budget}, context {context}", "mb_per_s": speed,
            "passages": sum(map(len, found)), "median_fill": round(statistics.median(fill), 2),
            "under_a_quarter": f"{sum(part < 0.25 for part in fill) / len(fill):.1%}",
        })  # fmt: skip
    more = estimate_errors(texts, arguments.tokenizer) if arguments.tokenizer else {}
    save("passages", f"passages: {len(texts):,} news articles, {megabytes:.1f} MB", rows, machine(), **more)


def estimate_errors(texts: list[str], path: Path) -> dict[str, str]:
    """Relative errors of the estimate on every tenth article, and on its lines."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    errors = {}
    articles = texts[::10]
    lines = [line for text in articles for line in text.split("\n") if len(line) > 40]
    for name, sample in (("articles", articles), ("lines of more than 40 characters", lines)):
        real = [len(encoded.ids) for encoded in tokenizer.encode_batch(sample, add_special_tokens=False)]
        pairs = [(estimated_tokens(text), tokens) for text, tokens in zip(sample, real) if tokens]
        wrong = sorted(abs(estimate - tokens) / tokens for estimate, tokens in pairs)
        total = sum(estimate for estimate, _ in pairs) / sum(tokens for _, tokens in pairs)
        errors[f"Error of the estimate, {name}"] = (
            f"median {wrong[len(wrong) // 2]:.1%}, nine of ten under {wrong[len(wrong) * 9 // 10]:.1%}, "
            f"99 of 100 under {wrong[len(wrong) * 99 // 100]:.1%}; in total {total - 1:+.1%}"
        )
    return errors


if __name__ == "__main__":
    main()
