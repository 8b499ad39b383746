"""tokenize against the loops of Megatron-LM and datatrove: real news as JSONL, the LLaMA-3 vocabulary, two processes.

    python benchmarks/tokenization.py --tokenizer FOLDER_WITH_TOKENIZER_JSON [--data FOLDER]

* megatron-native: the command itself, on ten times the news; "steady" leaves out the seconds until the processes have
  loaded their tokenizers, as the loops below do.
* Megatron-LM's classic loop: Pool.imap over lines, the Hugging Face tokenizer, one builder call a document (a few lines that do
  the same; the writing is left out, in its favour).
* Megatron-LM's new loop: gigatoken over the whole text in memory, one thread, times two.
* datatrove's MegatronDocumentTokenizer, one task, times two.
* fastokens alone, from memory, one core, times two: the ceiling.
Rates are MB of UTF-8 text a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from results import machine, save

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
_worker: dict[str, Any] = {}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with LLaMA-3's tokenizer.json")
    parser.add_argument("--times", type=int, default=10, help="the news so many times over for ours (10)")
    arguments = parser.parse_args()
    articles = [
        {"id": f"{archive.stem}-{number}", "text": article["content"]}
        for archive in sorted(arguments.data.glob("*.zip"))
        for number, article in enumerate(
            json.loads(zipfile.ZipFile(archive).read(zipfile.ZipFile(archive).namelist()[0]))
        )
        if article["content"].strip()
    ]
    size = sum(len(article["text"].encode()) for article in articles)
    with tempfile.TemporaryDirectory() as folder:
        news, many = Path(folder) / "news.jsonl", Path(folder) / "many.jsonl"
        lines = "".join(json.dumps(article, ensure_ascii=False) + "\n" for article in articles)
        news.write_text(lines, encoding="utf-8")
        with open(many, "w", encoding="utf-8") as file:
            for _ in range(arguments.times):
                file.write(lines)
        rows = [
            *ours(news, many, Path(folder), arguments.tokenizer, size, arguments.times),
            classic(news, arguments.tokenizer, articles[:3000]),
            gigatoken(arguments.tokenizer, articles),
            datatrove(news, Path(folder), arguments.tokenizer, articles),
            fastokens(arguments.tokenizer, articles),
        ]
    steady = rows[1]["mb_per_s"]
    for row in rows[2:]:
        row["ours_steady_is_faster_by"] = round(steady / row["mb_per_s"], 2) if row["mb_per_s"] else None
    save(
        "tokenization",
        "JSONL to .bin/.idx, LLaMA-3 vocabulary, two processes: MB of UTF-8 text a second",
        rows,
        machine(),
    )


def ours(news: Path, many: Path, folder: Path, tokenizer: Path, size: int, times: int) -> list[dict[str, Any]]:
    """The command on the news once and many times; the difference is the steady rate."""
    seconds, peaks = [], []
    for path, name in ((news, "once"), (many, "many")):
        command = [
            sys.executable, "-m", "megatron_native", "tokenize", "--input", str(path), "--output-prefix", str(folder / name),
            "--tokenizer-model", str(tokenizer), "--append-eod", "--workers", "2",
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6)
    steady = (times - 1) * size / 1e6 / (seconds[1] - seconds[0])
    whole = times * size / 1e6 / seconds[1]
    return [
        {"name": f"megatron-native, the whole command, {times * size / 1e6:.0f} MB", "mb_per_s": round(whole, 1),
         "peak_mb_a_process": f"{peaks[0]:.0f} (input once), {peaks[1]:.0f} ({times} times)"},
        {"name": "megatron-native, steady", "mb_per_s": round(steady, 1)},
    ]  # fmt: skip


def _classic_start(path: str) -> None:
    from tokenizers import Tokenizer

    _worker["tokenizer"] = Tokenizer.from_file(path)
    _worker["tokenizer"].encode_special_tokens = True


def _classic_encode(line: str) -> tuple[list[int], int]:
    text = json.loads(line)["text"]
    ids = _worker["tokenizer"].encode(text).ids
    return [*ids, 128001], len(line)


def classic(news: Path, tokenizer: Path, articles: list[dict[str, Any]]) -> dict[str, Any]:
    """Pool.imap with chunks of 32, as tools/preprocess_data.py has it; the first articles."""
    import numpy as np

    lines = news.read_text(encoding="utf-8").split("\n")[: len(articles)]
    with multiprocessing.get_context("spawn").Pool(2, _classic_start, (str(tokenizer / "tokenizer.json"),)) as pool:
        list(pool.imap(_classic_encode, lines[:64], 32))
        start = time.perf_counter()
        for ids, _ in pool.imap(_classic_encode, lines, 32):
            np.array(ids, dtype=np.int32).tobytes()
        seconds = time.perf_counter() - start
    size = sum(len(article["text"].encode()) for article in articles)
    return {
        "name": "Megatron-LM's classic loop (Pool.imap, tokenizers), 2 processes",
        "mb_per_s": round(size / 1e6 / seconds, 2),
    }


def gigatoken(tokenizer: Path, articles: list[dict[str, Any]]) -> dict[str, Any]:
    """Gigatoken over a list of texts, one core, times two."""
    name = "gigatoken in memory and to bytes, one core × 2"
    try:
        import awkward
        import gigatoken as package
        import numpy as np

        engine = package.Tokenizer.from_json((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
        texts = [article["text"] for article in articles]
        start = time.perf_counter()
        for first in range(0, len(texts), 1000):
            found = engine.encode_batch(texts[first : first + 1000], parallel=False)
            np.asarray(awkward.flatten(found), dtype=np.int32).tobytes()
        seconds = time.perf_counter() - start
    except Exception as error:  # another version has another interface
        return {"name": f"{name}: not measured ({type(error).__name__}: {str(error)[:80]})", "mb_per_s": None}
    return {"name": name, "mb_per_s": round(2 * sum(len(text.encode()) for text in texts) / 1e6 / seconds, 1)}


def datatrove(news: Path, folder: Path, tokenizer: Path, articles: list[dict[str, Any]]) -> dict[str, Any]:
    """Datatrove's Megatron writer, one task over the first articles, times two."""
    name = "datatrove MegatronDocumentTokenizer, one task × 2"
    try:
        from datatrove.executor import LocalPipelineExecutor
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.tokens import MegatronDocumentTokenizer

        part = folder / "part"
        part.mkdir()
        (part / "a.jsonl").write_text(
            "\n".join(news.read_text(encoding="utf-8").split("\n")[:5000]) + "\n", encoding="utf-8"
        )
        pipeline = [
            JsonlReader(str(part)),
            MegatronDocumentTokenizer(
                str(folder / "dt"), str(tokenizer / "tokenizer.json"), eos_token="<|end_of_text|>"
            ),
        ]
        start = time.perf_counter()
        LocalPipelineExecutor(pipeline=pipeline, tasks=1, logging_dir=str(folder / "logs")).run()
        seconds = time.perf_counter() - start
    except Exception as error:  # not installed, or another version
        return {"name": f"{name}: not measured ({type(error).__name__}: {str(error)[:80]})", "mb_per_s": None}
    size = sum(len(article["text"].encode()) for article in articles[:5000])
    return {"name": name, "mb_per_s": round(2 * size / 1e6 / seconds, 2)}


def fastokens(tokenizer: Path, articles: list[dict[str, Any]]) -> dict[str, Any]:
    """The engine alone, from memory to ids, on text it has not seen, one core, times two."""
    import fastokens as package

    engine = package.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [article["text"] for article in articles]
    start = time.perf_counter()
    for first in range(0, len(texts), 500):
        engine.encode_batch_flat(texts[first : first + 500], False, True)
    seconds = time.perf_counter() - start
    return {
        "name": "fastokens alone, one core × 2",
        "mb_per_s": round(2 * sum(len(text.encode()) for text in texts) / 1e6 / seconds, 1),
    }


if __name__ == "__main__":
    main()
