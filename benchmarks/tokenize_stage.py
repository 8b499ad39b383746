"""tokenize against its peers: JSONL of real news to .bin/.idx with LLaMA-3's vocabulary, in two processes.

    python benchmarks/tokenize_stage.py --vocabulary llama_models-….whl [--data FOLDER] [--times 10]

Ours is the real command. The peers are Megatron-LM's classic loop and its gigatoken loop (a few lines each, of the same
shape), and datatrove's MegatronDocumentTokenizer; one that is not installed is listed as such. Every run is a process
of its own. `mb_per_s` is UTF-8 text over the time beyond that of the same run on ten documents, which is `start_s` (most
of it loads the vocabulary): what a long run comes to. `mb_per_cpu_s` is the same over the processor time of all its
processes, which other work on the machine changes less. `whole_s` is the wall clock of it all, `peak_mb` the largest
process. fastokens alone encodes the texts from memory on one core: `ours_faster` compares with twice its rate, since two
cores are what the others have. Its pass over the news is what a run over as much text compares with; the repeated file
is text that every engine has in its cache. A run that is mostly start has no rate; then ours on the repeated file, which
the cache favours, is compared with a peer that ran on the news alone. (Not called tokenize.py, which would hide the
standard library's.)
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from results import machine, save

ROOT = Path(__file__).resolve().parents[1]
OURS = "megatron-native tokenize, two workers"
PEERS = {
    # candidate: its row's name, packages it needs, also over the repeated file
    "ours": (OURS, (), True),
    "classic": ("Megatron-LM's classic loop (Pool.imap, tokenizers), two workers", (), False),
    "datatrove": ("datatrove MegatronDocumentTokenizer, two workers", ("datatrove",), False),
    "gigatoken": ("Megatron-LM's gigatoken loop, two threads", ("gigatoken", "awkward"), True),
    "fastokens": ("fastokens alone, from memory, one core", ("fastokens",), True),
}
EOD = "<|end_of_text|>"
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def main() -> None:
    """Measure, compare, save; or, as a child process, run one candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data) / "saudinewsnet", help="folder of the news archives")
    parser.add_argument("--vocabulary", type=Path, help="llama-models' wheel, or the tokenizer.model in it")
    parser.add_argument("--times", type=int, default=10, help="how often the long input repeats the news (10)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the fast candidates; the median counts (3)")
    parser.add_argument("--run", nargs=4, metavar=("NAME", "INPUT", "TOKENIZER", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, source, tokenizer, out = arguments.run
        print(json.dumps(globals()[f"run_{name}"](Path(source), Path(tokenizer), Path(out))))
        return
    if arguments.vocabulary is None or not arguments.vocabulary.exists():
        parser.error("--vocabulary: give the wheel that `pip download --no-deps llama-models` brings")
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """All candidates on the news, the fast ones on the news repeated too; and the ids of ours against `tokenizers`."""
    made = folder / "prepare"
    size = child("prepare", arguments.data, arguments.vocabulary, folder)["mb"]
    tokenizer, whole, few, long = (made / name for name in ("tokenizer.json", "news.jsonl", "few.jsonl", "long.jsonl"))
    with open(long, "wb") as file:
        for _ in range(arguments.times):
            with open(whole, "rb") as once:
                shutil.copyfileobj(once, file)
    rows: list[dict[str, Any]] = []
    loads = [os.getloadavg()[0]]
    for name, (title, packages, fast) in PEERS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            rows.append({"name": title, "input": f"not installed ({', '.join(missing)})"})
            continue
        inputs = [(whole, 1, arguments.repeats if fast else 1)] + [(long, arguments.times, 1)] * fast
        start = lowest(child(name, few, tokenizer, folder) for _ in range(3))
        for source, times, repeats in inputs:
            found = median(child(name, source, tokenizer, folder) for _ in range(repeats))
            cores = 1 if name == "fastokens" else 2
            rates = [rate(size * times, found[what], start[what]) for what in ("seconds", "cpu")]
            rows.append({
                "name": title, "input": f"news × {times}", "whole_s": round(found["seconds"], 2),
                "start_s": round(start["seconds"], 2), "mb_per_s": rates[0], "mb_per_cpu_s": rates[1],
                "cores": cores, "peak_mb": round(found["peak_mb"]),
            })  # fmt: skip
            print(rows[-1], flush=True)
        loads.append(os.getloadavg()[0])
    ours = [row for row in rows if row["name"] == OURS]
    for row in rows:
        twice = sum(other["name"] == row["name"] for other in rows) > 1
        candidates = [our for our in ours if our["input"] == row["input"] or not twice]
        for what, ratio in (("mb_per_s", "ours_faster"), ("mb_per_cpu_s", "ours_faster_in_cpu")):
            our = next((run for run in candidates if run[what]), None)
            if our and row.get(what):
                row[ratio] = round(our[what] / row[what] / (2 / row["cores"] if what == "mb_per_s" else 1), 2)
                row["against_ours_on"] = our["input"]
    child("ours", whole, tokenizer, folder)
    check = child("check", whole, tokenizer, folder)
    save(
        "tokenize", "tokenize: JSONL of real news to .bin/.idx, LLaMA-3's vocabulary, two cores", rows, machine(),
        load_average=f"{min(loads):.1f} to {max(loads):.1f} (2 is this benchmark alone; above it, other work ran too)",
        identical_ids=f"{check['same']:,} of {check['documents']:,} documents have the ids of Hugging Face's tokenizers",
    )  # fmt: skip


def child(name: str, source: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """What one candidate found, in a process of its own (this one stays small: a child's peak begins at its parent's)."""
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = [sys.executable, __file__, "--run", name, str(source), str(tokenizer), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed on {source.name}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rate(size: float, whole: float, start: float) -> float | None:
    """MB a second beyond the start; None where the start is most of it, since the rest is lost in its noise."""
    return round(size / (whole - start), 1) if whole - start > start else None


def lowest(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The least of each figure: of starts, which other work makes longer, so that no run is credited with its noise."""
    found = list(runs)
    return {name: min(run[name] for run in found) for name in found[0]}


def median(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure."""
    found = list(runs)
    return {name: statistics.median(run[name] for run in found) for name in found[0]}


def finished(started: float) -> dict[str, Any]:
    """Seconds since the start; of this process and all it waited for, the processor time and the largest one's peak."""
    seconds = time.perf_counter() - started
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": seconds, "cpu": sum(one.ru_utime + one.ru_stime for one in usage),
        "peak_mb": max(one.ru_maxrss for one in usage) / 1024,
    }  # fmt: skip


# The candidates: each reads `source` and writes into `out`.


def run_ours(source: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """The command, as a user gives it; parts of 4 MiB, so that two workers end together, and two parts at least."""
    command = [
        sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(source), "--output-prefix",
        str(out / "news"), "--tokenizer-model", str(tokenizer), "--append-eod", "--workers", "2", "--part-bytes",
        str(min(4 << 20, source.stat().st_size // 2 + 1)),
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return finished(started)


_classic: Any = None


def _classic_start(tokenizer: str) -> None:
    global _classic
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(tokenizer)
    _classic = loaded, loaded.token_to_id(EOD)


def _classic_encode(line: str) -> tuple[list[int], list[int], int]:
    tokenizer, eod = _classic
    ids = tokenizer.encode(json.loads(line)["text"]).ids
    ids.append(eod)
    return ids, [len(ids)], len(line)


class _Builder:
    """What a builder of an indexed dataset does with a document: one write, and three lists for the index."""

    def __init__(self, prefix: Path) -> None:
        self.prefix, self.lengths, self.ends = prefix, list[int](), [0]
        self.file = open(f"{prefix}.bin", "wb")  # noqa: SIM115 (closed by finalize)

    def add_document(self, ids: Any, lengths: list[int]) -> None:
        import numpy as np

        self.file.write(np.array(ids, dtype=np.int32).tobytes(order="C"))
        self.lengths.extend(lengths)
        self.ends.append(len(self.lengths))

    def finalize(self) -> None:
        import numpy as np

        self.file.close()
        lengths = np.array(self.lengths, dtype=np.int32)
        pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64) * 4])
        with open(f"{self.prefix}.idx", "wb") as index:
            index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 4, len(lengths), len(self.ends)))
            for values in (lengths, pointers.astype(np.int64), np.array(self.ends, dtype=np.int64)):
                index.write(values.tobytes())


def run_classic(source: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Lines through Pool.imap, documents back through the pipe, one builder."""
    started = time.perf_counter()
    builder = _Builder(out / "news")
    with open(source, encoding="utf-8") as lines, multiprocessing.Pool(2, _classic_start, (str(tokenizer),)) as pool:
        for ids, lengths, _ in pool.imap(_classic_encode, lines, 32):
            builder.add_document(ids, lengths)
        pool.close()
        pool.join()
    builder.finalize()
    return finished(started)


def run_gigatoken(source: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """The whole file encoded into memory, then document by document into the builder."""
    started = time.perf_counter()
    import gigatoken
    import numpy as np

    loaded = gigatoken.Tokenizer.from_json(tokenizer.read_text(encoding="utf-8"))
    (eod,) = loaded.encode(EOD)
    encoded = loaded.encode_files(gigatoken.JsonlFileSource([source], field="text"), parallel=True)
    builder = _Builder(out / "news")
    for document in encoded:
        builder.add_document(np.append(np.asarray(document), eod), [len(document) + 1])
    builder.finalize()
    return finished(started)


def run_datatrove(source: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Two tasks in two processes, the file cut in two for them beforehand."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

    lines = source.read_bytes().splitlines(keepends=True)
    (out / "in").mkdir()
    for half in range(2):
        (out / "in" / f"{half}.jsonl").write_bytes(b"".join(lines[half::2]))
    del lines
    started = time.perf_counter()
    pipeline = [
        JsonlReader(str(out / "in")),
        MegatronDocumentTokenizer(str(out / "out"), tokenizer_name_or_path=str(tokenizer), eos_token=EOD),
    ]
    LocalPipelineExecutor(pipeline, tasks=2, workers=2, logging_dir=str(out / "logs"), start_method="fork").run()
    return finished(started)


def run_fastokens(source: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """Nothing but encoding, in batches of a million characters, on one thread."""
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    import fastokens

    loaded = fastokens.Tokenizer.from_json_str(tokenizer.read_text(encoding="utf-8"))
    seconds, cpu, batch, characters = 0.0, 0.0, list[str](), 0
    with open(source, encoding="utf-8") as lines:
        for line in chain(lines, (None,)):
            if line is not None:
                batch.append(json.loads(line)["text"])
                characters += len(batch[-1])
            if characters >= 1 << 20 or line is None:
                started, worked = time.perf_counter(), time.process_time()
                loaded.encode_batch_flat(batch, False, True)
                seconds, cpu = seconds + time.perf_counter() - started, cpu + time.process_time() - worked
                batch, characters = [], 0
    return {**finished(0.0), "seconds": seconds, "cpu": cpu}


# What is not measured.


def run_prepare(data: Path, vocabulary: Path, out: Path) -> dict[str, Any]:
    """The articles as JSONL, ten of them, and LLaMA-3's tokenizer.json; the size of their text in MB."""
    size, count = 0, 0
    with open(out / "news.jsonl", "w", encoding="utf-8") as file, open(out / "few.jsonl", "w", encoding="utf-8") as few:
        for path in sorted(data.glob("*.zip")):
            with zipfile.ZipFile(path) as archive:
                articles = [article for name in archive.namelist() for article in json.loads(archive.read(name))]
            for article in articles:
                if not (text := article["content"]).strip():
                    continue  # the peers differ in what they make of an empty document
                line = json.dumps({"id": str(count), "text": text, "url": article["url"]}, ensure_ascii=False) + "\n"
                file.write(line)
                if count < 10:
                    few.write(line)
                size, count = size + len(text.encode()), count + 1
    write_llama3(vocabulary, out / "tokenizer.json")
    return {"mb": size / 1e6}


def write_llama3(vocabulary: Path, path: Path) -> None:
    """A `tokenizer.json` of LLaMA-3's tiktoken file."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    if vocabulary.suffix == ".whl":
        with zipfile.ZipFile(vocabulary) as wheel:
            content = wheel.read("llama_models/llama3/tokenizer.model")
    else:
        content = vocabulary.read_bytes()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    letters = _byte_letters()
    vocab = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = []
    for token in sorted(ranks, key=lambda token: ranks[token]):  # every way to make it of two, the earliest first
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        known.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [("".join(letters[b] for b in left), "".join(letters[b] for b in right)) for left, right in known]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    named = ["<|begin_of_text|>", EOD, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
             "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
             "<|eot_id|>", "<|python_tag|>"]  # fmt: skip
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(2, 256 - len(named) + 2)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in named + reserved])
    begin = named[0]
    template = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer.save(str(path))


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is printable."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def run_check(source: Path, tokenizer: Path, out: Path) -> dict[str, Any]:
    """How many documents of ours have the ids that `tokenizers` gives them, and how many there are."""
    import numpy as np
    from tokenizers import Tokenizer

    sys.path.insert(0, str(ROOT))
    from megatron_native.data.indexed import IndexedTokens

    reference = Tokenizer.from_file(str(tokenizer))
    reference.encode_special_tokens = True
    dataset = IndexedTokens(out.parent / "ours" / "news_text_document")
    eod, same, number = reference.token_to_id(EOD), 0, 0
    with open(source, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    for start in range(0, len(texts), 500):
        for encoding in reference.encode_batch_fast(texts[start : start + 500]):
            same += np.array_equal(dataset.document(number), [*encoding.ids, eod])
            number += 1
    assert dataset.document_count == number
    return {"same": int(same), "documents": number}


if __name__ == "__main__":
    main()
