"""Stage folders for the tests of the report, made by the stages themselves from a small dump."""

import json
from pathlib import Path

import zstandard

from megatron_native.corpus.clean import CleanSettings, clean
from megatron_native.corpus.dedup import DedupSettings, dedup
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY, arabic_text, write_jsonl

KEPT = 8
"""Documents that stay of `dump`."""


def dump(folder: Path) -> Path:
    """13 records: 8 stay, 3 are copies (2 exact, 1 near), 1 is empty, 1 can't be read."""
    records = [
        {"id": "story", "text": STORY, "url": "https://www.paper.example/a"},
        {"id": "story again", "text": STORY, "url": "https://other.example/b"},
        {"id": "library", "text": LIBRARY, "url": "https://paper.example/c"},
        {"id": "library again", "text": LIBRARY.replace("،", " ،"), "url": "https://other.example/d"},
        {"id": "english", "text": ENGLISH, "source": "letters"},
        {"id": "empty", "text": ""},
        *({"id": f"long {n}", "text": arabic_text(n, 120), "source": "books"} for n in range(5)),
        {
            "id": "long 0 with a new end",
            "text": arabic_text(0, 120) + " ثم عادوا إلى بيوتهم مسرورين",
            "source": "books",
        },
    ]
    write_jsonl(folder / "dump" / "a.jsonl", records)
    (folder / "dump" / "b.jsonl").write_text('{"id": "cut off", "text": "نص لم يكت\n', encoding="utf-8")
    return folder / "dump"


def run_of(folder: Path) -> Path:
    """`clean/` and `dedup/` of the dump."""
    clean([str(dump(folder))], folder / "clean", CleanSettings(preset="none"))
    dedup([str(folder / "clean")], folder / "dedup", DedupSettings())
    return folder


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def write_manifest(folder: Path, manifest: dict) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, records: list) -> Path:
    """Records as zstd JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode("utf-8", "surrogatepass")))
    return path


def stage_by_hand(folder: Path, stage: str, documents: list, dropped: list, quarantined: list) -> Path:
    """A stage folder whose manifest is right, whatever the records hold."""
    write_lines(folder / "ar" / "part-00000.jsonl.zst", documents)
    if dropped:
        write_lines(folder / "_dropped" / "part-00000.jsonl.zst", dropped)
    if quarantined:
        write_lines(folder / "_quarantine" / "part-00000.jsonl.zst", quarantined)

    def by_reason(records):
        reasons = [record["reason"] for record in records]
        return {reason: reasons.count(reason) for reason in reasons}

    read = len(documents) + len(dropped) + len(quarantined)
    write_manifest(folder, {
        "format": "megatron-native/manifest/1", "stage": stage, "parameters": {}, "inputs": [],
        "outputs": [{"path": "ar/part-00000.jsonl.zst", "records": len(documents)}],
        "counts": {"read": read, "kept": len(documents), "dropped": by_reason(dropped), "quarantined": by_reason(quarantined)},
    })  # fmt: skip
    return folder
