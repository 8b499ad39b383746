"""The check of datasets before a run: what is whole passes, every planted fault is named, and nothing is checked twice."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_native.config.run import RunConfig
from megatron_native.data import startup_check
from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.indexed import HEADER_BYTES, bin_path, idx_path, verify_structure
from megatron_native.data.startup_check import check_datasets, dataset_prefixes
from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from tests.data.planted_datasets import VOCABULARY, complete_dataset, documents, write_dataset, write_manifest
from tests.data.small_tokenizers import SENTENCES, write_llama3, write_sentencepiece, write_smollm

LENGTHS = (7, 30, 1, 0, 12, 400)
Model: Any = SimpleNamespace(vocab_size=VOCABULARY)
"""All that the check asks of a model."""


def run_of(folder: Path, *prefixes: Path, mode: str = "sampled", **more: Any) -> RunConfig:
    return RunConfig.model_validate({
        "run_dir": str(folder / "run"),
        "model": {"hf_config": str(folder / "config.json")},
        "data": {"blend": [{"prefix": str(prefix)} for prefix in prefixes], "verify": mode},
        "training": {"steps": 5, "global_batch_size": 2} if "phases" not in more else {"global_batch_size": 2},
        **more,
    })


def check(run: RunConfig, **options: Any) -> dict[Path, dict[str, Any]]:
    return check_datasets(run, Model, lambda line: None, **options)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return complete_dataset(tmp_path / "a", documents(*LENGTHS))


def write_at(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_a_whole_dataset_passes_and_is_described(tmp_path: Path, whole: Path, mode: str) -> None:
    said: list[str] = []
    found = check_datasets(run_of(tmp_path, whole, mode=mode), Model, said.append)
    assert list(found) == [whole]
    fact = found[whole]
    expected = {
        "documents": len(LENGTHS), "sequences": len(LENGTHS) - 1, "tokens": sum(LENGTHS), "dtype": "uint16", "mode": mode,
        "manifest": True, "tokenizer": "a" * 64, "idx_xxh3_128": file_digest(idx_path(whole)), "remembered": False,
    }  # fmt: skip
    assert {key: fact[key] for key in expected} == expected
    assert len(said) == 1 and f"{len(LENGTHS)} documents, {sum(LENGTHS)} tokens" in said[0]


def test_a_dataset_without_a_manifest_passes_and_it_is_said(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "bare", documents(*LENGTHS))
    said: list[str] = []
    found = check_datasets(run_of(tmp_path, prefix), Model, said.append)
    assert not found[prefix]["manifest"]
    assert "no manifest" in said[0]


def test_datasets_of_phases_are_checked_and_each_only_once(tmp_path: Path, whole: Path) -> None:
    other = complete_dataset(tmp_path / "b", documents(5, 6, seed=1))
    phases = [
        {"name": "one", "steps": 1, "blend": [{"prefix": str(tmp_path / "." / "x" / ".." / "a")}, {"prefix": str(other)}]},
        {"name": "two", "steps": 1},
    ]
    (tmp_path / "x").mkdir()
    run = run_of(tmp_path, whole, phases=phases)
    assert dataset_prefixes(run) == [whole, other]
    assert list(check(run)) == [whole, other]


def truncated_bin(prefix: Path) -> None:
    os.truncate(bin_path(prefix), bin_path(prefix).stat().st_size - 2)


def truncated_idx(prefix: Path) -> None:
    os.truncate(idx_path(prefix), idx_path(prefix).stat().st_size - 8)


def longer_bin(prefix: Path) -> None:
    with open(bin_path(prefix), "ab") as file:
        file.write(b"\0\0")


def id_past_the_vocabulary(prefix: Path) -> None:
    write_at(bin_path(prefix), 2 * 40, np.array([VOCABULARY], dtype="<u2").tobytes())


def moved_pointer(prefix: Path) -> None:
    write_at(idx_path(prefix), HEADER_BYTES + 4 * 5 + 8 * 2, np.array([999], dtype="<i8").tobytes())


def backward_boundary(prefix: Path) -> None:
    write_at(idx_path(prefix), HEADER_BYTES + 12 * 5 + 8 * 3, np.array([1], dtype="<i8").tobytes())


def shifted_boundary(prefix: Path) -> None:
    """Possible in itself: the empty document becomes the third instead of the fourth."""
    write_at(idx_path(prefix), HEADER_BYTES + 12 * 5 + 8 * 3, np.array([2], dtype="<i8").tobytes())


def other_counts(prefix: Path) -> None:
    write_manifest(prefix, documents(4, 4))


def no_bin(prefix: Path) -> None:
    bin_path(prefix).unlink()


FAULTS = [
    (truncated_bin, "a.bin is cut short: it has 898 bytes, and a.idx describes 900"),
    (truncated_idx, "a.idx is cut short"),
    (longer_bin, "a.bin is longer than its index"),
    (id_past_the_vocabulary, f"a.bin holds the id {VOCABULARY} at token 40, outside the vocabulary of {VOCABULARY}"),
    (moved_pointer, "a.idx is damaged: entry 2 is a pointer that is not where the sequence before it ends (999)"),
    (backward_boundary, "a.idx is damaged: entry 2 is a document boundary that goes backwards"),
    (shifted_boundary, "a.idx has another content than when it was made"),
    (other_counts, "a.manifest.json is the manifest of another dataset: documents 2 there, 6 here"),
    (no_bin, "a.bin is not there"),
]


@pytest.mark.parametrize("mode", ["sampled", "full"])
@pytest.mark.parametrize(("damage", "said"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS])
def test_a_fault_is_named(tmp_path: Path, whole: Path, damage: Any, said: str, mode: str) -> None:
    damage(whole)
    with pytest.raises(UserError) as caught:
        check(run_of(tmp_path, whole, mode=mode))
    assert said in str(caught.value)
    assert not (tmp_path / "run" / startup_check.STAMP_FILE).exists()


def test_all_faulty_datasets_are_in_one_error(tmp_path: Path, whole: Path) -> None:
    others = [complete_dataset(tmp_path / name, documents(9, 9)) for name in ("b", "c")]
    truncated_bin(whole)
    truncated_idx(others[1])
    with pytest.raises(UserError) as caught:
        check(run_of(tmp_path, whole, *others))
    assert "a.bin is cut short" in str(caught.value) and "c.idx is cut short" in str(caught.value)
    assert "b." not in str(caught.value)


def test_a_changed_id_inside_the_vocabulary_is_found_by_full_alone(tmp_path: Path, whole: Path) -> None:
    before = bin_path(whole).read_bytes()
    write_at(bin_path(whole), 2 * 40, bytes([before[2 * 40] ^ 1, before[2 * 40 + 1]]))
    check(run_of(tmp_path, whole))
    with pytest.raises(UserError, match=r"a\.bin: has another content than when it was made"):
        check(run_of(tmp_path, whole, mode="full"))


def test_off_only_opens(tmp_path: Path, whole: Path) -> None:
    id_past_the_vocabulary(whole)
    fact = check(run_of(tmp_path, whole, mode="off"))[whole]
    assert (fact["mode"], fact["documents"], fact["idx_xxh3_128"]) == ("off", len(LENGTHS), None)
    assert not (tmp_path / "run").exists()
    truncated_idx(whole)
    with pytest.raises(UserError, match="cut short"):
        check(run_of(tmp_path, whole, mode="off"))


@pytest.mark.parametrize("place", [0.0, 0.31, 0.77])
def test_wrong_ids_in_a_piece_longer_than_the_distance_of_blocks_are_found(tmp_path: Path, place: float) -> None:
    tokens, blocks = 1_000_000, 32
    prefix = write_dataset(tmp_path / "long", [np.zeros(tokens, dtype=np.uint16)])
    distance = (tokens - 4096) // (blocks - 1) + 1
    start = int(place * tokens)
    write_at(bin_path(prefix), 2 * start, np.full(distance, VOCABULARY, dtype="<u2").tobytes())
    with pytest.raises(UserError, match=f"holds the id {VOCABULARY}"):
        verify_structure(prefix, VOCABULARY, blocks)


def test_a_dataset_of_nothing_has_no_wrong_ids(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "empty", documents(0, 0))
    assert verify_structure(prefix, 10).document_count == 2


def test_a_dataset_of_few_blocks_is_read_whole(tmp_path: Path) -> None:
    tokens = 5 * 4096 + 1
    prefix = write_dataset(tmp_path / "short", [np.zeros(tokens, dtype=np.uint16)])
    for at in (0, 4096, 2 * 4096 - 1, tokens - 1):
        write_at(bin_path(prefix), 2 * at, np.array([VOCABULARY], dtype="<u2").tobytes())
        with pytest.raises(UserError, match=f"at token {at:,},"):
            verify_structure(prefix, VOCABULARY, 64)
        write_at(bin_path(prefix), 2 * at, b"\0\0")
    verify_structure(prefix, VOCABULARY, 64)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(startup_check, "file_digest", broken)
    with pytest.raises(UserError, match=r"can't be read: .*Input/output error: '.*a\.idx'"):
        check(run_of(tmp_path, whole))


# --- tokenizers ---


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    return load_tokenizer("HuggingFaceTokenizer", folder).description()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_smollm(tmp_path / "checkpoint" / "run" / "tokenizer")
    return tmp_path / "checkpoint"


def test_the_tokenizer_that_travels_with_the_model_is_accepted(tmp_path: Path, checkpoint: Path) -> None:
    there = shutil.copytree(checkpoint / "run" / "tokenizer", tmp_path / "where-it-came-from")
    prefix = complete_dataset(tmp_path / "a", documents(*LENGTHS), tokenizer=tokenizer_facts(there))
    run = run_of(tmp_path, prefix, model={"checkpoint": str(checkpoint)})
    Enough: Any = type("Enough", (), {"vocab_size": 700})
    found = check_datasets(run, Enough, lambda line: None)
    assert found[prefix]["tokenizer"] == tokenizer_facts(there)["hash"]


@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_of_a_model_with_both_files_the_one_of_the_datasets_kind_is_compared(
    tmp_path: Path, checkpoint: Path, mode: str
) -> None:
    folder = checkpoint / "run" / "tokenizer"
    write_sentencepiece(folder / "tokenizer.model")
    tokenizer = load_tokenizer("SentencePieceTokenizer", folder)
    facts = tokenizer.description()
    assert facts["hash"] != tokenizer_facts(folder)["hash"]
    rows = [np.append(tokenizer.encode(text), facts["eod_id"]) for text in SENTENCES[:2]]
    prefix = complete_dataset(tmp_path / "a", rows, tokenizer={**facts, "bos_token": None})
    run = run_of(tmp_path, prefix, mode=mode, model={"checkpoint": str(checkpoint)})
    assert check(run)[prefix]["tokenizer"] == facts["hash"]
    with open(folder / "tokenizer.model", "ab") as file:
        file.write(b"\x1a\x00")  # an empty field more: a model that reads the same and is another
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        check(run)


@pytest.mark.parametrize("source", ["checkpoint", "branch_from"])
def test_another_tokenizer_is_refused_with_both_named(tmp_path: Path, checkpoint: Path, source: str) -> None:
    other = write_llama3(tmp_path / "llama3")
    prefix = complete_dataset(tmp_path / "a", documents(*LENGTHS), tokenizer=tokenizer_facts(other))
    with pytest.raises(UserError) as caught:
        check(run_of(tmp_path, prefix, model={source: str(checkpoint)}))
    for part in (other / "tokenizer.json", checkpoint / "run" / "tokenizer", "<|end_of_text|>", "<|endoftext|>",
                 tokenizer_facts(other)["hash"][:16], "--tokenizer-model"):  # fmt: skip
        assert str(part) in str(caught.value)


def test_a_tokenizer_of_more_ids_than_the_model_has_is_refused(tmp_path: Path) -> None:
    prefix = complete_dataset(tmp_path / "a", documents(*LENGTHS), tokenizer={"vocab_size": VOCABULARY + 1})
    with pytest.raises(UserError, match=r"601 ids.*the model has an embedding of 600 ids"):
        check(run_of(tmp_path, prefix))


def test_two_tokenizers_in_a_run_are_refused(tmp_path: Path, whole: Path) -> None:
    other = complete_dataset(tmp_path / "b", documents(5), tokenizer={"hash": "b" * 64})
    with pytest.raises(UserError, match=r"different tokenizers: .*a \(hash aaaa.*b \(hash bbbb"):
        check(run_of(tmp_path, whole, other))


# --- the stamp ---


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the datasets that were really checked."""
    names: list[str] = []
    check_one = startup_check._check_one

    def counted(prefix: Path, *rest: Any) -> dict[str, Any]:
        names.append(prefix.name)
        return check_one(prefix, *rest)

    monkeypatch.setattr(startup_check, "_check_one", counted)
    return names


