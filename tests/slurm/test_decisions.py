"""What is decided around a job, without a Slurm: margins, verdicts, progress, the health of a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.errors import UserError
from megatron_native.slurm import health_check
from megatron_native.slurm.after_job import failure_report, judge
from megatron_native.slurm.before_job import environment_text
from megatron_native.slurm.before_job import main as before_job
from megatron_native.slurm.cluster import Cluster, load_cluster, seconds_of
from megatron_native.slurm.margin import signal_margin
from megatron_native.slurm.progress import Progress, begin_anew
from megatron_native.training.node_place import NodeOutcome, State, read_outcomes, stderr_file
from tests.training.plan.shapes import run_of

LLAMA3_8B = ModelConfig(
    family="llama", num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_query_groups=8,
    kv_channels=128, vocab_size=128256, max_position_embeddings=8192, norm_epsilon=1e-5, rotary_base=500000.0,
)  # fmt: skip


@pytest.mark.parametrize(("time", "seconds"), [
    ("30", 1800), ("1:30", 90), ("2:00:05", 7205), ("1-0", 86400), ("1-12", 129600), ("2-01:30", 178200), ("1-0:0:1", 86401),
])  # fmt: skip
def test_time_limits_as_slurm_writes_them(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(("text", "said"), [
    ("partitoin: a", "partitoin: there is no such key"),
    ("gpus_per_node: -1", "gpus_per_node: input should be greater than or equal to 0"),
    ("time: soon", "time 'soon' is no time limit"),
    ("time: '10'\nsignal_margin: 600", "signal_margin 600 s is no less than the time limit 10 (600 s)"),
    ("port: {first: 65000}", "goes beyond port 65535"),
    ("sbatch_lines: [mail]", "write an option of sbatch"),
    ("environment: {'a b': c}", "'a b', which is no name of a variable"),
    ("container: {kind: pyxis, image: x}\nbare_metal: {venv: y}", "give container or bare_metal"),
    ("- a", "must be a mapping"),
])  # fmt: skip
def test_a_site_that_can_not_be(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        load_cluster(tmp_path / "site.yaml")
    assert said in str(raised.value)


def test_margins_by_hand(tmp_path: Path) -> None:
    run = run_of(training={"precision": "bf16"}).model_copy(update={"run_dir": tmp_path})
    assert signal_margin(Cluster(signal_margin=77), run, None).seconds == 77
    assert signal_margin(Cluster(), run, None).seconds == signal_margin(Cluster(), run, LLAMA3_8B).seconds == 600
    # 8.03 billion parameters × 14 bytes = 112.4 GB, at 2 GB/s 56.2 s: 60 + 2 × 56.2 + 60 = 232.4, up to a multiple of 30.
    margin = signal_margin(Cluster(checkpoint_gb_per_second=2), run, LLAMA3_8B)
    assert margin.seconds == 240 and "112 GB of 8.0 billion parameters at 2 GB/s" in margin.reason
    # Without the optimizer 2 bytes a parameter: 16.06 GB in 8.03 s, 60 + 16.06 + 60 = 136.06.
    bare = run.model_copy(update={"checkpointing": run.checkpointing.model_copy(update={"save_optimizer": False})})
    assert signal_margin(Cluster(checkpoint_gb_per_second=2), bare, LLAMA3_8B).seconds == 150
    # 50 × the layers: 349 billion in layers of 218,112,000 weights, 4.9 TB; at the assumed 10 GB/s 1,100 s for two saves.
    large = LLAMA3_8B.model_copy(update={"num_layers": 32 * 50})
    assert signal_margin(Cluster(), run, large).seconds == 1110
    lines = [{"step": 1, "loss": 1.0, "seconds": 7.0}, {"step": 2, "loss": 1.0, "seconds": 11.0}]
    lines += [{"step": 2, "saved": {"seconds": 40.0}}, {"step": 3, "saved": {"seconds": 31.0}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # 60 + 11 + 2 × 40 = 151, up to a multiple of 30.
    assert signal_margin(Cluster(checkpoint_gb_per_second=2), run, LLAMA3_8B).seconds == 180
    with pytest.raises(UserError, match="give jobs more time"):
        signal_margin(Cluster(time="3"), run, None)


def outcome(
    node: int, state: State, deaths: list[tuple[int, int]] | None = None, time: float = 0.0, message: str = ""
) -> NodeOutcome:
    dead = [{"rank": rank, "exit_code": code} for rank, code in deaths or []]
    return NodeOutcome(node, f"node{node}", state, message, dead, time)


@pytest.mark.parametrize(("states", "stop_requested", "verdict"), [
    (["done", "done"], False, "done 0"),
    (["requeue", "requeue"], True, "requeue 75"),
    (["requeue", "requeue"], False, "requeue 75"),  # training.stop_after, or a signal that came to the ranks alone
    (["requeue"], True, "requeue 75"),  # the other node was ended before it could say so
    (["stopping", "requeue"], False, "requeue 75"),
    ([], True, "requeue 75"),
    (["failed", "stopping"], False, "requeue 75"),
    (["failed", "requeue"], True, "requeue 75"),
    (["user_error", "stopping"], False, "stop 2"),
    (["failed", "user_error"], True, "stop 2"),
    (["stopped", "failed"], False, "stop 1"),
])  # fmt: skip
def test_verdicts_where_there_is_progress(
    tmp_path: Path, states: list[State], stop_requested: bool, verdict: str
) -> None:
    progress = Progress.read(tmp_path)
    progress.begin("1.0")
    (tmp_path / "checkpoints" / "step_00000010").mkdir(parents=True)
    outcomes = [outcome(node, state) for node, state in enumerate(states)]
    assert str(judge(outcomes, 2, stop_requested, progress, fruitless_jobs=1, failures=3)) == verdict
    assert progress.failures == (1 if "failed" in states and verdict.startswith("requeue") else 0)


def test_a_job_that_adds_no_checkpoint_ends_a_run_that_allows_one(tmp_path: Path) -> None:
    for allowed, actions in ((1, ["stop"]), (2, ["requeue", "stop"])):
        begin_anew(tmp_path)
        for action in actions:
            progress = Progress.read(tmp_path)
            progress.begin("1.0")
            assert judge([outcome(0, "requeue")], 1, True, progress, allowed, 3).action == action


def test_deaths_in_a_row_end_a_run_also_where_each_job_adds_something(tmp_path: Path) -> None:
    actions = []
    for step in range(1, 5):
        progress = Progress.read(tmp_path)
        progress.begin(f"{step}.0")
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        actions.append(judge([outcome(0, "failed")], 1, False, progress, 1, 2).action)
    assert actions == ["requeue", "requeue", "stop", "stop"]


def test_a_job_that_was_cut_off_is_counted_when_the_next_begins(tmp_path: Path) -> None:
    words = ["--run-dir", str(tmp_path / "run"), "--job-dir", str(tmp_path / "job")]
    assert before_job(words) == 0
    assert before_job(words) == 1  # nothing was added by the first, which never came to its end
    assert "no progress" in (tmp_path / "run" / "slurm" / "stopped").read_text()
    begin_anew(tmp_path / "run")
    assert before_job(words) == 0
    (tmp_path / "run" / "checkpoints" / "step_00000003").mkdir(parents=True)
    assert before_job(words) == 0
    assert "torch==" in (tmp_path / "job" / "packages.txt").read_text()


def test_the_first_failing_rank_is_the_first_that_did_not_lose_a_connection(tmp_path: Path) -> None:
    for rank, said in (
        (3, "RuntimeError: Connection closed by peer"),
        (9, "ValueError: the cause"),
        (12, "KeyError: late"),
    ):
        stderr_file(tmp_path, rank).parent.mkdir(exist_ok=True)
        stderr_file(tmp_path, rank).write_text(f"Traceback\n{said}\n")
    outcomes = [
        outcome(0, "failed", [(3, 1)], 100.0), outcome(1, "failed", [(9, 1)], 100.5), outcome(3, "failed", [(12, -9)], 101.0),
    ]  # fmt: skip
    report = failure_report(outcomes, 5, tmp_path)
    assert report is not None
    assert report.startswith("rank 9 ended with exit code 1 first, on node1 (node 1 of the job), at 00:01:40 UTC.")
    assert "  | ValueError: the cause" in report
    assert "After it: rank 3, 12." in report
    assert "the ranks of node 2, 4 of the job" in report
    assert failure_report([outcome(0, "requeue")], 1, tmp_path) is None
    assert failure_report([outcome(0, "requeue")], 2, tmp_path) == (
        "node 1 of the job left no word: ended from outside, or lost"
    )


def test_outcomes_that_can_not_be_read_count_as_none(tmp_path: Path) -> None:
    outcome(1, "done").write(tmp_path)
    (tmp_path / "outcomes" / "node_00000.json").write_text("{")
    (tmp_path / "outcomes" / "node_00002.json").write_text('{"node_rank": 2, "host": "a", "state": "odd"}')
    assert [one.node_rank for one in read_outcomes(tmp_path)] == [1]


def test_secrets_are_not_written_down() -> None:
    text = environment_text(
        {"B": "2\n3", "HF_TOKEN": "abc", "AWS_SECRET_ACCESS_KEY": "def", "A": "1", "BASH_FUNC_module%%": "()"}
    )
    assert text == "A=1\nAWS_SECRET_ACCESS_KEY=(not written down)\nB=2\\n3\nHF_TOKEN=(not written down)\n"


def test_what_nvidia_smi_says() -> None:
    assert health_check.smi_findings("0, 0\n1, 0\n", 2) == []
    assert health_check.smi_findings("0, 0\n", 2) == ["1 GPUs instead of 2"]
    assert health_check.smi_findings("0, 3\n1, [N/A]\n", 2) == ["GPU 0 has 3 uncorrected ECC errors"]


def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program of its name that answers as it would."""
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert health_check.gpu_findings(1) == ["there is no nvidia-smi"]
    program.write_text("#!/bin/sh\necho '0, 0'; echo '1, 7'\n")
    program.chmod(0o755)
    assert health_check.gpu_findings(2) == ["GPU 1 has 7 uncorrected ECC errors"]
    program.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert health_check.gpu_findings(2) == ["nvidia-smi ended with 6: No devices were found"]
    assert health_check.gpu_findings(0) == []


def test_disks_and_a_product_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert health_check.disk_findings({"$SCRATCH": 0.001}) == []
    assert health_check.disk_findings({"$SCRATCH/no": 0.001}) == [f"{tmp_path}/no: No such file or directory"]
    [finding] = health_check.disk_findings({"$SCRATCH": 1e9})
    assert finding.endswith("GB free of 1e+09 GB")
    assert list(tmp_path.iterdir()) == []
    assert health_check.compute_findings(0) == []
