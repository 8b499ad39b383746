"""MinHash signatures against rensa, gaoya, datasketch and datatrove, and near copies against brute force, on real news.

    python benchmarks/near_dedup.py [--data FOLDER]

All get the same shingles (5 words) and 112 permutations on one core. rensa, gaoya and datasketch have no folding: they get
text folded beforehand, cut into words, and only their own work is timed; ours is timed from the raw text, folding
included. datatrove runs its own signature stage, with its own Arabic word tokenizer, on a part of the news, since it is slow.
Rates are MB of UTF-8 text a second. The second half compares every pair of a sample by exact Jaccard similarity.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from results import machine, save

from megatron_native.corpus.folding import fold
from megatron_native.corpus.minhash import MinHashSettings, Signer

SIZE, PERMUTATIONS = 5, 112


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--sample", type=int, default=5000, help="documents compared by brute force (5000)")
    parser.add_argument("--datatrove-documents", type=int, default=300, help="documents datatrove gets (300)")
    arguments = parser.parse_args()
    texts = [
        article["content"]
        for archive in sorted(arguments.data.glob("*.zip"))
        for article in json.loads(zipfile.ZipFile(archive).read(zipfile.ZipFile(archive).namelist()[0]))
        if article["content"].strip()
    ]
    rows = [ours(texts)]
    folded = [fold(text).split() for text in texts[:6000]]
    shingled = [[" ".join(words[n : n + SIZE]) for n in range(max(1, len(words) - SIZE + 1))] for words in folded]
    size = sum(len(text.encode()) for text in texts[:6000])
    for name, peer in (("gaoya", gaoya), ("rensa", rensa), ("datasketch", datasketch)):
        rows.append(timed(name, peer, shingled, size))
    rows.append(datatrove(texts[: arguments.datatrove_documents]))
    for row in rows[1:]:
        row["ours_is_faster_by"] = round(rows[0]["mb_per_s"] / row["mb_per_s"], 1) if row["mb_per_s"] else None
    save(
        "near_dedup",
        "MinHash signatures: MB of UTF-8 text a second, one core",
        rows,
        machine(),
        brute_force=brute_force(texts, arguments.sample),
    )


def ours(texts: list[str]) -> dict[str, Any]:
    """Folding, shingles, permutations, bands and sketch of every text; the best of three runs."""
    signer = Signer(MinHashSettings())
    signer.sign(texts[0])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for text in texts:
            signer.sign(text)
        seconds.append(time.perf_counter() - start)
    size = sum(len(text.encode()) for text in texts)
    return {"name": "megatron-native, folding included", "mb_per_s": round(size / 1e6 / sorted(seconds)[1], 1)}


def timed(name: str, peer: Callable[[list[list[str]]], str], shingled: list[list[str]], size: int) -> dict[str, Any]:
    """A peer over shingles that are cut already."""
    start = time.perf_counter()
    try:
        note = peer(shingled)
    except ModuleNotFoundError:
        return {"name": f"{name}: not installed", "mb_per_s": None}
    return {"name": f"{name} {note}", "mb_per_s": round(size / 1e6 / (time.perf_counter() - start), 2)}


def gaoya(shingled: list[list[str]]) -> str:
    """Gaoya's index of 32-bit MinHash over words, which signs what is put into it."""
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=32, jaccard_threshold=0.8, num_bands=14, band_size=8, num_hashes=PERMUTATIONS, analyzer="word",
        ngram_range=(5, 5),
    )  # fmt: skip
    for number, shingles in enumerate(shingled):
        index.insert_document(number, " ".join(shingle.split(" ", 1)[0] for shingle in shingles))
    return "(MinHashStringIndex, from folded text, insertion included)"


def rensa(shingled: list[list[str]]) -> str:
    """Rensa's RMinHash."""
    from rensa import RMinHash

    for shingles in shingled:
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=42)
        sketch.update(shingles)
        sketch.digest()
    return "(RMinHash, shingles cut beforehand)"


def datasketch(shingled: list[list[str]]) -> str:
    """Datasketch's MinHash."""
    from datasketch import MinHash

    for shingles in shingled:
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in shingles])
    return "(MinHash.update_batch, shingles cut beforehand)"


def datatrove(texts: list[str]) -> dict[str, Any]:
    """Datatrove's signature stage as it comes."""
    try:
        from datatrove.data import Document
        from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
        from datatrove.utils.hashing import HashConfig
        from datatrove.utils.word_tokenizers import load_word_tokenizer
    except ModuleNotFoundError:
        return {"name": "datatrove: not installed", "mb_per_s": None}
    load_word_tokenizer("arb_Arab").word_tokenize("كلمة")
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        config = MinhashConfig(hash_config=HashConfig(precision=64), n_grams=SIZE, num_buckets=14, hashes_per_bucket=8)
        stage = MinhashDedupSignature(output_folder=folder, config=config, language="arb_Arab")
        start = time.perf_counter()
        stage.run((Document(text=text, id=str(number)) for number, text in enumerate(texts)), rank=0, world_size=1)
        seconds = time.perf_counter() - start
    return {
        "name": "datatrove MinhashDedupSignature (its own folding and word tokenizer)",
        "mb_per_s": round(size / 1e6 / seconds, 2),
    }


def brute_force(texts: list[str], count: int) -> dict[str, Any]:
    """Recall and precision of the dedup stage against the exact Jaccard similarity of every pair."""
    from scipy import sparse

    from megatron_native.corpus.dedup import DedupSettings, dedup

    texts = [text for text in texts if len(fold(text).split()) >= SIZE][:count]
    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for number, text in enumerate(texts):
        words = fold(text).split()
        for shingle in {" ".join(words[n : n + SIZE]) for n in range(len(words) - SIZE + 1)}:
            rows.append(number)
            columns.append(vocabulary.setdefault(shingle, len(vocabulary)))
    matrix = sparse.csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)))
    sizes = np.asarray(matrix.sum(axis=1)).ravel()
    shared = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    jaccard = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    exact = {(int(i), int(j)): float(s) for i, j, s in zip(shared.row, shared.col, jaccard)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_text(
            "".join(json.dumps({"id": str(n), "text": t}, ensure_ascii=False) + "\n" for n, t in enumerate(texts))
        )
        dedup([str(path)], Path(folder) / "out", DedupSettings())
        import zstandard

        raw = b"".join(
            zstandard.ZstdDecompressor().stream_reader(part.read_bytes(), read_across_frames=True).read()
            for part in (Path(folder) / "out" / "_duplicates").glob("*.zst")
        )
    left = {int(record["id"]): int(record["copy_of"]) for record in map(json.loads, raw.splitlines())}
    kept_for = lambda number: left.get(number, number)  # noqa: E731 (one line says it)
    result: dict[str, Any] = {"documents": len(texts), "documents_that_left": len(left)}
    for low, high in ((0.9, 1.01), (0.85, 0.9), (0.8, 0.85)):
        wanted = [pair for pair, similarity in exact.items() if low <= similarity < high]
        found = sum(1 for i, j in wanted if i in left or j in left)
        together = sum(1 for i, j in wanted if kept_for(i) == kept_for(j))
        result[f"pairs of similarity {low} to {min(high, 1.0)}"] = (
            f"{len(wanted)}, of which one left {found}, one cluster {together}"
        )
    far = sum(1 for gone, kept in left.items() if exact.get((min(gone, kept), max(gone, kept)), 0.0) < 0.7)
    result["left for a document of similarity below 0.7"] = (
        f"{far} of {len(left)} ({100 * far / max(1, len(left)):.1f} %)"
    )
    return result


if __name__ == "__main__":
    main()