def test_an_unchanged_dataset_is_not_checked_again(tmp_path: Path, whole: Path, looked_at: list[str]) -> None:
    first = check(run_of(tmp_path, whole))[whole]
    second = check(run_of(tmp_path, whole))[whole]
    assert looked_at == ["a"]
    assert second["remembered"] and not first["remembered"]
    assert {**second, "remembered": False, "seconds": first["seconds"]} == first
    check(run_of(tmp_path, whole), anew=True)
    assert looked_at == ["a", "a"]


def test_a_new_dataset_alone_is_checked(tmp_path: Path, whole: Path, looked_at: list[str]) -> None:
    check(run_of(tmp_path, whole))
    other = complete_dataset(tmp_path / "b", documents(5))
    found = check(run_of(tmp_path, whole, other))
    assert looked_at == ["a", "b"]
    assert (found[whole]["remembered"], found[other]["remembered"]) == (True, False)


def test_full_is_not_satisfied_by_sampled_but_sampled_by_full(tmp_path: Path, whole: Path, looked_at: list[str]) -> None:
    check(run_of(tmp_path, whole))
    check(run_of(tmp_path, whole, mode="full"))
    assert looked_at == ["a", "a"]
    assert check(run_of(tmp_path, whole))[whole]["mode"] == "full"
    assert looked_at == ["a", "a"]


