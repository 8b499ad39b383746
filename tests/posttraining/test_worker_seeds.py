"""Seed pairs as conversations: the very prompt of a rewriting, the expert's answer, and an account of every record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.prompts import Detail, apply_edits, parse_edits
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.errors import UserError
from megatron_native.posttraining.worker_seeds import SeedFiles, SeedSettings, write_conversations

GENERAL = SeedSettings(load_conduct("general"))
PAIRS = [
    ("افتتحت المكتبه العامة ابوابها صباح اليوم", "افتتحت المكتبة العامة أبوابها صباح اليوم."),
    ("زار الوزير المعرض ,ثم التقى بالطلاب", "زار الوزير المعرض، ثم التقى بالطلاب."),
    ("تهطل الامطار في فصل الشتاء على السواحل", "تهطل الأمطار في فصل الشتاء على السواحل."),
]


def numbered(count: int) -> list[tuple[str, str]]:
    return [(f"وصلت الحافله رقم {n} الى المحطة", f"وصلت الحافلة رقم {n} إلى المحطة.") for n in range(count)]


def write_seeds(path: Path, pairs: list[tuple[str, str]], **more: Any) -> str:
    records = [{"origin": origin, "rewritten": rewritten, **more} for origin, rewritten in pairs]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def conversations(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def balanced(files: SeedFiles) -> bool:
    lost = sum(files.dropped.values()) + sum(files.quarantined.values())
    return files.read == files.learned + files.held_out + lost


@pytest.mark.parametrize("detail", ["brief", "whole"])
def test_the_prompt_is_that_of_a_rewriting(tmp_path: Path, detail: Detail) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", PAIRS, model="expert")
    settings = SeedSettings(load_conduct("general"), detail=detail, rules=False, heldout_share=0)
    files = write_conversations([seeds], tmp_path / "out", settings)
    asked = RewriteSettings(engine="vllm", conduct="general", detail=detail)
    found = conversations(files.train)
    assert [one["messages"] for one in found] == [
        [*asked.messages(origin, "", ""), {"role": "assistant", "content": rewritten}] for origin, rewritten in PAIRS
    ]
    assert files.heldout is None and files.learned == files.read == 3


def test_the_rules_tidy_an_origin_as_before_a_rewriting(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [PAIRS[1]])
    (one,) = conversations(write_conversations([seeds], tmp_path / "out", GENERAL).train)
    assert "زار الوزير المعرض، ثم التقى بالطلاب\n</passage" in one["messages"][1]["content"]


def test_edits_make_the_rewrite_of_the_passage(tmp_path: Path) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl", [*PAIRS, ("جملة سليمة.", "جملة سليمة.")])
    settings = SeedSettings(load_conduct("general"), form="edits", rules=False, heldout_share=0)
    found = conversations(write_conversations([seeds], tmp_path / "out", settings).train)
    for one, (origin, rewritten) in zip(found, PAIRS):
        answer = parse_edits(one["messages"][-1]["content"], origin)
        assert answer.complete
        assert apply_edits(origin, answer.edits) == rewritten
        assert one["messages"][0]["content"] == "صحّح المقطع باستبدالات."
    assert found[3]["messages"][-1]["content"] == "[]"


def test_what_is_held_out_depends_on_the_origin_alone(tmp_path: Path) -> None:
    pairs = numbered(200)
    settings = SeedSettings(load_conduct("general"), heldout_share=0.2)
    few = write_conversations([write_seeds(tmp_path / "few.jsonl", pairs[:100])], tmp_path / "few", settings)
    many = write_conversations([write_seeds(tmp_path / "many.jsonl", pairs[::-1])], tmp_path / "many", settings)
    held_few, held_many = ({one["id"] for one in conversations(files.heldout)} for files in (few, many))
    learned = {one["id"] for one in conversations(many.train)}
    assert held_few < held_many and not held_many & learned
    assert 20 <= len(held_many) <= 60, "a fifth of 200, within four standard deviations"
    assert balanced(few) and balanced(many)


def test_no_question_is_both_learned_and_measured(tmp_path: Path) -> None:
    """Origins that the rules make one passage of are held out together, or not at all."""
    pairs = [pair for n in range(60) for pair in ((f"هذا المقطع رقم {n}.", "أول"), (f"هذا  المقطع  رقم {n}.", "ثان"))]
    settings = SeedSettings(load_conduct("general"), heldout_share=0.5)
    files = write_conversations([write_seeds(tmp_path / "seeds.jsonl", pairs)], tmp_path / "out", settings)
    learned, held = (
        {one["messages"][-2]["content"] for one in conversations(path)} for path in (files.train, files.heldout)
    )
    assert len(learned) + len(held) == 60 and not learned & held
    assert (files.learned, files.held_out) == (2 * len(learned), 2 * len(held))


def test_few_pairs_have_one_held_out(tmp_path: Path) -> None:
    settings = SeedSettings(load_conduct("general"), heldout_share=1e-9)
    files = write_conversations([write_seeds(tmp_path / "seeds.jsonl", numbered(12))], tmp_path / "out", settings)
    assert (files.learned, files.held_out) == (11, 1)


def test_an_array_and_a_folder_are_read_and_every_record_is_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    folder.mkdir()
    array = [{"origin": origin, "rewritten": rewritten} for origin, rewritten in PAIRS[:2]]
    (folder / "rewrite_seed_data.json").write_text(json.dumps(array, ensure_ascii=False), encoding="utf-8")
    write_seeds(folder / "more.jsonl", [PAIRS[2], PAIRS[2], ("  ", "نص"), ("نص", " ")])
    with open(folder / "more.jsonl", "a", encoding="utf-8") as file:
        file.write('{"rewritten": "بلا أصل"}\n')
    settings = SeedSettings(load_conduct("general"), heldout_share=0)
    files = write_conversations([str(folder)], tmp_path / "out", settings)
    assert (files.read, files.learned) == (7, 3)
    assert balanced(files)
    assert files.dropped["the same pair again"] == 1
    assert sum(files.quarantined.values()) >= 1
    again = write_conversations([str(folder)], tmp_path / "again", settings)
    assert again.train.read_bytes() == files.train.read_bytes()


def test_pairs_of_another_code_of_conduct_are_refused(tmp_path: Path) -> None:
    metadata = {"annotation": {"conduct": "news", "conduct_hash": "0" * 64}}
    seeds = write_seeds(tmp_path / "seeds.jsonl", PAIRS, metadata=metadata)
    with pytest.raises(UserError, match="annotated by the code 'news'"):
        write_conversations([seeds], tmp_path / "out", GENERAL)
    metadata["annotation"]["conduct_hash"] = GENERAL.conduct.hash
    again = write_seeds(tmp_path / "seeds.jsonl", PAIRS, metadata=metadata)
    assert write_conversations([again], tmp_path / "out", GENERAL).read == 3


def test_records_without_pairs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"text": "لا أصل ولا تحرير"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no pair to learn from among 1 records"):
        write_conversations([str(path)], tmp_path / "out", GENERAL)
