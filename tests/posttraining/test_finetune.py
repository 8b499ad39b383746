"""`finetune` from end to end on a tiny model: it learns, every layout learns the same, a killed one is the undisturbed one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_native.checkpoint.torch_dist import TorchDistReader
from megatron_native.cli import run_command
from megatron_native.manifest import file_digest
from megatron_native.training.early_stop import read_best
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.retention import checkpoints_of
from tests.distributed import REPOSITORY, run_jobs
from tests.tiny_models import make_tiny_model

ANSWERS = {
    "ما عاصمة لبنان؟": "بيروت",
    "ما عاصمة مصر؟": "القاهرة",
    "ما عاصمة المغرب؟": "الرباط",
    "ما عاصمة العراق؟": "بغداد",
    "ما عاصمة عُمان؟": "مسقط",
    "ما عاصمة الأردن؟": "عمّان",
    "ما عاصمة سوريا؟": "دمشق",
    "ما عاصمة السودان؟": "الخرطوم",
}
SETTINGS = (
    "--template",
    "chatml",
    "--seq-length",
    "128",
    "--epochs",
    "8",
    "--evaluations-per-epoch",
    "1",
    "--nproc",
    "1",
)
RUN = (
    "training.precision=fp32", "optimizer.lr=2e-3", "optimizer.adam_eps=1e-5", "logging.tensorboard=false", "platform=cpu"
)  # fmt: skip


def write_chats(path: Path, asked: list[str]) -> Path:
    lines = [
        {"id": question, "messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": ANSWERS[question]},
        ]}
        for question in asked
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def words(folder: Path, output: str, *more: str) -> list[str]:
    return [
        "--base", str(folder / "hf"), "--data", str(folder / "chats.jsonl"), "--heldout", str(folder / "heldout.jsonl"),
        "--output", str(folder / output), *SETTINGS, *more, *RUN,
    ]  # fmt: skip


def start(arguments: list[str], command: str = "finetune") -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_native", command, *arguments], cwd=REPOSITORY, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    try:
        said, complained = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, said + complained
    return said, complained


def finetune(folder: Path, output: str, *more: str, code: int = 0) -> tuple[str, str]:
    return finish(start(words(folder, output, *more)), code)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_json_lines(run / "metrics.jsonl") if "loss" in record]


def heldout(run: Path) -> dict[int, float]:
    records = read_json_lines(run / "metrics.jsonl")
    return {record["step"]: record["heldout"]["conversations"]["loss"] for record in records if "heldout" in record}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, eight conversations, three of them to measure by, and `out`, fine-tuned on them."""
    folder = tmp_path_factory.mktemp("finetune")
    make_tiny_model(folder / "hf", "tied-llama")
    write_chats(folder / "chats.jsonl", list(ANSWERS))
    write_chats(folder / "heldout.jsonl", list(ANSWERS)[:3])
    said, _ = finetune(folder, "out", "--json")
    (folder / "result.json").write_text(said, encoding="utf-8")
    return folder


def test_the_held_out_loss_falls_and_the_best_checkpoint_is_exported(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    measured, best = heldout(folder / "out.run" / "run"), read_best(folder / "out.run" / "run")
    assert best is not None and best.loss == min(loss for step, loss in measured.items() if step)
    assert (result["before"], result["after"], result["step"]) == (measured[0], best.loss, best.step)
    assert result["after"] < 0.05 * result["before"]
    assert result["account"]["read"] == result["account"]["kept"] == 8
    exported = load_file(folder / "out" / "model.safetensors")
    embedding = TorchDistReader(best.checkpoint).read("embedding.word_embeddings.weight")
    assert torch.equal(exported["model.embed_tokens.weight"], embedding[: len(exported["model.embed_tokens.weight"])])


def test_transformers_decodes_the_answers_and_stops(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    for question, answer in ANSWERS.items():
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].shape[1] :]
        assert tokenizer.decode(written) == f"{answer}<|im_end|>"


