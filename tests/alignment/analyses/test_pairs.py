"""Pairs read from rewritings, folders of `gate` and plain files; samples."""

import json

import pytest

from megatron_native.alignment.analyses.pairs import Sample, document_of, read_pairs, with_sources
from megatron_native.alignment.gates.pairs import PairSettings, gate_pairs
from megatron_native.alignment.gates.settings import default_settings
from megatron_native.corpus.stage import Execution
from megatron_native.documents.writers import ShardWriter
from megatron_native.errors import UserError
from megatron_native.manifest import build_manifest, file_entry, write_json
from tests.alignment.analyses.pairs import CLEAN, WORN, pair, rewriting


def write_pairs(path, pairs):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in pairs), encoding="utf-8")
    return str(path)


def test_a_rewriting_gives_its_decisions_with_the_sources_of_their_documents(tmp_path):
    folder = rewriting(tmp_path)
    found = with_sources(read_pairs([str(folder)], PairSettings()), [str(folder)])
    assert [one.id for one in found] == ["d0", "d2", "d4"]  # the rules changed these
    assert [one.source for one in found] == ["site0.example", "site2.example", "site1.example"]
    for one in found:
        assert (one.origin, one.rewritten) == (f"الخبر {one.id[1:]}: {WORN}", f"الخبر {one.id[1:]}: {CLEAN}")
        assert (one.state, one.reasons, one.refused_by) == ("rewritten", (), [])
        assert one.gates["length"][1] is True


def test_files_of_pairs_and_what_gate_made_of_them(tmp_path):
    good, bad = (
        {"origin": WORN, "rewritten": CLEAN, "id": 7},
        {"origin": "بلغ العدد 12 طالبًا.", "rewritten": "بلغ العدد 21 طالبًا."},
    )
    source = write_pairs(tmp_path / "a.jsonl", [good, bad, {"origin": CLEAN, "rewritten": CLEAN}, {"origin": 3}])
    plain = list(read_pairs([source], PairSettings()))
    assert [(one.id, one.state, one.source) for one in plain] == [
        ("7", "rewritten", "a.jsonl"), ("a.jsonl 2", "rewritten", "a.jsonl"), ("a.jsonl 3", "unchanged", "a.jsonl"),
    ]  # fmt: skip
    settings = PairSettings(gates=default_settings(), keep_scores=True)
    gate_pairs([source], tmp_path / "checked", settings, Execution(1))
    checked = list(read_pairs([str(tmp_path / "checked")], PairSettings()))
    assert [one.state for one in checked] == ["rewritten", "unchanged", "refused"]
    assert checked[2].reason_kinds == checked[2].refused_by == ["numbers"]
    assert checked[2].reasons[0].startswith("numbers: ")
    assert checked[0].gates["numbers"] == (0.0, True)


@pytest.mark.parametrize(
    "gates",
    [{"scores": {"a": None}}, {"scores": {"a": "much"}}, {"scores": {"a": 1.0}, "refused": ["a"]}, {"a": [None, True]},
     {"scores": {"a": [1.0]}}],
)  # fmt: skip
def test_a_pair_whose_gates_have_no_scores_is_passed_over(tmp_path, gates):
    good = {"origin": WORN, "rewritten": CLEAN, "gates": {"scores": {"a": 1}, "refused": {"a": "short"}}}
    source = write_pairs(tmp_path / "a.jsonl", [{"origin": WORN, "rewritten": CLEAN, "gates": gates}, good])
    refused = []
    (found,) = read_pairs([source], PairSettings(), refused.append)
    assert (found.gates, found.reasons, refused) == ({"a": (1.0, False)}, ("a: short",), ["gates without scores"])


def test_seeds_give_their_decisions_too(tmp_path):
    decided = [
        {"id": "d1#0", "origin": WORN, "rewritten": CLEAN, "state": "rewritten", "gates": {"length": [1.0, True]}},
        {"id": "d2#3", "origin": CLEAN, "rewritten": None, "state": "unchanged"},
        {"id": "d3#1", "origin": CLEAN, "rewritten": None, "state": "refused", "reason": "answer not understood",
         "answer": "…", "metadata": {"document": {"id": "d3", "source": None, "file": "dump/b.jsonl"}}},
    ]  # fmt: skip
    seeds = [
        {"id": "d1#0", "origin": WORN, "rewritten": CLEAN, "metadata": {"document": {"source": "a.example"}}},
        {"id": "d2#3", "origin": CLEAN, "rewritten": CLEAN, "metadata": {"document": {"source": "b.example"}}},
    ]
    written = []
    for place, records in (("part-00000.jsonl.zst", seeds), ("_decisions/part-00000.jsonl.zst", decided)):
        with ShardWriter(tmp_path / place) as writer:
            for record in records:
                writer.write(record)
        written.append(file_entry(tmp_path / place, tmp_path, len(records)))
    account = {"read": 3, "kept": 2, "dropped": {"answer not understood": 1}, "quarantined": {}}
    write_json(tmp_path / "manifest.json", build_manifest("annotate", {}, [], written, account))
    found = with_sources(read_pairs([str(tmp_path)], PairSettings()), [str(tmp_path)])
    assert [(one.id, one.rewritten, one.state, one.source) for one in found] == [
        ("d1#0", CLEAN, "rewritten", "a.example"), ("d2#3", CLEAN, "unchanged", "b.example"),
        ("d3#1", "…", "refused", "dump/b.jsonl"),
    ]  # fmt: skip
    assert found[2].reason_kinds == ["answer not understood"]


def test_what_can_not_be_reported_on_is_said(tmp_path):
    folder = rewriting(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**manifest, "stage": "dedup"}), encoding="utf-8")
    with pytest.raises(UserError, match="is the output of dedup and holds no pairs"):
        list(read_pairs([str(folder)], PairSettings()))


def test_a_sample_is_the_same_for_a_seed_and_in_the_order_of_the_stream():
    pairs = [pair("نص", str(number), id=number) for number in range(1000)]

    def drawn(size, seed):
        sample = Sample(size, seed)
        for place, one in enumerate(pairs):
            sample.offer(one, place)
        return [int(one.id) for one in sample.pairs()]

    few = drawn(50, 1)
    assert len(few) == 50 and few == sorted(few) == drawn(50, 1) != drawn(50, 2)
    assert set(few) <= set(drawn(200, 1))  # a larger sample holds the smaller
    assert drawn(2000, 1) == list(range(1000)) and drawn(0, 1) == []
    assert 350 < sum(few) / 50 < 650


def test_the_document_of_a_passage():
    assert document_of(pair("ا", "ب", id="a#b#12")) == "a#b"
    assert document_of(pair("ا", "ب", id="a#b")) == "a#b"
