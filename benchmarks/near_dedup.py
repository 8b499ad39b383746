"""MinHash signatures against rensa, gaoya, datasketch and datatrove, and near copies against brute force, on real news.

    python benchmarks/near_dedup.py [--data FOLDER]

All get the same documents, shingles (5 words) and 112 permutations, each in turn, three rounds of it, and the median
round counts. Rates are MB of the raw UTF-8 text a second of processor time, so that other work on the machine and a
second thread count for nothing. Ours is timed from the raw text, folding, band keys and sketch included. The peers but
one have no folding: they get text folded beforehand. gaoya cuts shingles itself and signs only what it puts into its
index. rensa and datasketch have no shingles either: cutting them, as a user must, is timed in one row and left out in
the other, where the strings are new in every round, as those of a document that is met once are (Python keeps the UTF-8
of a string that was asked for it). datatrove runs its own signature stage, with its own folding and Arabic word
tokenizer, on a part of the news and once, since it is slow. The second half compares every pair of a sample by exact
Jaccard similarity.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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

SIZE, PERMUTATIONS, ROUNDS = 5, 112, 3


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--sample", type=int, default=5000, help="documents compared by brute force (5000)")
    parser.add_argument("--documents", type=int, default=4000, help="documents signed (4000)")
    parser.add_argument("--datatrove-documents", type=int, default=300, help="documents datatrove gets (300)")
    arguments = parser.parse_args()
    texts = [
        article["content"]
        for archive in sorted(arguments.data.glob("*.zip"))
        for article in json.loads(zipfile.ZipFile(archive).read(zipfile.ZipFile(archive).namelist()[0]))
        if article["content"].strip()
    ]
    rows = race(texts[: arguments.documents])
    rows.append(datatrove(texts[: arguments.datatrove_documents]))
    for row in rows[1:]:
        row["ours_is_faster_by"] = round(rows[0]["mb_per_s"] / row["mb_per_s"], 1) if row["mb_per_s"] else None
    save(
        "near_dedup",
        "MinHash signatures: MB of UTF-8 text a second of processor time",
        rows,
        machine(),
        brute_force=brute_force(texts, arguments.sample),
    )


def race(texts: list[str]) -> list[dict[str, Any]]:
    """Every contestant that is installed over the same documents, in turn; its median rate of the rounds."""
    folded = [fold(text) for text in texts]
    size = sum(len(text.encode()) for text in texts)
    contestants = {
        "megatron-native, from raw text": ours,
        "gaoya MinHashStringIndex, from folded text, insertion included": gaoya,
        "rensa RMinHash, shingles cut beforehand": rensa_cut,
        "rensa RMinHash, from folded text, shingles cut in Python": rensa,
        "datasketch MinHash.update_batch, shingles cut beforehand": datasketch_cut,
        "datasketch MinHash.update_batch, from folded text, shingles cut in Python": datasketch,
    }
    seconds: dict[str, list[float]] = {}
    rows: list[dict[str, Any]] = []
    for name, make in contestants.items():
        try:
            make(texts[:20], folded[:20])()  # what is compiled or loaded once
            seconds[name] = []
        except ModuleNotFoundError:
            print(f"{name}: not installed")
    for _ in range(ROUNDS):
        for name, taken in seconds.items():
            run = contestants[name](texts, folded)
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
    for name, taken in seconds.items():
        rows.append({"name": name, "mb_per_s": round(size / 1e6 / statistics.median(taken), 1)})
    return rows


def cut(folded: str) -> list[str]:
    """The shingles of a folded text, as strings."""
    words = folded.split()
    return [" ".join(words[start : start + SIZE]) for start in range(max(1, len(words) - SIZE + 1))]


def ours(texts: list[str], folded: list[str]) -> Callable[[], None]:
    """Folding, shingles, minima, band keys and sketch."""
    signer = Signer(MinHashSettings())

    def run() -> None:
        for text in texts:
            signer.sign(text)

    return run


def gaoya(texts: list[str], folded: list[str]) -> Callable[[], None]:
    """What gaoya signs goes into its index; `smallvec` is its fastest."""
    from gaoya.minhash import MinHashStringIndex

    index = MinHashStringIndex(
        hash_size=32, jaccard_threshold=0.8, num_bands=14, band_size=8, num_hashes=PERMUTATIONS, analyzer="word",
        ngram_range=(SIZE, SIZE), id_container="smallvec",
    )  # fmt: skip

    def run() -> None:
        for number, text in enumerate(folded):
            index.insert_document(number, text)

    return run


def _rensa(shingles: list[str]) -> None:
    from rensa import RMinHash

    sketch = RMinHash(num_perm=PERMUTATIONS, seed=42)
    sketch.update(shingles)
    sketch.digest()


def rensa_cut(texts: list[str], folded: list[str]) -> Callable[[], None]:
    """Rensa over lists of strings."""
    return _cut_beforehand(_rensa, folded)


def rensa(texts: list[str], folded: list[str]) -> Callable[[], None]:
    """Rensa with what makes its lists of strings."""
    return _from_folded(_rensa, folded)


def _datasketch(shingles: list[str]) -> None:
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS)
    sketch.update_batch([shingle.encode() for shingle in shingles])


def datasketch_cut(texts: list[str], folded: list[str]) -> Callable[[], None]:
    """As `rensa_cut`."""
    return _cut_beforehand(_datasketch, folded)


def datasketch(texts: list[str], folded: list[str]) -> Callable[[], None]:
    """As `rensa`."""
    return _from_folded(_datasketch, folded)


def _cut_beforehand(sign: Callable[[list[str]], None], folded: list[str]) -> Callable[[], None]:
    shingled = [cut(text) for text in folded]

    def run() -> None:
        for shingles in shingled:
            sign(shingles)

    return run


def _from_folded(sign: Callable[[list[str]], None], folded: list[str]) -> Callable[[], None]:
    def run() -> None:
        for text in folded:
            sign(cut(text))

    return run


def datatrove(texts: list[str]) -> dict[str, Any]:
    """The signature stage of datatrove as it comes."""
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
        start = time.process_time()
        stage.run((Document(text=text, id=str(number)) for number, text in enumerate(texts)), rank=0, world_size=1)
        seconds = time.process_time() - start
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
        for shingle in set(cut(fold(text))):
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

    def kept_for(number: int) -> int:
        return left.get(number, number)

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
