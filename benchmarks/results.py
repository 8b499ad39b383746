"""How benchmarks show and keep what they measured: a table on the terminal, JSON and Markdown under results/."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, Python."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def save(name: str, title: str, rows: list[dict[str, Any]], where: dict[str, Any], **more: Any) -> None:
    """Print the rows, and write `results/NAME.json` and `results/NAME.md`."""
    FOLDER.mkdir(exist_ok=True)
    record = {"title": title, "machine": where, "rows": rows, **more}
    (FOLDER / f"{name}.json").write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        f"# {title}",
        "",
        f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, {where['date']}.",
        "",
    ]
    lines += ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str("" if row.get(c) is None else row.get(c)) for c in columns) + " |" for row in rows]
    lines += ["", *(f"{key}: {value}" for key, value in more.items()), ""]
    (FOLDER / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
