"""`rewrite-report` as a user types it."""

import json

import pytest

from megatron_native.alignment.report.embedding import read_back
from megatron_native.cli import run_command
from tests.alignment.analyses.pairs import CLEAN, WORN, rewriting
from tests.alignment.analyses.test_toxicity import Moderation, moderation  # noqa: F401 - a fixture
from tests.faulty_server import FaultyServer

GRADES = '{"format": 9, "accuracy": 10, "moderation": 10, "advertisement": 8, "detail": 7}'


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    rewriting(folder)
    (folder / "pairs.jsonl").write_text(
        json.dumps({"source": WORN, "target": CLEAN}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return folder


def run(*arguments):
    return run_command("rewrite-report", [str(one) for one in arguments])


def test_a_rewriting_becomes_a_page_and_figures(work, tmp_path, capsys):
    output, figures = tmp_path / "new" / "report.html", tmp_path / "f.json"
    assert run("--input", work / "rewritten", "--output", output, "--json", figures) == 0
    assert capsys.readouterr().out == f"{output}: 3 pairs, 3 accepted; 3 on the page\n"
    _, rows = read_back(output.read_text(encoding="utf-8"))
    assert [row[0] for row in rows] == ["d0", "d2", "d4"]
    read = json.loads(figures.read_text(encoding="utf-8"))
    assert read["format"] == "megatron-native/rewrite-report/1" and read["states"] == {"rewritten": 3}
    first = output.read_bytes()
    assert run("--input", work / "rewritten", "--output", output) == 0
    assert output.read_bytes() == first  # the same pairs and intervals every time
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.html"]


def test_pairs_under_other_keys_graded_by_a_judge_and_paid_once(work, tmp_path):
    output = tmp_path / "report.html"
    with FaultyServer({"500": 0.3}, seed=1, answer=lambda messages: GRADES) as server:
        arguments = (
            "--input", work / "pairs.jsonl", "--origin-key", "source", "--rewritten-key", "target", "--output", output,
            "--json", tmp_path / "f.json", "--judge-endpoint", server.url, "--judge-model", "editor", "--no-lexicon",
        )  # fmt: skip
        assert run(*arguments) == 0 and run(*arguments) == 0
        assert sum(server.ledger.paid.values()) == 1
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert figures["toxicity"] == []
    assert [grade["mean"]["value"] for grade in figures["grades"]["grades"]] == [9, 10, 10, 8, 7]
    _, rows = read_back(output.read_text(encoding="utf-8"))
    assert [row[5] for row in rows] == [[9, 10, 10, 8, 7]]


def test_pairs_of_two_inputs_with_the_same_id_have_grades_of_their_own(work, tmp_path):
    inputs = []
    for name, text in (("a", CLEAN), ("b", "شعر قديم.")):
        inputs.append(tmp_path / f"{name}.jsonl")
        record = {"id": 1, "origin": f"{text} .", "rewritten": text}
        inputs[-1].write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")

    def answer(messages):
        return GRADES.replace("9", "3") if "شعر" in messages[-1]["content"] else GRADES

    output = tmp_path / "report.html"
    with FaultyServer(answer=answer) as server:
        words = ("--judge-endpoint", server.url, "--judge-model", "editor", "--no-lexicon", "--no-gates")
        assert run("--input", *inputs, "--output", output, *words) == 0
    _, rows = read_back(output.read_text(encoding="utf-8"))
    assert [(row[0], row[5][0]) for row in rows] == [("1", 9), ("1", 3)]


def test_the_judges_key_goes_to_no_other_server(work, tmp_path, monkeypatch, moderation):  # noqa: F811 (the fixture)
    monkeypatch.setenv("OPENAI_API_KEY", "judge-secret")
    monkeypatch.setenv("MODERATION_KEY", "moderation-secret")
    words = ["--input", work / "rewritten", "--output", tmp_path / "r.html", "--toxicity-endpoint", moderation]
    with FaultyServer(answer=lambda messages: GRADES, api_key="judge-secret") as server:
        judge = ["--judge-endpoint", server.url, "--judge-model", "editor"]
        for more, key in (
            (judge, "none"), ([], "judge-secret"), ([*judge, "--toxicity-endpoint-key-variable", "MODERATION_KEY"],
            "moderation-secret"),
        ):  # fmt: skip
            Moderation.keys.clear()
            assert run(*words, "--no-lexicon", *more) == 0
            assert Moderation.keys == {f"Bearer {key}"}
    with FaultyServer(answer=lambda messages: GRADES, api_key="moderation-secret") as server:
        judge = ["--judge-endpoint", server.url, "--judge-model", "editor", "--judge-key-variable", "MODERATION_KEY"]
        journal = ["--judge-journal", tmp_path / "other.jsonl"]
        assert run("--input", work / "rewritten", "--output", tmp_path / "r.html", *judge, *journal) == 0
        assert sum(server.ledger.paid.values()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "gone"], "gone does not exist and matches no file"),
        (["--input", "rewritten", "--sample", "-1"], "--sample -1: it must be 0 or more"),
        (["--input", "rewritten", "--judge-model", "m"], "--judge-endpoint URL and --judge-model NAME belong together"),
        (["--input", "rewritten", "--json", "out.html"], "--json out.html is the --output too"),
        (["--input", "rewritten", "--toxicity-model", "rewritten"], "--toxicity-model rewritten is no Hugging Face folder"),
        (["--input", "rewritten", "--perplexity-model", "rewritten"], "there is no config.json"),
        (["--input", "pairs.jsonl"], "there are no pairs in it"),
        (["--input", "pairs.jsonl", "--gates", "gone.yaml"], "gone.yaml can't be read"),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_paragraph_and_nothing_is_written(work, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(work)
    assert run(*arguments, "--output", "out.html") == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert said in shown.err
    assert not (work / "out.html").exists()
