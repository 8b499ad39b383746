"""The whole stage, on engines that are started for real."""

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_native.alignment.rewriting.export import decisions_of
from megatron_native.alignment.rewriting.leases import leases_in
from megatron_native.cli import main
from megatron_native.documents.inputs import expand_inputs
from megatron_native.documents.readers import read_documents
from tests.alignment.rewriting.jobs import rewritten_texts, text_of, write_documents
from tests.faulty_server import FaultyServer, edited

ROOT = Path(__file__).resolve().parents[3]
COMMAS = ("القمح والشعير ", "القمح, والشعير ")


def noisy_texts(path: Path, count: int) -> dict[str, str]:
    """Documents with Latin commas, which the server of the tests replaces."""
    write_documents(path, count)
    content = path.read_text(encoding="utf-8").replace(*COMMAS)
    path.write_text(content, encoding="utf-8")
    return {f"d{number}": text_of(number).replace(*COMMAS) for number in range(count)}


def words(folder: Path, server: FaultyServer, *others: str, output: str = "out") -> list[str]:
    return [
        "rewrite", "--input", str(folder / "in"), "--output", str(folder / output),
        "--engine", "openai", "--endpoint", server.url, "--model", server.model, "--no-first-look", "--no-rules",
        "--passage-tokens", "64", "--workers", "1", *others,
    ]  # fmt: skip


@pytest.fixture
def server():
    with FaultyServer() as one:
        yield one


def check_whole(folder: Path, texts: dict[str, str], server: FaultyServer) -> None:
    assert rewritten_texts(folder / "out") == {key: edited(text) for key, text in texts.items()}
    ids = Counter(decision["id"] for decision in decisions_of(folder / "out"))
    assert set(ids.values()) == {1}
    assert set(server.ledger.paid.values()) == {1}
    assert not (folder / "out" / "_progress").exists()


def test_documents_carry_their_lineage_and_the_manifest_the_figures(tmp_path: Path, server: FaultyServer, run) -> None:
    texts = noisy_texts(tmp_path / "in" / "a.jsonl", 5)
    done = run([*words(tmp_path, server), "--json"])
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, texts, server)
    manifest = json.loads(done.stdout)
    decisions = list(decisions_of(tmp_path / "out"))
    states = Counter(decision["state"] for decision in decisions)
    figures = manifest["rewriting"]
    assert {state: count for state, count in figures["passages"].items() if count} == dict(states)
    assert figures["accepted_tokens"] == sum(decision["tokens"] for decision in decisions)
    assert figures["engine_tokens"]["output"] == server.ledger.output_tokens
    assert manifest["parameters"]["prompt_hash"] in json.dumps(read_first(tmp_path / "out"))
    own = read_first(tmp_path / "out")["metadata"]["rewrite"]
    assert own["worker"] == server.model
    assert own["sampling"] == {"temperature": 0.0, "top_p": 1.0, "seed": 0}
    assert sum(own["passages"].values()) == sum(decision["id"].startswith("d0#") for decision in decisions)
    rewritten = next(decision for decision in decisions if decision["state"] == "rewritten")
    assert all(passed for _, passed in rewritten["gates"].values())
    assert len(rewritten["gates"]) > 5


def read_first(output: Path) -> dict[str, object]:
    import zstandard

    with open(output / "part-00000.jsonl.zst", "rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return json.loads(data.split(b"\n")[0])


def test_done_again_is_skipped_and_other_settings_are_refused(tmp_path: Path, server: FaultyServer, run) -> None:
    noisy_texts(tmp_path / "in" / "a.jsonl", 2)
    assert run(words(tmp_path, server)).returncode == 0
    paid = sum(server.ledger.paid.values())
    again = run(words(tmp_path, server))
    assert again.returncode == 0
    assert "skipped" in again.stdout
    assert sum(server.ledger.paid.values()) == paid
    other = run([*words(tmp_path, server), "--temperature", "0.5"])
    assert other.returncode == 2
    assert "sampling.temperature: 0.0 there, 0.5 asked for" in other.stderr


def test_engines_in_processes_of_their_own(tmp_path: Path, server: FaultyServer, run) -> None:
    texts = noisy_texts(tmp_path / "in" / "a.jsonl", 40)
    done = run([*words(tmp_path, server), "--engines", "2", "--chunk-passages", "8"])
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, texts, server)


