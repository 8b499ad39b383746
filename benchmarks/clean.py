"""clean with the full Arabic preset against datatrove with FineWeb-2's Arabic configuration, on the same real news.

    python benchmarks/clean.py [--data FOLDER] [--documents N]

Both read the same JSONL from a temporary folder in one process and write zstd/gzip JSONL. datatrove runs the filters that
FineWeb-2 runs for arb_Arab (Gopher repetition, FineWeb quality, Gopher quality, with its thresholds and datatrove's own
word tokenizer for Arabic); its language identification is left out, since its model is downloaded, so it does less work
than ours. It is slow, so it gets the first `--documents` articles; rates are MB of UTF-8 text a second on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from results import machine, save


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--documents", type=int, default=600, help="articles that datatrove gets (600)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours; the median counts (3)")
    arguments = parser.parse_args()
    articles = [
        {
            "id": f"{archive.stem}-{number}",
            "text": article["content"],
            "source": article["source"],
            "url": article["url"],
        }
        for archive in sorted(arguments.data.glob("*.zip"))
        for number, article in enumerate(
            json.loads(zipfile.ZipFile(archive).read(zipfile.ZipFile(archive).namelist()[0]))
        )
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder) / "all.jsonl", Path(folder) / "part" / "some.jsonl"
        part.parent.mkdir()
        for path, chosen in ((whole, articles), (part, articles[: arguments.documents])):
            with open(path, "w", encoding="utf-8") as file:
                for article in chosen:
                    file.write(json.dumps(article, ensure_ascii=False) + "\n")
        rows.append(ours(whole, Path(folder), articles, arguments.repeats))
        rows.append(datatrove(part, Path(folder), articles[: arguments.documents]))
    base = next((row["mb_per_s"] for row in rows if row["name"].startswith("datatrove") and row["mb_per_s"]), None)
    for row in rows:
        row["ratio_to_datatrove"] = round(row["mb_per_s"] / base, 1) if base and row["mb_per_s"] else None
    save("clean", "clean: MB of UTF-8 text a second, one core", rows, machine())


def _text_bytes(articles: list[dict[str, Any]]) -> int:
    return sum(len(article["text"].encode()) for article in articles)


def ours(path: Path, folder: Path, articles: list[dict[str, Any]], repeats: int) -> dict[str, Any]:
    """The clean stage, from file to files, manifest and checksums included; compiled code is warm."""
    from megatron_native.corpus.clean import CleanSettings, clean

    seconds, counts = [], {}
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        counts = clean([str(path)], folder / f"ours-{repeat}", CleanSettings()).manifest["counts"]
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds[1:])[repeats // 2]
    return {
        "name": "megatron-native clean, preset msa (language identification, scripture, masking included)",
        "mb": round(_text_bytes(articles) / 1e6, 1), "seconds": round(median, 2),
        "mb_per_s": round(_text_bytes(articles) / 1e6 / median, 2), "kept": f"{counts['kept']} of {counts['read']}",
    }  # fmt: skip


def datatrove(path: Path, folder: Path, articles: list[dict[str, Any]]) -> dict[str, Any]:
    """FineWeb-2's filters for Arabic through datatrove's own local executor, one task."""
    name = "datatrove, FineWeb-2's filters for arb_Arab (no language identification)"
    try:
        from datatrove.executor import LocalPipelineExecutor
        from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.writers import JsonlWriter
        from datatrove.utils.word_tokenizers import load_word_tokenizer
    except ModuleNotFoundError as error:
        return {"name": name, "mb": None, "seconds": None, "mb_per_s": None, "kept": f"not installed ({error.name})"}
    language = "arb_Arab"
    load_word_tokenizer(language).word_tokenize("كلمة")  # loaded before the clock starts
    stop_words = [
        "في",
        "من",
        "على",
        "إلى",
        "الى",
        "عن",
        "أن",
        "ان",
        "التي",
        "الذي",
        "هذا",
        "هذه",
        "كان",
        "مع",
        "ما",
        "لا",
        "لم",
    ]
    pipeline = [
        JsonlReader(str(path.parent)),
        GopherRepetitionFilter(
            language=language, dup_line_frac=0.304, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0,
            top_n_grams=((2, 0.197), (3, 0.172), (4, 0.146)),
            dup_n_grams=((5, 0.165), (6, 0.153), (7, 0.142), (8, 0.131), (9, 0.120), (10, 0.109)),
        ),
        FineWebQualityFilter(
            language=language, line_punct_thr=0.143, short_line_thr=999, char_duplicates_ratio=0.1, new_line_ratio=0.189
        ),
        GopherQualityFilter(
            language=language, min_avg_word_length=2, max_avg_word_length=9, max_non_alpha_words_ratio=0.787,
            min_stop_words=2, stop_words=stop_words,
        ),
        JsonlWriter(str(folder / "datatrove")),
    ]  # fmt: skip
    start = time.perf_counter()
    stats = LocalPipelineExecutor(pipeline=pipeline, tasks=1, logging_dir=str(folder / "logs")).run()
    seconds = time.perf_counter() - start
    kept = next((stat.stats["total"].total for stat in reversed(stats.stats) if "total" in stat.stats), "?")
    size = _text_bytes(articles)
    return {
        "name": name, "mb": round(size / 1e6, 1), "seconds": round(seconds, 2), "mb_per_s": round(size / 1e6 / seconds, 3),
        "kept": f"{kept} of {len(articles)}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