def test_the_plan_is_what_was_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = json.loads((folder / "result.json").read_text(encoding="utf-8"))["plan"]
    assert (plan["conversations"], plan["batch"], plan["seq_length"]) == (8, 1, 128)
    assert plan["steps"] == math.ceil(8 * plan["sequences"])
    assert plan["evaluation_interval"] == plan["sequences"], "once an epoch"
    run = yaml.safe_load((folder / "out.run" / "run.yaml").read_text(encoding="utf-8"))
    assert (run["data"]["packing"], run["data"]["document_boundaries"]) == ("best_fit", True)
    assert run["optimizer"]["min_lr"] == pytest.approx(0.1 * 2e-3)
    for base in ("hf", "out.run/base"):  # a Hugging Face folder, or a checkpoint of this project
        assert (
            run_command("finetune", [*words(folder, "planned", "--dry-run", "--json"), "--base", str(folder / base)])
            == 0
        )
        assert json.loads(capfd.readouterr().out)["plan"] == plan
    assert not (folder / "planned").exists() and not (folder / "planned.run").exists()


def test_the_record_names_base_data_and_checkpoint(folder: Path) -> None:
    record = json.loads((folder / "out" / "finetune.json").read_text(encoding="utf-8"))
    run = folder / "out.run" / "run"
    best = read_best(run)
    assert best is not None
    assert record["training"]["checkpoint"] == file_digest(best.checkpoint / "run" / "checksums.json")
    assert record["inputs"][0]["xxh3_128"] == file_digest(folder / "chats.jsonl")
    assert record["heldout"][0]["xxh3_128"] == file_digest(folder / "heldout.jsonl")
    assert record["base"]["name"] == "hf" and record["base"]["hash"] == record["parameters"]["base"]
    weights = next(entry for entry in record["outputs"] if entry["path"] == "model.safetensors")
    assert weights["xxh3_128"] == file_digest(folder / "out" / "model.safetensors")
    exported = json.loads((folder / "out" / "manifest.json").read_text(encoding="utf-8"))["outputs"]
    assert {"chat_template.jinja", "generation_config.json"} < {entry["path"] for entry in exported}
    assert all(entry["xxh3_128"] == file_digest(folder / "out" / entry["path"]) for entry in exported)


def test_done_is_not_done_again_and_other_settings_are_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (folder / "out" / "finetune.json").stat().st_mtime_ns
    assert run_command("finetune", words(folder, "out", "logging.interval=5")) == 0
    assert "nothing to do" in capfd.readouterr().out
    assert (folder / "out" / "finetune.json").stat().st_mtime_ns == before
    assert run_command("finetune", words(folder, "out", "optimizer.weight_decay=0.0")) == 2
    assert "run.optimizer.weight_decay: 0.1 there, 0.0 asked for" in capfd.readouterr().err


def test_two_processes_learn_what_one_does(folder: Path) -> None:
    run = yaml.safe_load((folder / "out.run" / "run.yaml").read_text(encoding="utf-8"))
    run["training"]["stop_after"] = 9
    jobs = []
    for name, parallel in (("TP2", "tensor_model_parallel_size"), ("PP2", "pipeline_model_parallel_size")):
        config: dict[str, Any] = {**run, "run_dir": str(folder / name), "parallel": {**run["parallel"], parallel: 2}}
        jobs.append({"train": config})
    run_jobs(folder, 2, jobs)
    one = folder / "out.run" / "run"
    for name in ("TP2", "PP2"):
        assert losses(folder / name) == pytest.approx(losses(one)[:9], abs=1e-5)
        for step, loss in heldout(folder / name).items():
            assert loss == pytest.approx(heldout(one)[step], abs=1e-5)


def test_a_killed_one_goes_on_and_is_the_undisturbed_one(folder: Path) -> None:
    process = start(words(folder, "killed"))
    run = folder / "killed.run" / "run"
    wait_until(lambda: len(losses(run)) > 7 and checkpoints_of(run), process)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert not (folder / "killed").exists()
    said, _ = finetune(folder, "killed")
    assert "resumed from" in said and "already done, skipped" in said and "imported" not in said
    undisturbed = folder / "out.run" / "run"
    assert losses(run) == losses(undisturbed) and heldout(run) == heldout(undisturbed)
    digests = [file_digest(folder / name / "model.safetensors") for name in ("out", "killed")]
    assert digests[0] == digests[1]


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError("".join(process.communicate()))
        time.sleep(0.02)
