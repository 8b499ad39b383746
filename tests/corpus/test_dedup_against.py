"""Dedup held against earlier corpora: what leaves for a stored document, what is only another form of one, what is refused."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import zstandard

from megatron_native.corpus.dedup import DedupSettings, dedup
from megatron_native.corpus.explain import explain, print_explanation
from megatron_native.corpus.stage import Execution
from megatron_native.engine.tasks import Share
from megatron_native.errors import UserError
from tests.corpus.corpus_files import LIBRARY, STORY, arabic_text, part_bytes, write_jsonl
from tests.corpus.test_minhash import changed, jaccard, shingle_set

NEAR, EXACT = "near copy of an earlier corpus", "exact copy of an earlier corpus"


def records(path):
    """The records of a file of any number of frames."""
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
        return [json.loads(line) for line in stream.read().decode("utf-8").split("\n")[:-1]]


def documents(folder):
    return [record for path in sorted(folder.glob("*.jsonl.zst")) for record in records(path)]


def duplicates(folder):
    return {record["id"]: record for path in sorted((folder / "_duplicates").glob("*.zst")) for record in records(path)}


def stored(folder, texts, **settings):
    """A dedup folder with signatures, of texts by their ids."""
    source = write_jsonl(Path(f"{folder}.jsonl"), [{"text": text, "id": name} for name, text in texts.items()])
    dedup([str(source)], folder, DedupSettings(**settings), keep_signatures=True)
    return folder


def held_against(tmp_path, earlier, texts, **settings):
    """Ids that stay, what is written of the others, and the manifest, of new texts held against earlier ones."""
    folder = stored(tmp_path / "earlier", earlier)
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": text, "id": name} for name, text in texts.items()])
    manifest = dedup([str(source)], tmp_path / "out", DedupSettings(**settings), against=[folder]).manifest
    return [record["id"] for record in documents(tmp_path / "out")], duplicates(tmp_path / "out"), manifest


def wins(text):
    """As long a text that stays before others of its length: longer by a word."""
    return text + " انتهى"


def test_a_copy_of_a_stored_document_leaves_however_long_it_is_and_is_counted_apart(tmp_path):
    text = arabic_text(1, 400)
    new = {
        "spelled": STORY.replace("أن ", "ان ").replace("المعلمة", "المُعَلِّمَة"),
        "near": wins(wins(changed(text, 4))),
        "far": changed(text, 100),
        "other": LIBRARY,
        "other again": LIBRARY,
    }
    assert jaccard(text, new["near"]) > 0.88 and jaccard(text, new["far"]) < 0.5
    kept, left, manifest = held_against(tmp_path, {"story": STORY, "text": text}, new)
    assert kept == ["far", "other"]
    assert manifest["counts"]["dropped"] == {EXACT: 1, NEAR: 1, "exact copy": 1}
    where = {"earlier_corpus": "../earlier", "new_form_stays": False}
    assert left["spelled"] | where == left["spelled"] and left["near"] | where == left["near"]
    assert (left["spelled"]["copy_of"], left["spelled"]["reason"], left["spelled"]["similarity"]) == (
        "story",
        EXACT,
        1.0,
    )
    assert (left["near"]["copy_of"], left["near"]["reason"]) == ("text", NEAR)
    assert left["near"]["similarity"] == pytest.approx(jaccard(text, new["near"]), abs=0.1)
    assert left["other again"]["copy_of"] == "other" and "earlier_corpus" not in left["other again"]
    assert [record["metadata"] for record in documents(tmp_path / "out")] == [{}, {"copies": 1}]
    assert manifest["clusters"]["sizes"] == {"2": 3}


def test_what_left_the_earlier_corpus_takes_nothing_out(tmp_path):
    """a left for b, and c is near to a alone: b is what the corpus has."""
    words = arabic_text(8, 400).split()
    first = " ".join(words)
    for place in range(36):
        words[place] = f"مختلف{place}"
    second = " ".join([*words, "زيادة"])
    for place in range(364, 400):
        words[place] = f"مختلف{place}"
    for place in range(36):
        words[place] = first.split()[place]
    third = " ".join(words)
    assert jaccard(first, second) > 0.8 and jaccard(first, third) > 0.8 and jaccard(second, third) < 0.72
    folder = stored(tmp_path / "earlier", {"a": first, "b": second}, threshold=0.75)
    assert [record["id"] for record in documents(folder)] == ["b"]
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": third, "id": "c"}])
    manifest = dedup([str(source)], tmp_path / "out", DedupSettings(), against=[folder]).manifest
    assert manifest["counts"]["kept"] == 1
    assert [(entry["documents"], entry["stay"]) for entry in manifest["against"]] == [(2, 1)]


def test_a_document_is_no_copy_of_its_own_earlier_form(tmp_path):
    text = arabic_text(1, 300)
    kept, left, manifest = held_against(
        tmp_path, {"same": STORY, "edited": text, "gone": LIBRARY}, {"same": STORY, "edited": changed(text, 2)}
    )
    assert (kept, left) == (["same", "edited"], {})
    assert manifest["clusters"]["in_a_new_form"] == 2


def test_a_rewrite_that_became_a_copy_of_another_document_leaves_for_its_new_form(tmp_path):
    """Without its notice a is b; b itself was hardly changed."""
    shared, notice = arabic_text(1, 300), arabic_text(2, 120)
    earlier = {"a": f"{shared}\n{notice}", "b": shared}
    new = {"a": wins(changed(shared, 1)), "b": changed(shared, 2, seed=5)}
    assert jaccard(*earlier.values()) < 0.75
    kept, left, _ = held_against(tmp_path, earlier, new)
    assert kept == ["b"]  # a is longer, but it is the one that is a copy of the other's earlier form
    assert left["a"]["copy_of"] == "b"


def test_it_leaves_also_where_only_the_earlier_form_is_near(tmp_path, capsys):
    text, rewritten = arabic_text(1, 300), arabic_text(7, 300)
    new = {"a": wins(changed(text, 3)), "b": rewritten}
    kept, left, manifest = held_against(tmp_path, {"a": arabic_text(2, 300), "b": text}, new)
    assert kept == ["b"]
    assert (
        left["a"] | {"copy_of": "b", "reason": NEAR, "earlier_corpus": "../earlier", "new_form_stays": True}
        == left["a"]
    )
    assert manifest["counts"]["dropped"] == {NEAR: 1}
    assert documents(tmp_path / "out")[0]["metadata"] == {"copies": 1}
    found = explain(tmp_path / "out", "a")
    assert found["jaccard"] == pytest.approx(jaccard(new["a"], text), abs=1e-4)
    assert found["kept_text"] == text[:400]
    print_explanation(found, as_json=False)
    assert f"left: {NEAR}: b as it is in ../earlier, which stays here in a new form" in capsys.readouterr().out


def test_of_two_rewrites_that_became_copies_of_each_other_one_stays(tmp_path):
    common = arabic_text(3, 300)
    earlier = {"a": arabic_text(1, 300), "b": arabic_text(2, 300)}
    kept, left, manifest = held_against(tmp_path, earlier, {"a": common, "b": wins(changed(common, 2))})
    assert kept == ["b"]
    assert (left["a"]["copy_of"], left["a"]["reason"]) == ("b", "near copy")
    assert manifest["counts"]["dropped"] == {"near copy": 1}


def test_two_that_changed_places_do_not_both_leave(tmp_path):
    one, other = arabic_text(1, 300), arabic_text(2, 300)
    kept, left, _ = held_against(tmp_path, {"a": one, "b": other}, {"a": changed(other, 2), "b": wins(changed(one, 2))})
    assert kept == ["b"]
    assert left["a"]["reason"] == NEAR


def test_three_that_went_round_leave_no_fewer_than_what_is_near_to_what_stays(tmp_path):
    """a has b's text, b has c's, c has a's: whoever stays, what leaves is near to a form of it."""
    texts = {name: arabic_text(seed, 300) for seed, name in enumerate("abc")}
    new = {"a": changed(texts["b"], 2), "b": changed(texts["c"], 2), "c": changed(texts["a"], 2)}
    kept, left, _ = held_against(tmp_path, texts, new)
    assert kept and len(kept) + len(left) == 3
    for name, record in left.items():
        assert record["copy_of"] in kept
        assert jaccard(new[name], texts[record["copy_of"]]) > 0.9


