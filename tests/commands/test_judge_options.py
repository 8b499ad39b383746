"""The gate that asks a model, named on the command line."""

import json
from pathlib import Path

import pytest

from megatron_native.alignment.rewriting.export import decisions_of
from megatron_native.cli import main
from megatron_native.commands.server_arguments import key_variable_of
from tests.faulty_server import FaultyServer

ORIGIN = "ذهب الولد الى المدرسة في الصباح الباكر مع أخته الصغيرة."
GOOD = "ذهب الولد إلى المدرسة في الصباح الباكر مع أخته الصغيرة."
OTHER = "ذهبت البنت الى السوق في المساء مع أمها لتشتري الخبز."


def verdict(messages: list[dict[str, str]]) -> str:
    """Refuses what has to do with a market."""
    good = "السوق" not in messages[-1]["content"]
    return json.dumps(
        {"pass": good, "score": 9 if good else 2, "reason": "لا بأس" if good else "ذكر السوق"}, ensure_ascii=False
    )


def write_pairs(folder: Path) -> Path:
    pairs = [(ORIGIN, GOOD), (OTHER, OTHER.replace("الى", "إلى")), (GOOD, GOOD)]
    lines = [json.dumps({"origin": one, "rewritten": other}, ensure_ascii=False) for one, other in pairs]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_gate_asks_the_judge(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = write_pairs(tmp_path)
    with FaultyServer(answer=verdict, model="judge") as server:
        words = ["gate", "--input", str(pairs), "--output", str(tmp_path / "out"), "--workers", "1", "--json"]
        assert main([*words, "--judge-endpoint", server.url, "--judge-model", "judge"]) == 0
        assert sum(server.ledger.paid.values()) == 2  # a pair that is its origin needs no judge
    manifest = json.loads(capfd.readouterr().out)
    assert manifest["counts"]["dropped"] == {"judge": 1}
    assert manifest["counts"]["kept"] == 2
    assert manifest["parameters"]["gates"]["judge"]["model"] == "judge"
    assert server.url not in json.dumps(manifest)


def test_rewrite_asks_the_judge(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        "".join(
            json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n"
            for number, text in enumerate((ORIGIN + " ,ثم عاد.", OTHER + " ,ثم عادت."))
        ),
        encoding="utf-8",
    )
    with FaultyServer(answer=verdict, model="judge") as judge, FaultyServer() as worker:
        code = main([
            "rewrite", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), "--engine", "openai",
            "--endpoint", worker.url, "--model", worker.model, "--no-rules", "--no-first-look", "--workers", "1",
            "--judge-endpoint", judge.url, "--judge-model", "judge",
        ])  # fmt: skip
        assert code == 0
        assert sum(judge.ledger.paid.values()) == 2
    states = {one["id"]: (one["state"], one.get("refused")) for one in decisions_of(tmp_path / "out")}
    assert states == {"0#0": ("rewritten", None), "1#0": ("refused", ["judge"])}


def test_a_wrong_name_of_the_judge_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = write_pairs(tmp_path)
    with FaultyServer(answer=verdict, model="judge") as server:
        words = ["gate", "--input", str(pairs), "--output", str(tmp_path / "out"), "--workers", "1"]
        assert main([*words, "--judge-endpoint", server.url, "--judge-model", "nobody"]) == 2
    assert "the model's name" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["--judge-model", "judge"], "belong together"),
        (["--judge-endpoint", "http://u:p@h/v1", "--judge-model", "judge"], "carries a user"),
        (["--set", "judge.enabled=true"], "--judge-endpoint URL"),
    ],
)
def test_half_a_judge_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], others: list[str], said: str
) -> None:
    words = ["gate", "--input", str(write_pairs(tmp_path)), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, *others]) == 2
    assert said in capfd.readouterr().err


def rewrite_words(folder: Path, worker: FaultyServer, judge: FaultyServer, output: str) -> list[str]:
    record = {"id": "0", "text": ORIGIN + " ,ثم عاد."}
    (folder / "in.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return [
        "rewrite", "--input", str(folder / "in.jsonl"), "--output", str(folder / output), "--engine", "openai",
        "--endpoint", worker.url, "--model", worker.model, "--no-rules", "--no-first-look", "--workers", "1",
        "--judge-endpoint", judge.url, "--judge-model", "judge",
    ]  # fmt: skip


def test_the_key_of_the_worker_goes_to_no_other_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "worker-secret")
    monkeypatch.setenv("JUDGE_KEY", "judge-secret")
    with FaultyServer(api_key="worker-secret") as worker:
        with FaultyServer(answer=verdict, model="judge", api_key="none") as judge:  # the placeholder
            assert main(rewrite_words(tmp_path, worker, judge, "a")) == 0
            assert sum(judge.ledger.paid.values()) == 1
        with FaultyServer(answer=verdict, model="judge", api_key="judge-secret") as judge:
            words = rewrite_words(tmp_path, worker, judge, "b")
            assert main([*words, "--judge-key-variable", "JUDGE_KEY"]) == 0
            assert sum(judge.ledger.paid.values()) == 1
            capfd.readouterr()
            assert main(rewrite_words(tmp_path, worker, judge, "c")) == 2
            assert "name the variable that holds one" in capfd.readouterr().err
    manifests = [(tmp_path / name / "manifest.json").read_text(encoding="utf-8") for name in ("a", "b")]
    assert all("JUDGE_KEY" not in text and "secret" not in text for text in manifests)


def test_the_only_server_gets_the_key_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    with FaultyServer(answer=verdict, model="judge", api_key="secret-1") as server:
        words = ["gate", "--input", str(write_pairs(tmp_path)), "--output", str(tmp_path / "out"), "--workers", "1"]
        assert main([*words, "--judge-endpoint", server.url, "--judge-model", "judge"]) == 0
    assert key_variable_of(None, "http://a:1/v1", []) == "OPENAI_API_KEY"
    assert key_variable_of(None, "http://a:1/other", ["http://b:1/v1", "http://A:1"], "EXPERT") == "EXPERT"
    for other in ("http://a:2/v1", "https://a:1/v1", "http://b:1/v1"):
        assert key_variable_of(None, "http://a:1/v1", [other]) == ""
        assert key_variable_of("MINE", "http://a:1/v1", [other]) == "MINE"