def test_tasks_of_a_job_array_pull_from_one_another(tmp_path: Path, server: FaultyServer, run) -> None:
    texts = noisy_texts(tmp_path / "in" / "a.jsonl", 40)
    options = ["--part-bytes", "20000", "--chunk-passages", "8", "--task-count", "2"]
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_native", *words(tmp_path, server), *options, "--task-index", str(index)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    codes = set()
    for task in tasks:
        _, said = task.communicate()
        assert task.returncode in (0, 75), said
        codes.add(task.returncode)
    if 0 not in codes:  # both left something to the other: the next submission finds it
        last = run([*words(tmp_path, server), *options, "--task-index", "0"])
        if last.returncode == 75:
            last = run([*words(tmp_path, server), *options, "--task-index", "1"])
        assert last.returncode == 0, last.stderr
    check_whole(tmp_path, texts, server)


def test_a_task_waits_for_what_others_are_joining_lest_all_leave(tmp_path: Path, server: FaultyServer, run) -> None:
    for name in ("a", "b"):
        noisy_texts(tmp_path / "in" / name / "a.jsonl", 2)
    command = [*words(tmp_path, server), "--task-count", "2", "--task-index"]
    assert run([*command, "0"]).returncode == 75
    with leases_in(tmp_path / "out" / "_progress" / "leases") as another:
        lease = another.take("join-part-00001")
        assert lease is not None
        threading.Timer(3.0, another.give_back, [lease]).start()
        assert run([*command, "1"]).returncode == 0
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_task_that_comes_back_when_another_has_finished_all_harms_nothing(
    tmp_path: Path, server: FaultyServer, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While task 1 lets go of its engine, task 0 joins all parts and writes the manifest."""
    from megatron_native.alignment.rewriting import stage

    texts = noisy_texts(tmp_path / "in" / "a" / "a.jsonl", 4)
    blank = json.dumps({"id": "blank", "text": ""})
    (tmp_path / "in" / "b").mkdir()
    (tmp_path / "in" / "b" / "b.jsonl").write_text(blank + "\n", encoding="utf-8")  # a part of which no passage waits
    command = [*words(tmp_path, server), "--task-count", "2", "--task-index"]
    assert run([*command, "0"]).returncode == 75
    pulled, codes = stage.run_fleet, []

    def then_another_finishes(*arguments):
        deaths = pulled(*arguments)
        if not codes:
            codes.append(None)
            codes[0] = main([*command, "0"])
        return deaths

    monkeypatch.setattr(stage, "run_fleet", then_another_finishes)
    assert run([*command, "1"]).returncode == 0
    assert codes == [0]
    found = {
        document.id: document.text
        for path in expand_inputs([str(tmp_path / "out")])
        for document in read_documents(path)
    }
    assert found == {"blank": ""} | {key: edited(text) for key, text in texts.items()}
    assert not (tmp_path / "out" / "_progress").exists()


def test_what_an_engine_had_begun_is_done_though_the_others_had_left_when_it_died(
    tmp_path: Path, server: FaultyServer, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_native.alignment.rewriting import stage

    texts = noisy_texts(tmp_path / "in" / "a.jsonl", 4)
    rounds = []

    def one_dies(job, choice, fleet):
        rounds.append(job.answered())
        if len(rounds) > 1:
            return pulled(job, choice, fleet)
        (part,) = job.parts
        with leases_in(job.work / "leases") as dying:  # holds all chunks but the first when the other engine looks
            held = [dying.take(f"{part['name']}-{number:05d}") for number in range(1, len(part["chunks"]))]
            pulled(job, choice, replace(fleet, alone=False))
            for lease in held:
                dying.give_up(lease)
        return ["engine 1 died with exit code -9"]

    pulled = stage.run_fleet
    monkeypatch.setattr(stage, "run_fleet", one_dies)
    done = run([*words(tmp_path, server), "--engines", "2", "--chunk-passages", "8"])
    assert done.returncode == 0, done.stderr
    assert rounds == [0, 8]
    assert "engine 1 died" in done.stderr
    check_whole(tmp_path, texts, server)


def test_on_a_ray_cluster(tmp_path: Path, server: FaultyServer, run) -> None:
    pytest.importorskip("ray")
    texts = noisy_texts(tmp_path / "in" / "a.jsonl", 20)
    command = words(tmp_path, server)
    command[command.index("openai")] = "ray"
    done = run([*command, "--backend", "openai", "--engines", "2", "--chunk-passages", "8"])
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, texts, server)


def test_a_budget_stops_and_more_budget_goes_on(tmp_path: Path, server: FaultyServer, run) -> None:
    texts = noisy_texts(tmp_path / "in" / "a.jsonl", 20)
    command = [*words(tmp_path, server), "--chunk-passages", "8", "--option", "concurrency=2"]
    stopped = run([*command, "--max-tokens", "60000"])
    assert stopped.returncode == 1
    assert "budget" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    spent = server.ledger.prompt_tokens + server.ledger.output_tokens
    assert 0 < spent <= 60000
    done = run(command)
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path, texts, server)


def test_a_budget_is_for_one_engine(tmp_path: Path, server: FaultyServer, run) -> None:
    noisy_texts(tmp_path / "in" / "a.jsonl", 2)
    for several in (["--engines", "2"], ["--task-count", "2"]):
        done = run([*words(tmp_path, server), "--max-tokens", "60000", *several])
        assert done.returncode == 2
        assert "hold for one engine" in done.stderr
    assert not server.ledger.paid


def test_an_estimate_that_can_not_be_had_ends_in_one_paragraph(tmp_path: Path, server: FaultyServer, run) -> None:
    noisy_texts(tmp_path / "in" / "a.jsonl", 4)
    command = [*words(tmp_path, server), "--estimate"]
    spent = run([*command, "--max-tokens", "500"])
    assert spent.returncode == 2
    assert "the budget is spent" in spent.stderr
    server.die()
    dead = run([*command, "--option", "give_up_seconds=0.3"])
    assert dead.returncode == 2
    assert "no endpoint has answered" in dead.stderr


def test_without_known_accelerators_there_is_no_figure_of_merit(tmp_path: Path, server: FaultyServer, run) -> None:
    noisy_texts(tmp_path / "in" / "a.jsonl", 4)
    merit = "accelerator_hours_per_billion_accepted_tokens"
    unknown = run([*words(tmp_path, server), "--json"])
    assert json.loads(unknown.stdout)["rewriting"][merit] is None
    known = run([*words(tmp_path, server, "--option", "accelerators=2", output="known"), "--json"])
    figures = json.loads(known.stdout)["rewriting"]
    assert figures[merit] == pytest.approx(figures["accelerator_hours"] / figures["accepted_tokens"] * 1e9, rel=0.05)
    assert figures[merit] > 0


def test_too_few_gpus_are_told_of_before_any_engine_starts(
    tmp_path: Path, server: FaultyServer, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    noisy_texts(tmp_path / "in" / "a.jsonl", 2)
    done = run([*words(tmp_path, server), "--engines", "2", "--gpus-per-engine", "1"])
    assert done.returncode == 2
    assert "need 2 GPUs" in done.stderr
    assert multiprocessing.active_children() == []


def test_a_server_that_is_not_there_ends_in_one_paragraph_and_the_work_is_kept(tmp_path: Path, run) -> None:
    with FaultyServer() as server:
        texts = noisy_texts(tmp_path / "in" / "a.jsonl", 4)
        command = words(tmp_path, server)
        server.die()
        dead = run([*command, "--option", "give_up_seconds=1", "backoff_seconds=0.1"])
        assert dead.returncode == 2
        assert "Traceback" not in dead.stderr
        assert "passages wait" in dead.stderr
        server.revive()
        done = run(command)
        assert done.returncode == 0, done.stderr
        check_whole(tmp_path, texts, server)


def test_the_released_layout(tmp_path: Path, server: FaultyServer, run) -> None:
    noisy_texts(tmp_path / "in" / "a.jsonl", 30)
    done = run([*words(tmp_path, server), "--export", str(tmp_path / "released")])
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / "released" / "alignment_data_split" / f"alignment_data_{number}.jsonl" for number in range(10)]
    pairs = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    accepted = [one for one in decisions_of(tmp_path / "out") if one["state"] == "rewritten"]
    assert sorted(pair["origin"] for pair in pairs) == sorted(one["origin"] for one in accepted)
    assert all(pair.keys() == {"origin", "rewritten"} and pair["rewritten"] == edited(pair["origin"]) for pair in pairs)
    counts = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    assert max(counts) - min(counts) <= 1


def test_an_estimate_of_everything_is_what_the_run_then_gives(tmp_path: Path, server: FaultyServer, run) -> None:
    noisy_texts(tmp_path / "in" / "a.jsonl", 20)
    estimated = run([*words(tmp_path, server), "--estimate", "--sample", "10000", "--json"])
    assert estimated.returncode == 0, estimated.stderr
    assert not (tmp_path / "out").exists()
    figures = json.loads(estimated.stdout)["estimate"]
    done = run([*words(tmp_path, server), "--json"])
    manifest = json.loads(done.stdout)["rewriting"]
    assert figures["passages_for_worker"][0] == pytest.approx(sum(manifest["passages"].values()))
    assert figures["tokens"][0] == pytest.approx(sum(manifest["tokens"].values()))
    assert figures["accepted_tokens"][0] == pytest.approx(manifest["accepted_tokens"])
    assert figures["written_tokens"][0] == pytest.approx(manifest["engine_tokens"]["output"])


def test_documents_of_a_rewriting_can_be_read_by_the_next_stage(tmp_path: Path, server: FaultyServer, run) -> None:
    noisy_texts(tmp_path / "in" / "ar" / "a.jsonl", 3)
    assert run(words(tmp_path, server)).returncode == 0
    names = [path.relative_to(tmp_path / "out").as_posix() for path in expand_inputs([str(tmp_path / "out")])]
    assert names
    assert all("_decisions" not in name for name in names)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--engine", "gpt"], "--engine gpt is not known"),
        (["--engine", "vllm"], "--engine vllm needs --worker FOLDER"),
        (["--engine", "openai"], "needs --endpoint URL"),
        (["--engine", "openai", "--endpoint", "node1:8000", "--model", "w"], "give the base URL"),
        (["--engine", "transformers", "--worker", "nowhere"], "there is no config.json"),
        (["--engine", "rules", "--no-rules"], "would do nothing"),
        (["--worker", "models/worker"], "--worker: --engine rules makes no use of that"),
        (["--max-cost", "5"], "--max-cost: --engine rules makes no use of that"),
        (["--passage-tokens", "3"], "--passage-tokens 3: it must be 16 or more"),
        (["--conduct", "generall"], "did you mean 'general'?"),
        (["--engine", "openai", "--endpoint", "http://a/v1", "--model", "w", "--option", "x"], "write KEY=VALUE"),
    ],
)
def test_what_is_asked_for_wrongly_ends_in_one_paragraph(tmp_path: Path, options: list[str], part: str, run) -> None:
    write_documents(tmp_path / "in" / "a.jsonl", 1)
    base = ["rewrite", "--input", str(tmp_path / "in")]
    done = run([*base, "--output", str(tmp_path / "out"), *options])
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_signal_while_rules_work_ends_with_75_and_the_same_command_goes_on(tmp_path: Path, run) -> None:
    write_documents(tmp_path / "in" / "a.jsonl", 20000)
    command = ["rewrite", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1"]
    command += ["--part-bytes", "400000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_native", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    parts = tmp_path / "out" / "_progress" / "parts"
    while not (parts.is_dir() and len(list(parts.glob("*.json"))) >= 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate()
    assert process.returncode == 75, said
    assert b"Traceback" not in said
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert kept
    assert run(command).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(rewritten_texts(tmp_path / "out")) == 20000
