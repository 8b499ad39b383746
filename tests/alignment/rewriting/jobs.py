"""Small rewritings for tests: documents of a few passages, prepared, and the outputs read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_native.alignment.rewriting.export import decisions_of
from megatron_native.alignment.rewriting.joining import join_if_complete, joined_path
from megatron_native.alignment.rewriting.leases import leases_in
from megatron_native.alignment.rewriting.preparing import prepare_part
from megatron_native.alignment.rewriting.pulling import Job, Puller
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.readers import read_documents

SENTENCES = (
    "تقع المدينة على ضفاف نهر كبير تحيط به البساتين من الجانبين.",
    "يزرع أهلها القمح والشعير ويربون الأغنام في السهول القريبة.",
    "وتقام في مطلع كل شهر سوق يأتيها الناس من القرى المجاورة.",
    "وفي وسط المدينة مكتبة قديمة يقصدها الطلاب والباحثون.",
    "وقد رمم جسرها الحجري قبل سنوات ففتح من جديد أمام المارة.",
    "ويعتدل الطقس فيها في الربيع، فيكثر الزوار من أنحاء البلاد.",
)


def text_of(number: int, paragraphs: int = 4) -> str:
    """A text of some paragraphs, different for each number."""
    return "\n\n".join(
        f"الفقرة {number * 100 + place}: " + " ".join(SENTENCES[(number + place + one) % 6] for one in range(3))
        for place in range(paragraphs)
    )


def write_documents(path: Path, count: int, paragraphs: int = 4) -> list[str]:
    """A JSONL file of documents; their texts."""
    texts = [text_of(number, paragraphs) for number in range(count)]
    lines = [json.dumps({"id": f"d{number}", "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return texts


def settings_of(**others: Any) -> RewriteSettings:
    """Settings under which every passage goes to the worker and nothing is checked, unless said otherwise."""
    values: dict[str, Any] = {
        "engine": "transformers", "rules": None, "first_look": None, "gates": None, "passage_tokens": 64,
        "context_tokens": 16, "chunk_passages": 4, "worker": {"worker": "w", "worker_hash": "h"},
    }  # fmt: skip
    return RewriteSettings(**{**values, **others})


def prepared_job(folder: Path, settings: RewriteSettings, count: int = 6, paragraphs: int = 4) -> Job:
    """A job over `count` documents, prepared as the stage does it."""
    source = folder / "in" / "documents.jsonl"
    write_documents(source, count, paragraphs)
    output, work = folder / "out", folder / "out" / "_progress"
    parts = plan_parts([source], source.parent, part_bytes=settings.part_bytes)
    prepared = [prepare_part(part, lambda size: None, output, work, settings) for part in parts]
    return Job(output, work, settings, prepared)


def pull(job: Job, backend: Any, gates: Any = None, **others: Any) -> None:
    """One engine on a job, until nothing is free for it."""
    with leases_in(job.work / "leases") as leases:
        Puller(job, backend, gates, leases, **others).pull()


def finish(job: Job) -> None:
    """Join every part; all have to be complete."""
    with leases_in(job.work / "leases") as leases:
        for part in job.parts:
            assert join_if_complete(part, job.output, job.work, job.settings, leases)
            assert joined_path(job.work, part["name"]).exists()


def rewritten_texts(output: Path) -> dict[str, str]:
    """Texts of a stage folder by id."""
    found = {}
    for path in sorted(output.glob("part-*.jsonl.zst")):
        for document in read_documents(path):
            found[document.id] = document.text  # type: ignore[union-attr]  # none is refused
    return found


def decisions(output: Path) -> list[dict[str, Any]]:
    """Every decision of a stage folder."""
    return list(decisions_of(output))
