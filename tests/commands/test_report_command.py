"""`megatron-native report` as a user types it."""

import json

import pytest

from megatron_native.cli import run_command
from tests.corpus.report_runs import KEPT, read_manifest, run_of, write_manifest
from tests.data.small_tokenizers import write_smollm


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A whole run: clean, dedup, tokenize by language."""
    folder = run_of(tmp_path_factory.mktemp("work"))
    tokenizer = write_smollm(folder / "tokenizer")
    for language in ("ar", "en"):
        arguments = ["--input", str(folder / "dedup" / language), "--output-prefix", str(folder / "tokens" / language)]
        assert (
            run_command("tokenize", [*arguments, "--tokenizer-model", str(tokenizer), "--append-eod", "--workers", "1"])
            == 0
        )
    return folder


@pytest.fixture(autouse=True)
def in_work(work, monkeypatch):
    monkeypatch.chdir(work)


def test_the_report_of_a_whole_run(work, tmp_path, capsys):
    output = tmp_path / "new" / "report.html"
    arguments = [
        "--input",
        "clean",
        "dedup",
        "tokens/ar_text_document",
        "tokens/en_text_document",
        "--output",
        str(output),
    ]
    arguments += ["--tokenizer", "tokenizer", "--budget", "1M", "--blend", "ar=0.8,en=0.2", "--sample", "100"]
    assert run_command("report", arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == (
        f"{output}: 13 records read, {KEPT} kept; the account balances (figures: {output.with_suffix('.json')})"
    )
    figures = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    manifests = {
        name: json.loads((work / f"tokens/{name}_text_document.manifest.json").read_text()) for name in ("ar", "en")
    }
    tokens = {name: manifest["tokens"] for name, manifest in manifests.items()}
    assert figures["totals"]["tokens"] == sum(tokens.values())
    assert [link["records"] for link in figures["links"]] == [11, KEPT - 1, 1]
    for name, weight in (("ar", 0.8), ("en", 0.2)):
        one = next(one for one in figures["budget"]["shares"] if one["name"] == name)
        assert one["epochs"] == pytest.approx(weight * 1e6 / tokens[name])
        # without begin tokens and one end token a document, the sample is the whole dataset
        assert figures["fertility"][name]["tokens"] == tokens[name] - manifests[name]["counts"]["kept"]
        assert figures["fertility"][name]["bytes"] == manifests[name]["counts"]["text_bytes"]
        assert f"WARNING: the budget goes over {name} " in shown.err
    html = output.read_text(encoding="utf-8")
    assert f"{tokens['ar']:,}" in html and "Token budget" in html
    assert not list(output.parent.glob("*.partial"))


def test_a_folder_of_datasets_means_all_of_them(tmp_path):
    assert run_command("report", ["--input", "clean", "dedup", "tokens", "--output", str(tmp_path / "r.html")]) == 0
    figures = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in figures["stages"]] == [
        "clean", "dedup", "tokens/ar_text_document", "tokens/en_text_document",
    ]  # fmt: skip
    assert figures["budget"]["blend_given"] is False


def test_a_dataset_without_a_manifest_says_its_tokens_and_nothing_else(work, tmp_path):
    for ending in ("bin", "idx"):
        (tmp_path / f"foreign.{ending}").write_bytes((work / f"tokens/ar_text_document.{ending}").read_bytes())
    assert run_command("report", ["--input", str(tmp_path / "foreign"), "--output", str(tmp_path / "r.html")]) == 0
    (stage,) = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["stages"]
    manifest = json.loads((work / "tokens/ar_text_document.manifest.json").read_text())
    assert (stage["tokens"], stage["kept"], stage["read"]) == (manifest["tokens"], manifest["documents"], None)
    assert "not recorded" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_an_account_that_does_not_balance_ends_in_exit_code_1_with_the_page_written(work, tmp_path, capsys):
    before = read_manifest(work / "dedup")
    spoiled = json.loads(json.dumps(before))
    spoiled["counts"]["kept"] -= 1
    write_manifest(work / "dedup", spoiled)
    try:
        code = run_command(
            "report", ["--input", "clean", "dedup", "--output", str(tmp_path / "r.html"), "--json", str(tmp_path / "f")]
        )
    finally:
        write_manifest(work / "dedup", before)
    shown = capsys.readouterr()
    assert code == 1
    assert "THE ACCOUNT DOES NOT BALANCE" in shown.out
    assert shown.err.startswith("WARNING: the account does not balance")
    assert "THE ACCOUNT DOES NOT BALANCE" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "f").read_text(encoding="utf-8"))["balances"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "gone"], "gone is neither a stage folder nor the prefix of a dataset"),
        (["--input", "dedup/ar"], "dedup/ar holds no manifest.json and no dataset; it lies in the stage folder"),
        (["--input", "dump"], "dump holds no manifest.json and no dataset; give what clean, dedup or tokenize wrote"),
        (["--input", "half"], "half holds a stage that did not finish"),
        (["--input", "clean", "--budget", "lots"], "--budget lots is no number of tokens"),
        (["--input", "clean", "--blend", "ar"], "--blend ar: 'ar' is not NAME=WEIGHT"),
        (["--input", "clean", "--blend", "ar=1"], "ar is none of the datasets given: there are none"),
        (["--input", "clean", "--sample", "-1"], "--sample -1: it must be 0 or more"),
        (["--input", "clean", "--tokenizer", "gone"], "gone: there is no such file or folder"),
        (["--input", "clean", "--json", "out.html"], "--json out.html is the --output too"),
        (["--input", "clean", "--json", "clean"], "clean is a folder; give the name of a file"),
    ],
)
def test_a_mistake_ends_in_one_paragraph_and_nothing_is_written(work, capsys, arguments, said):
    (work / "half" / "_progress").mkdir(parents=True, exist_ok=True)
    assert run_command("report", [*arguments, "--output", "out.html"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert said in shown.err
    assert not (work / "out.html").exists()
