"""Files of conversations become a masked dataset: every record accounted for, the same bytes however it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.preprocess import Execution, read_document_ids
from megatron_native.data.verify_dataset import verify_dataset
from megatron_native.errors import UserError
from megatron_native.posttraining.chat_encoding import ChatEncoder
from megatron_native.posttraining.encode_conversations import PrepareSettings, is_held_out
from megatron_native.posttraining.prepare import prepare


def pair(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def files_of(prefix: Path) -> dict[str, bytes]:
    files = DatasetFiles(prefix)
    return {path.suffix: path.read_bytes() for path in (files.bin, files.idx, files.mask, files.ids)}


@pytest.fixture
def settings(chatml: Path) -> PrepareSettings:
    return PrepareSettings(chatml, 64, template="chatml", part_bytes=500)


def test_every_record_is_accounted_for(tmp_path: Path, settings: PrepareSettings, chatml: Path) -> None:
    good = [pair("ما هو؟", "كتاب جديد.", id="a"), {"id": "b", "instruction": "قل نعم.", "output": "نعم"}]
    chat = {"conversations": [
        {"from": "human", "value": "أين؟"}, {"from": "gpt", "value": "هنا."}, {"from": "human", "value": "ومتى؟"},
        {"from": "gpt", "value": "الآن."},
    ]}  # fmt: skip
    bad = [pair("ما؟", ""), pair("ما؟", "<|im_end|>", id="c"), {"text": "نص"}, pair("ما؟", "كلمة " * 60, id="long")]
    source = write(tmp_path / "in.jsonl", [*good, chat, *bad])
    with source.open("a") as file:
        file.write("{broken\n")
    made = prepare([str(source)], tmp_path / "out" / "sft", settings, say=lambda line: None)
    counts = made.manifest["counts"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (8, 3, {"too long": 1})
    assert counts["quarantined"] == {
        "empty answer": 1, "control token in a message": 1, "no conversation": 1, "malformed JSON": 1,
    }  # fmt: skip
    dataset, encoder = IndexedTokens(made.prefix), ChatEncoder(chatml, "chatml")
    assert dataset.masked and dataset.document_count == 3
    answers = []
    for number in range(3):
        start, length = dataset.document_place(number)
        ids, learned = dataset.read(start, length), dataset.read_learned(start, length)
        answers.append(encoder.tokenizer.decode(ids[learned == 1].tolist()))
    assert answers == ["كتاب جديد.<|im_end|>", "نعم<|im_end|>", "هنا.<|im_end|>الآن.<|im_end|>"]
    assert list(read_document_ids(made.prefix))[:2] == ["a", "b"]
    assert (counts["answers"], counts["learned_tokens"]) == (4, int(dataset.read_learned(0, dataset.token_count).sum()))
    assert made.manifest["inputs"][0]["records"] == 8
    assert made.manifest["chat"]["end_of_turn"] == "<|im_end|>"
    assert made.manifest["longest"] == int(dataset.document_lengths().max())
    assert "3 conversations with 4 answers" in made.summary() and "1 too long" in made.summary()
    found = verify_dataset(made.prefix)
    assert found.passed, found.summary()
    assert verify_dataset(made.prefix, quick=True).passed


def test_neither_workers_nor_kills_change_the_bytes(
    tmp_path: Path, settings: PrepareSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.jsonl", [pair(f"سؤال {n}؟", f"جواب {n}.", id=f"c{n}") for n in range(40)])
    first = prepare([str(source)], tmp_path / "one", settings, say=lambda line: None)
    prepare([str(source)], tmp_path / "two", settings, Execution(workers=2), say=lambda line: None)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")

    from megatron_native.posttraining import prepare as stage

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage._PrepareStage, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare([str(source)], tmp_path / "three", settings, say=lambda line: None)
    assert not (tmp_path / "three.idx").exists()
    parts = sorted((tmp_path / "three.parts").glob("0*.json"))
    assert len(parts) > 3
    parts[1].unlink()
    said: list[str] = []
    prepare([str(source)], tmp_path / "three", settings, say=said.append)
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")
    assert f"{len(parts) - 1} of {len(parts)} parts are done already" in said[0]
    assert not (tmp_path / "three.parts").exists()

    again = prepare([str(source)], tmp_path / "one", settings, say=said.append)
    assert again.skipped and again.manifest == first.manifest
    with pytest.raises(UserError, match="learn: 'all' there, 'last' asked for"):
        prepare([str(source)], tmp_path / "one", PrepareSettings(**{**vars(settings), "learn": "last"}))


def test_the_held_out_share_goes_by_ids(tmp_path: Path, settings: PrepareSettings) -> None:
    names = [f"conversation {n}" for n in range(200)]
    source = write(tmp_path / "in.jsonl", [pair(f"سؤال {name}؟", "جواب.", id=name) for name in names])
    settings = PrepareSettings(**{**vars(settings), "held_out": 0.1, "part_bytes": 5000})
    made = prepare([str(source)], tmp_path / "sft", settings, say=lambda line: None)
    assert made.heldout_prefix is not None and made.heldout_manifest is not None
    held, kept = list(read_document_ids(made.heldout_prefix)), list(read_document_ids(made.prefix))
    assert held == [name for name in names if is_held_out(name, 0.1)]
    assert sorted(held + kept) == sorted(names)
    assert 8 <= len(held) <= 35, "about twenty of two hundred"
    assert made.manifest["counts"]["dropped"] == {"held out": len(held)}
    assert made.heldout_manifest["counts"]["kept"] == len(held)
    assert verify_dataset(made.heldout_prefix).passed


def test_parquet_with_nested_turns(tmp_path: Path, settings: PrepareSettings) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"id": ["x"], "messages": [pair("ما هو؟", "كتاب.")["messages"]]}), tmp_path / "in.parquet"
    )
    made = prepare([str(tmp_path / "in.parquet")], tmp_path / "sft", settings, say=lambda line: None)
    assert made.manifest["counts"]["kept"] == 1
    assert list(read_document_ids(made.prefix)) == ["x"]


def test_what_can_not_be_prepared_is_said(tmp_path: Path, settings: PrepareSettings, chatml: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"text": "نص"}])
    with pytest.raises(UserError, match="no conversation to learn from: 1 records read"):
        prepare([str(source)], tmp_path / "a", settings)
    good = write(tmp_path / "good.jsonl", [pair("ما؟", "هذا.")])
    with pytest.raises(UserError, match="of 1 conversations that is none"):
        prepare([str(good)], tmp_path / "b", PrepareSettings(**{**vars(settings), "held_out": 1e-6}))
    with pytest.raises(UserError, match=r"--held-out 1\.5"):
        prepare([str(good)], tmp_path / "b", PrepareSettings(**{**vars(settings), "held_out": 1.5}))
    (tmp_path / "c.bin").write_bytes(np.zeros(3, np.uint16).tobytes())
    with pytest.raises(UserError, match="made by something else"):
        prepare([str(good)], tmp_path / "c", settings)
