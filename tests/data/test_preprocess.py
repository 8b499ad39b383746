import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from megatron_native.data.encode_part import TokenizeSettings, encode_part
from megatron_native.data.indexed import IndexedTokens, bin_path, idx_path, verify_structure
from megatron_native.data.preprocess import Execution, read_document_ids, tokenize
from megatron_native.documents.parts import plan_parts
from megatron_native.engine.tasks import Share
from megatron_native.errors import UserError
from megatron_native.manifest import build_manifest, file_digest, write_json
from tests.data.small_tokenizers import SENTENCES

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS = [*SENTENCES, "نص فيه <|endoftext|> مكتوب", "", "🙂 \u200bemoji", " ".join(SENTENCES)]


def write_jsonl(path, texts, prefix="d"):
    path.write_text(
        "".join(json.dumps({"id": f"{prefix}{n}", "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts)),
        encoding="utf-8",
    )
    return str(path)


def settings(folder, **changes):
    return TokenizeSettings("HuggingFaceTokenizer", str(folder), **{"append_eod": True, **changes})


def run(inputs, prefix, folder, workers=1, json_keys=("text",), **changes):
    said = []
    results = tokenize(inputs, prefix, settings(folder, **changes), json_keys, Execution(workers), said.append)
    return results[0], "\n".join(said)


def transformers_tokenizer(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def quarantine(path):
    with open(path, "rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return [json.loads(line) for line in content.splitlines()]


def megatrons_classic_loop(texts, folder, prefix, begin, separator):
    """The heart of Megatron-LM's tools/preprocess_data.py, with transformers and megatron-core's own builder."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    tokenizer = transformers_tokenizer(folder)
    builder = IndexedDatasetBuilder(str(bin_path(prefix)), dtype=np.uint16)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        if ids:
            ids = tokenizer.convert_tokens_to_ids(begin) + ids + [tokenizer.convert_tokens_to_ids(separator)]
        builder.add_document(torch.tensor(ids), [len(ids)] if ids else [])
    builder.finalize(str(idx_path(prefix)))


@pytest.mark.parametrize(
    ("kind", "begin", "separator"),
    [("smollm", [], "<|endoftext|>"), ("llama3", ["<|begin_of_text|>"], "<|end_of_text|>")],
)
def test_files_are_bit_for_bit_those_of_megatrons_classic_script(kind, begin, separator, tmp_path, request):
    folder = request.getfixturevalue(kind)
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    result, _ = run([source], tmp_path / "out", folder)
    assert result.prefix == tmp_path / "out_text_document"
    megatrons_classic_loop(TEXTS, folder, tmp_path / "classic", begin, separator)
    for path in (bin_path, idx_path):
        assert path(result.prefix).read_bytes() == path(tmp_path / "classic").read_bytes()
    policy = result.manifest["document_policy"]
    assert policy == {"begin": begin[0] if begin else None, "end": separator}


def test_the_manifest_says_what_was_made_of_what(smollm, tmp_path):
    lines = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    with open(lines, "a") as file:
        file.write('{"id": "broken", "text": "abc\n{"id": "no text"}\n')
    manifest = run([lines], tmp_path / "out", smollm)[0].manifest
    dataset = IndexedTokens(tmp_path / "out_text_document")
    counts = manifest["counts"]
    assert counts["read"] == len(TEXTS) + 2
    assert counts["kept"] == len(TEXTS) - 1 == len(dataset)
    assert counts["dropped"] == {"empty": 1}
    assert sum(counts["quarantined"].values()) == 2
    assert counts["special_tokens_in_text"] == 1
    assert counts["separators_from_text"] == 0
    assert manifest["tokens"] == dataset.token_count
    tokens = dataset.read(0, dataset.token_count)
    assert manifest["id_range"] == [int(tokens.min()), int(tokens.max())]
    assert manifest["dtype"] == "uint16"
    assert manifest["tokenizer"]["eod_token"] == "<|endoftext|>"
    assert [output["path"] for output in manifest["outputs"]] == [
        "out_text_document.bin", "out_text_document.idx", "out_text_document.ids.jsonl.zst", "out_quarantine.jsonl.zst",
    ]
    for output in manifest["outputs"]:
        assert file_digest(tmp_path / output["path"]) == output["xxh3_128"]
    refused = quarantine(tmp_path / "out_quarantine.jsonl.zst")
    assert len(refused) == 2
    assert "broken" in refused[0]["raw"]


def test_document_ids_are_kept_in_the_order_of_the_documents(smollm, tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", TEXTS, "a")
    second = write_jsonl(tmp_path / "b.jsonl", TEXTS, "b")
    result, _ = run([second, first], tmp_path / "out", smollm)
    ids = list(read_document_ids(result.prefix))
    dataset = IndexedTokens(result.prefix)
    assert len(ids) == dataset.document_count == result.manifest["documents"]
    assert ids == [f"{name}{n}" for name in "ba" for n in range(len(TEXTS))]
    assert [entry["documents"] for entry in result.manifest["inputs"]] == [len(TEXTS)] * 2


def test_every_container_gives_the_same_tokens(smollm, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = Path(write_jsonl(tmp_path / "in.jsonl", TEXTS))
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "in.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(TEXTS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    expected = bin_path(run([str(plain)], tmp_path / "plain", smollm)[0].prefix).read_bytes()
    for suffix in ("jsonl.gz", "jsonl.zst", "parquet"):
        result, _ = run([str(tmp_path / f"in.{suffix}")], tmp_path / suffix, smollm)
        assert bin_path(result.prefix).read_bytes() == expected, suffix


def test_bytes_do_not_depend_on_the_number_of_workers(smollm, tmp_path):
    for n in range(4):
        write_jsonl(tmp_path / f"in-{n}.jsonl", TEXTS * (n + 1), f"f{n}-")
    one, _ = run([str(tmp_path / "in-*.jsonl")], tmp_path / "one", smollm, workers=1)
    three, _ = run([str(tmp_path / "in-*.jsonl")], tmp_path / "three", smollm, workers=3)
    for path in (bin_path, idx_path):
        assert path(one.prefix).read_bytes() == path(three.prefix).read_bytes()
    assert list(read_document_ids(one.prefix)) == list(read_document_ids(three.prefix))
    assert sorted(path.name for path in tmp_path.glob("one*")) == [
        "one_text_document.bin", "one_text_document.ids.jsonl.zst", "one_text_document.idx",
        "one_text_document.manifest.json",
    ]


def test_neither_the_cut_nor_a_job_array_nor_the_engine_changes_the_bytes(smollm, tmp_path):
    for n in range(3):
        write_jsonl(tmp_path / f"in-{n}.jsonl", TEXTS * (n + 1), f"f{n}-")
    inputs = [str(tmp_path / "in-*.jsonl")]
    whole, _ = run(inputs, tmp_path / "whole", smollm)
    cut, _ = run(inputs, tmp_path / "cut", smollm, part_bytes=500)
    slow, _ = run(inputs, tmp_path / "slow", smollm, engine="tokenizers")
    for index in (1, 2, 0):
        share = Execution(share=Share(index, 3))
        (array,) = tokenize(inputs, tmp_path / "array", settings(smollm, part_bytes=500), execution=share,
        say=lambda line: None)
        assert (array.missing > 0) == (index != 0)
    assert whole.manifest["engine"] == "fastokens" and whole.manifest["engine_certificate"]["equal"]
    assert (slow.manifest["engine"], slow.manifest["engine_certificate"]) == ("tokenizers", None)
    for other in (cut, slow, array):
        for path in (bin_path, idx_path):
            assert path(other.prefix).read_bytes() == path(whole.prefix).read_bytes()
        assert list(read_document_ids(other.prefix)) == list(read_document_ids(whole.prefix))
        assert other.manifest["counts"] == whole.manifest["counts"]
        assert [entry["documents"] for entry in other.manifest["inputs"]] == [len(TEXTS), 2 * len(TEXTS), 3 * len(TEXTS)]


def test_several_keys_make_several_datasets(smollm, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": "1", "text": "abc", "title": "x y"}\n')
    results = tokenize([str(path)], tmp_path / "out", settings(smollm), ["text", "title"], say=lambda line: None)
    assert [result.prefix.name for result in results] == ["out_text_document", "out_title_document"]
    assert len(verify_structure(tmp_path / "out_title_document")) == 1


def test_the_lineage_leads_to_the_manifests_of_the_input_stage(smollm, tmp_path):
    folder = tmp_path / "dedup" / "ar"
    folder.mkdir(parents=True)
    write_jsonl(folder / "part-00000.jsonl", TEXTS)
    nothing = {"read": 0, "kept": 0, "dropped": {}, "quarantined": {}}
    write_json(tmp_path / "dedup" / "manifest.json", build_manifest("dedup", {}, [], [], nothing))
    manifest = run([str(folder)], tmp_path / "out", smollm)[0].manifest
    assert [(entry["path"], entry["stage"]) for entry in manifest["lineage"]] == [("dedup/manifest.json", "dedup")]
    assert manifest["lineage"][0]["xxh3_128"] == file_digest(tmp_path / "dedup" / "manifest.json")


def test_a_finished_dataset_is_skipped_and_other_parameters_are_refused(smollm, llama3, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    other = write_jsonl(tmp_path / "other.jsonl", TEXTS[:2])
    prefix = run([source, other], tmp_path / "out", smollm)[0].prefix
    made = bin_path(prefix).stat().st_mtime_ns
    again, said = run([source, other], tmp_path / "out", smollm, workers=2)
    assert again.skipped and "already done, skipped" in said
    for change in ({"append_eod": False}, {"json_key": "text", "eod_token": "<|im_end|>"}, {"bos": True}):
        with pytest.raises(UserError, match="other settings or inputs"):
            run([source, other], tmp_path / "out", smollm, **change)
    with pytest.raises(UserError, match="tokenizer_hash"):
        run([source, other], tmp_path / "out", llama3)
    with pytest.raises(UserError, match=r"gone or changed \['other.jsonl'\]"):
        run([source], tmp_path / "out", smollm)
    with pytest.raises(UserError, match="another order"):
        run([other, source], tmp_path / "out", smollm)
    assert bin_path(prefix).stat().st_mtime_ns == made
    os.truncate(bin_path(prefix), 10)
    with pytest.raises(UserError, match="has another size"):
        run([source, other], tmp_path / "out", smollm)


def test_a_dataset_of_someone_elses_is_not_written_over(smollm, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    bin_path(tmp_path / "out_text_document").write_bytes(b"precious")
    with pytest.raises(UserError, match="made by something else"):
        run([source], tmp_path / "out", smollm)
    assert bin_path(tmp_path / "out_text_document").read_bytes() == b"precious"


def test_killed_at_any_moment_and_rerun_gives_the_same_bytes(smollm, tmp_path):
    for n in range(6):
        write_jsonl(tmp_path / f"in-{n}.jsonl", TEXTS * 800, f"f{n}-")
    inputs = [str(tmp_path / "in-*.jsonl")]
    whole, _ = run(inputs, tmp_path / "whole", smollm, part_bytes=700_000)
    command = [
        sys.executable, str(REPOSITORY / "tools" / "preprocess_data.py"), "--input", *inputs, "--output-prefix",
        str(tmp_path / "killed"), "--tokenizer-model", str(smollm), "--append-eod", "--workers", "2",
        "--part-bytes", "700000",
    ]
    parts = tmp_path / "killed_text_document.parts"
    for wanted in (1, 3):  # kill when that many parts are finished
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list(parts.glob("*[0-9].json"))) < wanted and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed_text_document.manifest.json").exists()
    result, said = run(inputs, tmp_path / "killed", smollm, workers=2, part_bytes=700_000)
    assert "parts are done already" in said
    for path in (bin_path, idx_path):
        assert path(result.prefix).read_bytes() == path(whole.prefix).read_bytes()
    assert result.manifest["counts"] == whole.manifest["counts"]
    assert not parts.exists()


def test_a_work_folder_of_other_parameters_is_refused(smollm, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    run([source], tmp_path / "out", smollm)
    # as if killed before the manifest: the plan of the work folder knows its parameters
    manifest = json.loads((tmp_path / "out_text_document.manifest.json").read_text())
    (tmp_path / "out_text_document.parts").mkdir()
    write_json(tmp_path / "out_text_document.parts" / "plan.json", manifest)
    (tmp_path / "out_text_document.manifest.json").unlink()
    with pytest.raises(UserError, match="append_eod: True there, False asked for"):
        run([source], tmp_path / "out", smollm, append_eod=False)


def test_two_runs_never_write_the_same_dataset(smollm, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    (tmp_path / "out_text_document.parts").mkdir()
    with open(tmp_path / "out_text_document.parts" / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another run is writing .*out_text_document"):
            run([source], tmp_path / "out", smollm)
    assert not run([source], tmp_path / "out", smollm)[0].skipped


def test_bad_records_are_set_aside_and_counted(smollm, tmp_path):
    path = tmp_path / "in.jsonl"
    good = json.dumps({"id": "g", "text": "كلام سليم"}).encode()
    bad = [b'{"id": "1", "text": "cut', b'{"id": "2"}', '{"id": "3", "text": "ويندوز"}'.encode("cp1256"),
           b'{"id": "4", "text": 7}', b"[1, 2]", b'{"id": "5", "text": "\\ud800"}',
           b'{"id": "6", "text": "' + b"x" * 5000 + b'"}']
    path.write_bytes(b"\n".join([good, *bad, good]) + b"\n")
    result, _ = run([str(path)], tmp_path / "out", smollm, max_line_bytes=2000)
    counts = result.manifest["counts"]
    assert (counts["read"], counts["kept"], sum(counts["quarantined"].values())) == (9, 2, 7)
    assert len(quarantine(tmp_path / "out_quarantine.jsonl.zst")) == 7


def test_a_text_that_the_engine_cannot_take_is_set_aside_and_its_batch_is_kept(smollm, tmp_path, monkeypatch):
    chosen = settings(smollm)
    tokenizer = chosen.load_tokenizer()
    whole = tokenizer.encode_flat

    def choosy(texts):
        if "bad" in texts:
            raise RuntimeError("out of luck")
        return whole(texts)

    monkeypatch.setattr(tokenizer, "encode_flat", choosy)
    path = Path(write_jsonl(tmp_path / "in.jsonl", ["one", "bad", "two"]))
    (part,) = plan_parts([path], tmp_path.resolve())
    account = encode_part(part, tmp_path / "part", tokenizer, chosen)
    assert (account.read, account.kept, dict(account.quarantined)) == (3, 2, {"not encodable": 1})
    (refused,) = quarantine(tmp_path / "part.quarantine.jsonl.zst")
    offset = path.read_bytes().index(b"\n") + 1
    assert (refused["raw"], refused["offset"], refused["detail"]) == ("bad", offset, "out of luck")


def test_inputs_that_are_not_there_or_hold_nothing_are_named(smollm, tmp_path):
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("nowhere.jsonl", "none-*.jsonl", "dangling.jsonl", "folder", "empty.jsonl"):
        with pytest.raises(UserError) as raised:
            run([str(tmp_path / name)], tmp_path / "out", smollm)
        assert name in str(raised.value) or "no text to tokenize" in str(raised.value)
    good = write_jsonl(tmp_path / "good.jsonl", TEXTS)
    result, _ = run([str(tmp_path / "empty.jsonl"), good], tmp_path / "out", smollm)  # one empty file among others
    assert result.manifest["counts"]["read"] == len(TEXTS)


def test_a_wrong_key_says_so_and_keeps_what_was_refused(smollm, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    with pytest.raises(UserError, match="Is --json-keys content right"):
        run([source], tmp_path / "out", smollm, json_keys=["content"])
    assert len(quarantine(tmp_path / "out_quarantine.jsonl.zst")) == len(TEXTS)


def test_sentencepiece_documents(sentencepiece_model, tmp_path):
    import sentencepiece

    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    chosen = TokenizeSettings("SentencePieceTokenizer", str(sentencepiece_model), append_eod=True, bos=True)
    (result,) = tokenize([source], tmp_path / "out", chosen, say=lambda line: None)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    dataset = IndexedTokens(result.prefix)
    expected = [[1, *reference.encode(text), 2] for text in TEXTS if text]
    assert [dataset[n].tolist() for n in range(len(dataset))] == expected


def test_ids_of_real_news_equal_transformers_own(smollm, llama3, tmp_path):
    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not data:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    texts = []
    for archive in sorted(Path(data, "saudinewsnet").glob("*.zip")):
        with zipfile.ZipFile(archive) as file:
            texts += [article["content"] for article in json.loads(file.read(file.namelist()[0]))]
        if len(texts) >= 2000:
            break
    texts = texts[:2000]
    source = write_jsonl(tmp_path / "news.jsonl", texts)
    for folder, begin in ((smollm, []), (llama3, ["<|begin_of_text|>"])):
        result, _ = run([source], tmp_path / folder.name, folder)
        reference = transformers_tokenizer(folder)
        expected = reference(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        dataset, begin_ids = IndexedTokens(result.prefix), reference.convert_tokens_to_ids(begin)
        separator = reference.convert_tokens_to_ids(result.manifest["document_policy"]["end"])
        assert dataset.document_count == 2000
        for n, ids in enumerate(expected):
            assert dataset.document(n).tolist() == (begin_ids + ids + [separator] if ids else []), n