def test_a_document_that_does_not_come_again_takes_out_a_rewrite_near_to_it(tmp_path):
    text = arabic_text(1, 300)
    kept, left, _ = held_against(tmp_path, {"a": STORY, "b": text}, {"a": changed(text, 3)})
    assert kept == []
    assert (left["a"]["copy_of"], left["a"]["new_form_stays"]) == ("b", False)


def test_new_documents_of_one_id_are_all_forms_of_the_stored_one(tmp_path):
    text = arabic_text(1, 300)
    shape = {"bands": 20, "rows": 4}
    folder = stored(tmp_path / "earlier", {"a": text}, **shape)
    new = [{"text": changed(text, 9, seed), "id": "a"} for seed in range(2)]
    assert jaccard(text, new[0]["text"]) > 0.7 and jaccard(text, new[1]["text"]) > 0.7
    assert jaccard(new[0]["text"], new[1]["text"]) < 0.57
    source = write_jsonl(tmp_path / "new.jsonl", new)
    settings = DedupSettings(threshold=0.65, **shape)
    manifest = dedup([str(source)], tmp_path / "out", settings, against=[folder]).manifest
    assert manifest["counts"]["kept"] == 2
    others = [{**record, "id": str(number)} for number, record in enumerate(new)]
    source = write_jsonl(tmp_path / "others.jsonl", others)
    assert dedup([str(source)], tmp_path / "others", settings, against=[folder]).manifest["counts"]["kept"] == 0