def test_processes_of_one_run_check_once(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    check_one = startup_check._check_one

    def slow(prefix: Path, *rest: Any) -> dict[str, Any]:
        looked.append(prefix.name)
        time.sleep(0.3)  # long enough that without a lock all of them would be inside
        return check_one(prefix, *rest)

    monkeypatch.setattr(startup_check, "_check_one", slow)
    with ThreadPoolExecutor(3) as pool:  # the lock is one of open files, so threads stand for processes
        found = list(pool.map(lambda _: check(run_of(tmp_path, whole))[whole], range(3)))
    assert looked == ["a"]
    assert sorted(fact["remembered"] for fact in found) == [False, True, True]


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("changed", [bin_path, idx_path, lambda prefix: DatasetFiles(prefix).manifest_path])
def test_a_file_of_another_time_is_checked_again(tmp_path: Path, whole: Path, looked_at: list[str], changed: Any) -> None:
    check(run_of(tmp_path, whole))
    touch(changed(whole))
    check(run_of(tmp_path, whole))
    assert looked_at == ["a", "a"]


def test_another_vocabulary_is_checked_again(tmp_path: Path, whole: Path) -> None:
    check(run_of(tmp_path, whole))
    Smaller: Any = type("Smaller", (), {"vocab_size": 20})
    with pytest.raises(UserError, match="an embedding of 20 ids"):
        check_datasets(run_of(tmp_path, whole), Smaller, lambda line: None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "something else"}'])
def test_a_stamp_that_cannot_be_read_is_as_none(tmp_path: Path, whole: Path, looked_at: list[str], content: str) -> None:
    (tmp_path / "run").mkdir()
    stamp = tmp_path / "run" / startup_check.STAMP_FILE
    stamp.write_text(content)
    check(run_of(tmp_path, whole))
    assert looked_at == ["a"]
    assert json.loads(stamp.read_text())["datasets"][str(whole)]["mode"] == "sampled"
