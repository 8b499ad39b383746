"""The gate that asks a model, named on the command line."""

import json
from pathlib import Path

import pytest

from megatron_native.alignment.rewriting.export import decisions_of
from megatron_native.cli import main
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
