"""The paper's experiment in miniature: is a model better for reading rewritten text than for reading it as it was found?

    python examples/native_alignment/run.py --texts DOCUMENTS... --work runs/native_alignment

Clean documents are corrupted in known ways (corrupt.py). A worker learns from some of the pairs; the corrupted corpus is
rewritten by rules alone and by the worker; the same model is continued on each version, on the same number of tokens, from
several seeds; held-out clean text says what was gained. Every step is a command that is printed before it runs; one that is
done is passed over, so the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

ARMS = ("original", "rules", "worker", "clean")


def main() -> int:
    """Run what is not done yet, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", metavar="PATH", help="clean documents: files, folders or globs")
    parser.add_argument("--base", type=Path, metavar="DIR", help="model that is continued (SmolLM2-135M, fetched)")
    parser.add_argument("--worker-base", type=Path, metavar="DIR", help="chat model that becomes the worker (the base)")
    parser.add_argument("--work", type=Path, default=Path("runs/native_alignment"), metavar="DIR")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="versions of the corpus (all)")
    parser.add_argument(
        "--run-seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="seeds of the runs (1 2 3)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the texts (1)")
    parser.add_argument("--seeds", type=int, default=1200, metavar="N", help="pairs that the worker learns from (1200)")
    parser.add_argument("--corpus", type=int, default=900, metavar="N", help="passages of the corpus (900)")
    parser.add_argument("--heldout", type=int, default=120, metavar="N", help="held-out passages (120)")
    parser.add_argument("--passage-tokens", type=int, default=48, metavar="N", help="LLaMA-3 tokens a passage (48)")
    parser.add_argument("--worker-config", type=Path, default=HERE / "worker.yaml", help="of the worker's training")
    parser.add_argument("--run-config", type=Path, default=HERE / "pretrain.yaml", help="of the continued pre-training")
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"), help="runs the worker")
    parser.add_argument("--engine-option", nargs="*", default=[], metavar="KEY=VALUE", help="options of the engine")
    parser.add_argument("--engines", type=int, default=1, metavar="N", help="engines that rewrite (1)")
    parser.add_argument("--nproc", type=int, default=2, metavar="N", help="processes of a training (2)")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="write the figures there too, as .md and .json")
    arguments = parser.parse_args()
    if not 1 <= len(set(arguments.run_seeds)) == len(arguments.run_seeds) <= 10:
        parser.error(f"--run-seeds {' '.join(map(str, arguments.run_seeds))}: give 1 to 10 seeds, each once")
    return Experiment(arguments).run()