def test_a_chain_between_two_stored_documents_leaves_from_both_ends_and_they_stay(tmp_path):
    words, steps = arabic_text(8, 400).split(), []
    for step in range(5):
        steps.append(" ".join(words))
        for place in range(step * 30, step * 30 + 30):
            words[place] = f"مختلف{step}و{place}"
    assert all(jaccard(one, other) > 0.83 for one, other in itertools.pairwise(steps))
    assert jaccard(steps[0], steps[3]) < 0.63 and jaccard(steps[1], steps[4]) < 0.63
    new = {"near first": steps[1], "between": steps[2], "near last": steps[3]}
    _, left, manifest = held_against(tmp_path, {"first": steps[0], "last": steps[4]}, new)
    assert (left["near first"]["copy_of"], left["near last"]["copy_of"]) == ("first", "last")
    sizes = manifest["clusters"]["sizes"]  # stored documents count where they have copies, and never as a copy
    assert sum((int(size) - 1) * count for size, count in sizes.items()) == len(left)
    assert set(sizes) <= {"2", "3"} and sum(sizes.values()) == 2


def test_of_stored_documents_one_of_the_same_text_goes_before_a_near_one(tmp_path):
    text = arabic_text(1, 300)
    near = changed(text, 4)
    assert 0.85 < jaccard(text, near) < 0.95
    folder = stored(tmp_path / "earlier", {"near": near, "same": text}, threshold=0.99)
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": text, "id": "new"}])
    dedup([str(source)], tmp_path / "out", DedupSettings(), against=[folder])
    assert duplicates(tmp_path / "out")["new"]["copy_of"] == "same"