class Experiment:
    """The steps over one work folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.work = arguments, arguments.work
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        self.base = arguments.base or cache / "megatron-native" / "smollm2-135m-instruct"
        self.worker_base = arguments.worker_base or self.base

    def run(self) -> int:
        """Every step, then the figures."""
        from figures import figures, print_figures, save_figures

        if self.arguments.base is None:
            self.command("python", ROOT / "examples/quickstart/fetch_model.py")
        self.make_texts()
        self.train_worker()
        self.rewrite()
        self.tokenize()
        for seed in self.arguments.run_seeds:
            for arm in self.arguments.arms:
                self.pretrain(arm, seed)
        result = figures(self.work, self.arguments.arms, self.arguments.run_seeds)
        print_figures(result)
        if self.arguments.figures:
            save_figures(result, self.arguments.figures)
        return 0

    def make_texts(self) -> None:
        """Clean and corrupted passages."""
        from texts import Sizes, write_texts

        done = self.work / "texts" / "texts.json"
        wanted = {
            name: getattr(self.arguments, name) for name in ("passage_tokens", "seeds", "corpus", "heldout", "seed")
        }
        if done.exists():
            if json.loads(done.read_text())["wanted"] != wanted:
                raise SystemExit(f"{done} was made with other sizes; take another --work, or the same sizes.")
            return
        if not self.arguments.texts:
            raise SystemExit("--texts names clean documents (JSONL with `text`), some megabytes of Arabic.")
        sizes = Sizes(
            self.arguments.passage_tokens, self.arguments.seeds, self.arguments.corpus, self.arguments.heldout
        )
        print("texts: cut into passages, dealt, corrupted", flush=True)
        written = write_texts(self.arguments.texts, self.work / "texts", sizes, self.arguments.seed)
        done.write_text(json.dumps({"wanted": wanted, "written": written}, indent=2))

    def train_worker(self) -> None:
        """Seed pairs, and the worker that learns from them."""
        from texts import by_id

        seeds = self.work / "seeds.jsonl"
        if not seeds.exists():
            clean = by_id(self.work / "texts/seeds/clean.jsonl")
            corrupted = by_id(self.work / "texts/seeds/corrupted.jsonl")
            records = [{"id": key, "origin": corrupted[key], "rewritten": clean[key]} for key in clean]
            seeds.write_text(
                "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
            )
        self.command(
            "megatron-native", "train-worker", "--seeds", seeds, "--base", self.worker_base, "--output", self.work / "worker",
            "--language", "en", "--config", self.arguments.worker_config, "--nproc", self.arguments.nproc,
        )  # fmt: skip

    def rewrite(self) -> None:
        """The corrupted corpus by rules alone, and by the worker."""
        corrupted = self.work / "texts/corpus/corrupted.jsonl"
        self.command(
            "megatron-native", "rewrite", "--input", corrupted, "--output", self.work / "rules", "--engine", "rules"
        )
        if "worker" in self.arguments.arms:
            options = ["--option", *self.arguments.engine_option] if self.arguments.engine_option else []
            self.command(
                "megatron-native", "rewrite", "--input", corrupted, "--output", self.work / "rewritten", "--engine",
                self.arguments.engine, *options, "--worker", self.work / "worker", "--engines", self.arguments.engines,
                "--no-first-look", "--passage-tokens", 2 * self.arguments.passage_tokens,
            )  # fmt: skip

    def tokenize(self) -> None:
        """Each version of the corpus as an indexed dataset."""
        places = {
            "original": self.work / "texts/corpus/corrupted.jsonl", "rules": self.work / "rules",
            "worker": self.work / "rewritten", "clean": self.work / "texts/corpus/clean.jsonl",
        }  # fmt: skip
        for arm in self.arguments.arms:
            self.command(
                "megatron-native", "tokenize", "--input", places[arm], "--output-prefix", self.work / "tokens" / arm,
                "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", self.base, "--append-eod",
            )  # fmt: skip
        if not (self.work / "imported").exists():
            self.command("megatron-native", "import-hf", "--hf", self.base, "--output", self.work / "imported")

    def pretrain(self, arm: str, seed: int) -> None:
        """The base continued on one version, with one order of its text."""
        folder = self.work / "runs" / f"{arm}-{seed}"
        self.command(
            "megatron-native", "pretrain", "--nproc", self.arguments.nproc, "--config", self.arguments.run_config,
            f"run_dir={folder}", f"seed={seed}", f"model.checkpoint={self.work}/imported",
            f"data.blend.0.prefix={self.work}/tokens/{arm}_text_document",
            f"evaluation.heldout.0.path={self.work}/texts/heldout/clean.jsonl",
        )  # fmt: skip

    def command(self, *words: Any) -> None:
        """Print a command, run it, and end the experiment if it fails."""
        parts = [str(word) for word in words]
        print(f"$ {shlex.join(parts)}", flush=True)
        program = {"python": [sys.executable], "megatron-native": [sys.executable, "-m", "megatron_native"]}[parts[0]]
        done = subprocess.run([*program, *parts[1:]], check=False)
        if done.returncode:
            print(f"the command above ended with exit code {done.returncode}", file=sys.stderr)
            raise SystemExit(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