def corpus(seed, documents=120):
    """Stored texts that are no copies, new ones that are copies of them, of each other, or of nothing; by id."""
    generator = random.Random(seed)
    old = {f"old{number}": arabic_text(number, 200) for number in range(documents)}
    new = {}
    for number in range(documents):
        base = generator.choice([old[f"old{generator.randrange(documents)}"], arabic_text(1000 + number // 3, 200)])
        new[f"new{number}"] = changed(base, generator.choice([0, 1, 2, 12, 20]), number)
    return old, new


@pytest.mark.parametrize("seed", range(3))
def test_what_stays_is_what_stays_of_both_at_once_with_the_earlier_preferred(tmp_path, seed):
    old, new = corpus(seed)
    kept, left, _ = held_against(tmp_path / "apart", old, new)
    write_jsonl(tmp_path / "both" / "old" / "a.jsonl", [{"text": text, "id": name} for name, text in old.items()])
    write_jsonl(tmp_path / "both" / "new" / "a.jsonl", [{"text": text, "id": name} for name, text in new.items()])
    dedup([str(tmp_path / "both")], tmp_path / "at_once", DedupSettings(prefer=("old",)))
    at_once = {record["id"] for path in (tmp_path / "at_once" / "new").glob("*.zst") for record in records(path)}
    assert set(kept) == at_once
    assert 20 < len(kept) < len(new) and {"near copy", NEAR, EXACT} <= {record["reason"] for record in left.values()}


def test_every_copy_that_brute_force_finds_leaves_and_nothing_else(tmp_path):
    """Pairs between 0.72 and 0.9 are left to chance (see near-copies.md), so the corpus has none."""
    old, new = corpus(9, 40)
    sets = {name: shingle_set(text) for name, text in {**old, **new}.items()}

    def similarity(one, other):
        return len(sets[one] & sets[other]) / len(sets[one] | sets[other])

    clear = {name: text for name, text in new.items() if not any(0.6 < similarity(name, other) < 0.9 for other in sets)}
    kept, left, _ = held_against(tmp_path, old, clear)
    of_stored = {name for name in clear if max(similarity(name, other) for other in old) >= 0.9}
    assert len(of_stored) > 5
    assert {name for name, record in left.items() if "earlier_corpus" in record} == of_stored
    rest = [name for name in clear if name not in of_stored]
    for name in rest:
        if name not in kept:
            assert similarity(name, left[name]["copy_of"]) >= 0.9
    for place, name in enumerate(kept):
        assert all(similarity(name, other) < 0.9 for other in kept[:place])


def test_news_against_news_by_brute_force(tmp_path, saudi_news):
    """Every new article with an exact Jaccard similarity of 0.9 to a stored one leaves, none below 0.65 does."""
    texts = {f"{number}": text for number, text in enumerate(saudi_news)}
    old, new = {}, {}
    for name, text in texts.items():
        (old if int(name) % 2 else new)[name] = text
    _, left, _ = held_against(tmp_path, old, new)
    stays = {record["id"] for record in documents(tmp_path / "earlier")}
    sets = {name: shingle_set(text) for name, text in texts.items()}
    having = {}
    for name in stays:
        for shingle in sets[name]:
            having.setdefault(shingle, set()).add(name)
    best = {}
    for name in new:
        shared = {}
        for shingle in sets[name]:
            for other in having.get(shingle, ()):
                shared[other] = shared.get(other, 0) + 1
        size = len(sets[name])
        best[name] = max((count / (size + len(sets[other]) - count) for other, count in shared.items()), default=0.0)
    of_stored = {name for name, record in left.items() if "earlier_corpus" in record}
    certain = {name for name, similarity in best.items() if similarity >= 0.9}
    assert len(certain) > 20
    assert certain <= of_stored
    assert not [name for name in of_stored if best[name] < 0.65]
    for name in of_stored:
        copy_of = left[name]["copy_of"]
        assert copy_of in stays
        assert len(sets[name] & sets[copy_of]) / len(sets[name] | sets[copy_of]) > 0.6


@pytest.fixture(scope="module")
def saudi_news():
    import os
    import zipfile

    data = os.environ.get("MEGATRON_NATIVE_TEST_DATA")
    if not data:
        pytest.skip("MEGATRON_NATIVE_TEST_DATA names no folder of real test data")
    path = sorted(Path(data, "saudinewsnet").glob("*.zip"))[0]
    with zipfile.ZipFile(path) as archive:
        return [record["content"] for record in json.loads(archive.read(archive.namelist()[0]))]


def test_several_earlier_corpora_and_a_chain_of_increments(tmp_path):
    first = stored(tmp_path / "first", {"a": STORY})
    source = write_jsonl(tmp_path / "b.jsonl", [{"text": STORY, "id": "b"}, {"text": LIBRARY, "id": "c"}])
    second = tmp_path / "second"
    dedup([str(source)], second, DedupSettings(), keep_signatures=True, against=[first])
    third = write_jsonl(
        tmp_path / "d.jsonl", [{"text": text, "id": text[:9]} for text in (STORY, LIBRARY, arabic_text(5))]
    )
    dedup([str(third)], tmp_path / "out", DedupSettings(), against=[first, second])
    left = duplicates(tmp_path / "out")
    assert [(left[text[:9]]["copy_of"], left[text[:9]]["earlier_corpus"]) for text in (STORY, LIBRARY)] == [
        ("a", "../first"), ("c", "../second"),
    ]  # fmt: skip
    assert len(documents(tmp_path / "out")) == 1


def test_the_manifest_names_the_earlier_corpora_and_a_rerun_with_others_is_refused(tmp_path):
    one, other = stored(tmp_path / "one", {"a": STORY}), stored(tmp_path / "other", {"a": LIBRARY})
    inputs = [str(write_jsonl(tmp_path / "new.jsonl", [{"text": arabic_text(5), "id": "b"}]))]
    manifest = dedup(inputs, tmp_path / "out", DedupSettings(), against=[one]).manifest
    assert [entry["manifest"] for entry in manifest["lineage"]] == ["one/manifest.json"]
    assert [entry["path"] for entry in manifest["against"]] == ["../one"]
    assert manifest["parameters"]["against"] == [manifest["against"][0]["signatures_xxh3_128"]]
    assert dedup(inputs, tmp_path / "out", DedupSettings(), against=[one]).skipped
    for against in ([other], []):
        with pytest.raises(UserError, match=r"out/manifest\.json was made with other settings or inputs: against: "):
            dedup(inputs, tmp_path / "out", DedupSettings(), against=against)
    one.rename(tmp_path / "moved")
    assert dedup(inputs, tmp_path / "out", DedupSettings(), against=[tmp_path / "moved"]).skipped


def broken(folder, name, change):
    path = folder / "_signatures" / name
    change(path)
    return folder


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (lambda p: p / "nowhere", {}, "nowhere is no folder"),
        (lambda p: p, {}, "is no dedup folder"),
        (lambda p: shutil.rmtree(p / "earlier" / "_signatures") or p / "earlier", {}, "made without --keep-signatures"),
        (lambda p: p / "earlier", {"shingle_words": 4}, "shingle_words: 5 there, 4 asked for"),
        (lambda p: p / "earlier", {"bands": 20, "rows": 5}, "bands: 14 there, 20 asked for; .*rows: 8 there, 5 asked for"),
        (lambda p: p / "out", {}, "is the output itself"),
        (
            lambda p: broken(p / "earlier", "part-00000.stays", lambda path: path.write_bytes(b"")),
            {}, "part-00000.stays has 0 bytes, but .* says 1 bytes",
        ),
        (lambda p: broken(p / "earlier", "part-00000.ids", Path.unlink), {}, "part-00000.ids is not there"),
        (
            lambda p: broken(p / "earlier", "signatures.json", lambda path: path.write_text("[]")),
            {}, "can't be read as megatron-native/signatures/1",
        ),
    ],
)  # fmt: skip
def test_signatures_that_can_not_be_compared_are_refused(tmp_path, make, settings, said):
    stored(tmp_path / "earlier", {"a": STORY})
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": STORY, "id": "b"}])
    with pytest.raises(UserError, match=said):
        dedup([str(source)], tmp_path / "out", DedupSettings(**settings), against=[make(tmp_path)])
    assert not (tmp_path / "out").exists()


def test_signatures_of_another_seed_are_refused(tmp_path, monkeypatch):
    from megatron_native.corpus import earlier_corpora, minhash

    for module in (minhash, earlier_corpora):
        monkeypatch.setattr(module, "SEED", 5)
    folder = stored(tmp_path / "earlier", {"a": STORY})
    monkeypatch.undo()
    source = write_jsonl(tmp_path / "new.jsonl", [{"text": STORY, "id": "b"}])
    with pytest.raises(UserError, match="seed: 5 there, 28014 asked for"):
        dedup([str(source)], tmp_path / "out", DedupSettings(), against=[folder])
    with pytest.raises(UserError, match="twice"):
        folder = stored(tmp_path / "again", {"a": STORY})
        dedup([str(source)], tmp_path / "out", DedupSettings(), against=[folder, folder / ".." / "again"])


def test_signatures_asked_for_too_late_are_refused_and_not_passed_over(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": STORY, "id": "a"}])
    dedup([str(source)], tmp_path / "out", DedupSettings())
    with pytest.raises(UserError, match="is done already, but without --keep-signatures"):
        dedup([str(source)], tmp_path / "out", DedupSettings(), keep_signatures=True)


def many(tmp_path):
    """Earlier and new documents in several files each, half of the earlier ones in a new form."""
    for part in range(4):
        old = [{"text": arabic_text(part * 20 + n), "id": f"{part}-{n}"} for n in range(20)]
        new = [
            {
                "text": changed(arabic_text((part * 20 + n + n % 3) % 80), n % 2, n),
                "id": f"{part}-{n}" if n % 2 else f"x{part}-{n}",
            }
            for n in range(20)
        ]  # fmt: skip
        write_jsonl(tmp_path / "old" / f"{part}.jsonl", old)
        write_jsonl(tmp_path / "new" / f"{part}.jsonl", new)
    settings = DedupSettings(part_bytes=10_000)
    dedup([str(tmp_path / "old")], tmp_path / "earlier", settings, keep_signatures=True)
    dedup([str(tmp_path / "new")], tmp_path / "whole", settings, against=[tmp_path / "earlier"], keep_signatures=True)
    reasons = {record["reason"] for record in duplicates(tmp_path / "whole").values()}
    assert {EXACT, NEAR} <= reasons and documents(tmp_path / "whole")
    return settings


def signature_bytes(folder):
    return {path.name: path.read_bytes() for path in (folder / "_signatures").iterdir()}


def test_array_tasks_processes_and_cuts_give_the_same(tmp_path):
    settings = many(tmp_path)
    for _ in range(4):
        results = [
            dedup(
                [str(tmp_path / "new")], tmp_path / "array", settings, Execution(share=Share(index, 3)),
                keep_signatures=True, against=[tmp_path / "earlier"],
            )
            for index in (2, 0, 1)
        ]  # fmt: skip
    assert results[0].skipped
    assert part_bytes(tmp_path / "array") == part_bytes(tmp_path / "whole")
    assert signature_bytes(tmp_path / "array") == signature_bytes(tmp_path / "whole")
    dedup(
        [str(tmp_path / "new")], tmp_path / "processes", settings, Execution(workers=2),
        keep_signatures=True, against=[tmp_path / "earlier"],
    )  # fmt: skip
    assert part_bytes(tmp_path / "processes") == part_bytes(tmp_path / "whole")
    assert signature_bytes(tmp_path / "processes") == signature_bytes(tmp_path / "whole")
    one_part = DedupSettings()
    dedup([str(tmp_path / "old")], tmp_path / "earlier_1", one_part, keep_signatures=True)
    dedup([str(tmp_path / "new")], tmp_path / "whole_1", one_part, None, 64 << 20, against=[tmp_path / "earlier_1"])
    assert documents(tmp_path / "whole_1") == documents(tmp_path / "whole")
    seen = duplicates(tmp_path / "whole").values()
    assert [{**record, "earlier_corpus": "../earlier"} if "earlier_corpus" in record else record
            for record in duplicates(tmp_path / "whole_1").values()] == list(seen)  # fmt: skip


@pytest.mark.parametrize("phase", ["_sign_part", "_write_part", "finish"])
def test_broken_off_and_again_gives_the_same_bytes(tmp_path, monkeypatch, phase):
    from megatron_native.corpus import dedup as module
    from megatron_native.corpus.stage import StageRun

    settings = many(tmp_path)
    owner = StageRun if phase == "finish" else module
    does, calls = getattr(owner, phase), []

    def dies(*arguments, **more):
        calls.append(1)
        if phase == "finish" or len(calls) == 2:
            raise KeyboardInterrupt
        return does(*arguments, **more)

    run = {"keep_signatures": True, "against": [tmp_path / "earlier"]}
    monkeypatch.setattr(owner, phase, dies)
    with pytest.raises(KeyboardInterrupt):
        dedup([str(tmp_path / "new")], tmp_path / "out", settings, **run)
    monkeypatch.undo()
    other = stored(tmp_path / "other", {"a": STORY})
    with pytest.raises(UserError, match=r"holds an unfinished dedup with other settings \(against: "):
        dedup([str(tmp_path / "new")], tmp_path / "out", settings, keep_signatures=True, against=[other])
    assert not dedup([str(tmp_path / "new")], tmp_path / "out", settings, **run).skipped
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "whole")
    assert signature_bytes(tmp_path / "out") == signature_bytes(tmp_path / "whole")


def test_a_report_accounts_for_the_copies_of_an_earlier_corpus(tmp_path):
    from megatron_native.corpus.report.gather import ReportSettings, gather

    text = arabic_text(1, 300)
    new = {"story": wins(STORY), "near": changed(text, 2), "same": STORY, "copy": LIBRARY, "copied": LIBRARY}
    _, left, _ = held_against(tmp_path, {"old story": STORY, "text": text}, new)
    assert {record["reason"] for record in left.values()} >= {EXACT, NEAR, "exact copy"}
    report = gather([str(tmp_path / "out")], ReportSettings())
    checks = {check.what: check.holds for check in report.checks if check.what in ("clusters", "list of duplicates")}
    assert checks == {"clusters": True, "list of duplicates": True}
    assert {pair.reason for pair in report.duplicates[0].pairs} == {"exact copy"}
    assert sum(count for _, _, count in report.duplicates[0].similarity) == sum(
        record["reason"] == NEAR for record in left.values()
    )
