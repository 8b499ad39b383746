"""The whole command against a server that fails as real ones do."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_native.alignment.rewriting.export import decisions_of
from megatron_native.alignment.seeds.candidates import read_lines
from tests.alignment.rewriting.jobs import SENTENCES
from tests.faulty_server import FaultyServer, edited, sensible_answer
from tests.tiny_models import make_tiny_model

FAULTS = {"429": 0.1, "500": 0.1, "garbage": 0.06, "half": 0.1, "empty": 0.06, "closed": 0.1}


def text_of(number: int) -> str:
    """A passage that the server changes (Latin comma, two blanks) where `number` is even."""
    text = f"الفقرة {number}: {SENTENCES[number % 6]} {SENTENCES[(number + 2) % 6]}"
    return text.replace(" من ", "  من ") + " فهل رأيتها?" if number % 2 == 0 else text


def write(folder: Path, count: int = 40) -> dict[str, str]:
    """Documents of one passage each; passage id → text."""
    texts = {f"d{number}#0": text_of(number) for number in range(count)}
    lines = [
        json.dumps({"id": key[:-2], "text": text, "metadata": {"source": "site"}}, ensure_ascii=False)
        for key, text in texts.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return texts


def words(folder: Path, server: FaultyServer, *others: str, output: str = "seeds") -> list[str]:
    return [
        "annotate", "--input", str(folder / "in"), "--output", str(folder / output), "--endpoint", server.url, "--model",
        server.model, "--no-rules", "--workers", "1", "--sample", "30", *others, "--option", "backoff_seconds=0.02",
        "concurrency=4",
    ]  # fmt: skip


def seeds_of(folder: Path) -> list[dict[str, Any]]:
    return [record for path in sorted(folder.glob("part-*.jsonl.zst")) for record in read_lines(path, dict[str, Any])]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"
    }  # fmt: skip


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def test_a_faulty_server_gives_every_answer_and_is_paid_once(tmp_path: Path, run) -> None:
    texts = write(tmp_path / "in")
    with FaultyServer(faults=FAULTS, seed=5) as server:
        done = run(words(tmp_path, server, "--structured", "off"))
    assert done.returncode == 0, done.stderr
    assert {fault for _, fault, _ in server.ledger.events} >= {"500", "429", "half", "closed"}
    seeds = seeds_of(tmp_path / "seeds")
    assert len({seed["id"] for seed in seeds}) == len(seeds) == 30
    for seed in seeds:
        assert seed["origin"] == texts[seed["id"]]
        assert seed["rewritten"] == edited(seed["origin"])
    assert sum(server.ledger.paid.values()) == len(server.ledger.paid) == 30
    assert 1 < server.ledger.most_at_once <= 4


def test_seeds_carry_their_lineage(tmp_path: Path, server: FaultyServer, run) -> None:
    write(tmp_path / "in")
    assert run(words(tmp_path, server, "--seed", "4")).returncode == 0
    manifest = manifest_of(tmp_path / "seeds")
    seed = next(seed for seed in seeds_of(tmp_path / "seeds") if seed["metadata"]["state"] == "rewritten")
    lineage = seed["metadata"]
    number = int(seed["id"][1:-2])
    lines = (tmp_path / "in" / "a.jsonl").read_bytes().split(b"\n")
    offset = sum(len(line) + 1 for line in lines[:number])
    assert lineage["document"] == {
        "id": f"d{number}", "passage": 0, "source": "site", "file": "a.jsonl", "offset": offset,
    }  # fmt: skip
    assert lineage["selection"] == {"rule": "random", "seed": 4}
    asked = lineage["annotation"]
    assert asked["prompt_hash"] == manifest["parameters"]["prompt_hash"]
    assert asked["conduct_hash"] == manifest["parameters"]["conduct"]["hash"]
    assert (asked["model"], asked["tries"]) == ("editor", 1)
    assert asked["served_by"] == {"model": "editor-0001", "system_fingerprint": "fp_loopback"}
    assert asked["usage"]["output_tokens"] == len(seed["rewritten"].split())
    assert set(lineage["gates"]) >= {"numbers", "names", "language"}
    assert manifest["annotation"]["endpoints"] == [server.url]
    assert manifest["annotation"]["served_by"] == [
        {"model": "editor-0001", "system_fingerprint": "fp_loopback", "passages": 30}
    ]


def test_the_account_balances(tmp_path: Path, run) -> None:
    write(tmp_path / "in")
    with open(tmp_path / "in" / "a.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": "x"}\n{"id": "y", "text": "قصير."}\n')
    with FaultyServer(schedule=lambda body, attempt: "filtered" if "الفقرة 7:" in str(body) else "") as server:
        assert (
            run(words(tmp_path, server, "--price-input", "2", "--price-output", "8", "--sample", "40")).returncode == 0
        )
    manifest = manifest_of(tmp_path / "seeds")
    counts, selection = manifest["counts"], manifest["selection"]
    assert counts["read"] == 40
    assert (counts["kept"], counts["dropped"]) == (39, {})
    assert sum(counts["quarantined"].values()) == 1
    assert selection["documents"] == {"read": 42, "used": 41, "quarantined": {"no text key": 1}}
    assert selection["passages"] == {"eligible": 40, "passed_over": {"too short": 1}}
    assert manifest["inputs"][0]["records"] == 42
    assert (tmp_path / "seeds" / "_quarantine" / "part-00000.jsonl.zst").exists()
    usage = manifest["annotation"]["usage"]
    assert usage["prompt"] == server.ledger.prompt_tokens
    assert usage["output"] == server.ledger.output_tokens
    assert manifest["annotation"]["cost"] == pytest.approx((2 * usage["prompt"] + 8 * usage["output"]) / 1e6)
    assert len(list(decisions_of(tmp_path / "seeds"))) == 40
    missing = [one for one in decisions_of(tmp_path / "seeds") if one["state"] == "quarantined"]
    assert [one["id"] for one in missing] == ["d7#0"]
    assert "content_filter" in missing[0]["reason"]


def test_a_damaged_answer_is_refused_and_on_record(tmp_path: Path, run) -> None:
    texts = write(tmp_path / "in")

    def answer(messages: list[dict[str, str]]) -> str:
        said = sensible_answer(messages)
        return said.replace("الفقرة 8:", "الفقرة 9731:") if "الفقرة 8:" in said else said

    with FaultyServer(answer=answer) as server:
        assert run(words(tmp_path, server, "--sample", "40")).returncode == 0
    manifest = manifest_of(tmp_path / "seeds")
    assert manifest["counts"]["dropped"] == {"numbers": 1}
    assert manifest["annotation"]["refused_by"]["numbers"] == 1
    refused = [one for one in decisions_of(tmp_path / "seeds") if one["state"] == "refused"]
    assert [one["id"] for one in refused] == ["d8#0"]
    assert refused[0]["rewritten"] is None
    assert "9731" in refused[0]["answer"]
    assert "numbers" in refused[0]["refused"]
    assert refused[0]["origin"] == texts["d8#0"]
    assert "d8#0" not in {seed["id"] for seed in seeds_of(tmp_path / "seeds")}


def test_structured_and_plain_answers_give_the_same_seeds(tmp_path: Path, run) -> None:
    write(tmp_path / "in")
    found = {}
    for kind, structured in (("kept", True), ("ignored", False), ("refused", False)):
        with FaultyServer(structured=kind) as server:
            done = run(words(tmp_path, server, output=kind))
        assert done.returncode == 0, done.stderr
        manifest = manifest_of(tmp_path / kind)
        assert manifest["annotation"]["structured"] is structured
        # the question that found out counts where it was answered by the schema; where it was ignored it is one more
        assert sum(server.ledger.paid.values()) == 30 + (kind == "ignored")
        found[kind] = [(seed["id"], seed["origin"], seed["rewritten"]) for seed in seeds_of(tmp_path / kind)]
    assert found["kept"] == found["ignored"] == found["refused"]
    assert len(found["kept"]) == 30


def test_an_answer_that_is_cut_off_or_unreadable_is_asked_again_in_another_way(tmp_path: Path, run) -> None:
    write(tmp_path / "in")

    def answer(messages: list[dict[str, str]]) -> str:
        said = sensible_answer(messages)
        if "الفقرة 4:" in said and "لم يأتِ جوابك بالصيغة المطلوبة" not in messages[-1]["content"]:
            return '{"rewritten": "' + said  # never closed
        return said + " كلمة" * 100 if "الفقرة 6:" in said else said

    with FaultyServer(answer=answer) as server:
        done = run(words(tmp_path, server, "--sample", "40", "--structured", "off", "--answer-ratio", "1"))
    assert done.returncode == 0, done.stderr
    assert server.ledger.paid and set(server.ledger.paid.values()) == {1}
    assert sum(server.ledger.paid.values()) == 42
    decisions = {one["id"]: one for one in decisions_of(tmp_path / "seeds")}
    assert decisions["d4#0"]["state"] == "rewritten"
    assert decisions["d4#0"]["tries"] == 2
    assert decisions["d6#0"]["state"] == "refused"  # with twice the room it is whole, and the gates see what was added
    assert decisions["d6#0"]["tries"] == 2
    assert all("tries" not in one for key, one in decisions.items() if key not in ("d4#0", "d6#0"))


def test_the_budget_is_kept_and_a_larger_one_goes_on(tmp_path: Path, server: FaultyServer, run) -> None:
    write(tmp_path / "in")
    whole = run(words(tmp_path, server, output="whole"))
    assert whole.returncode == 0
    paid_by_whole = Counter(server.ledger.paid)
    server.ledger.paid.clear()
    server.ledger.prompt_tokens = server.ledger.output_tokens = 0
    stopped = run(words(tmp_path, server, "--max-tokens", "12000"))
    assert stopped.returncode == 1
    assert "the budget is spent" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    some = Counter(server.ledger.paid)
    assert 0 < len(some) < len(paid_by_whole)
    assert server.ledger.prompt_tokens + server.ledger.output_tokens <= 12000
    again = run(words(tmp_path, server, "--max-tokens", "12000"))
    assert again.returncode == 1
    assert server.ledger.paid == some
    done = run(words(tmp_path, server, "--max-tokens", "200000"))
    assert done.returncode == 0, done.stderr
    assert server.ledger.paid == paid_by_whole
    assert files(tmp_path / "seeds") == files(tmp_path / "whole")


def test_a_run_that_goes_on_where_no_schema_is_known_asks_without_and_pays_nothing_twice(tmp_path: Path, run) -> None:
    texts = write(tmp_path / "in")
    paid = []
    for kind, most in (("kept", "7000"), ("refused", "11000"), ("refused", "400000")):
        with FaultyServer(structured=kind) as server:
            done = run(words(tmp_path, server, "--max-tokens", most))
        assert done.returncode == (0 if most == "400000" else 1), done.stderr
        paid.append(sum(server.ledger.paid.values()))
    assert all(paid) and sum(paid) == 30
    seeds = seeds_of(tmp_path / "seeds")
    assert {seed["id"]: seed["rewritten"] for seed in seeds} == {
        seed["id"]: edited(texts[seed["id"]]) for seed in seeds
    }
    by_schema = [seed["metadata"]["annotation"]["structured"] for seed in seeds]
    assert (by_schema.count(True), by_schema.count(False)) == (paid[0], paid[1] + paid[2])
    assert manifest_of(tmp_path / "seeds")["annotation"]["structured"] is False


def test_a_server_that_takes_nothing_ends_the_run_and_keeps_what_there_is(tmp_path: Path, run) -> None:
    write(tmp_path / "in")
    with FaultyServer() as server:
        assert run(words(tmp_path, server, "--structured", "off", "--max-tokens", "6000")).returncode == 1
    some = sum(server.ledger.paid.values())
    assert 0 < some <= 10
    with FaultyServer(schedule=lambda body, attempt: "400") as server:
        done = run(words(tmp_path, server, "--structured", "off"))
    assert done.returncode == 2
    assert "maximum context length is 100 tokens" in done.stderr
    assert f"{some} of 30 passages are answered, and kept" in done.stderr
    assert not (tmp_path / "seeds" / "manifest.json").exists()
    with FaultyServer() as server:
        assert run(words(tmp_path, server, "--structured", "off")).returncode == 0
    assert sum(server.ledger.paid.values()) == 30 - some
    assert len(seeds_of(tmp_path / "seeds")) == 30


def test_a_few_passages_that_no_server_takes_end_no_run(tmp_path: Path, run) -> None:
    write(tmp_path / "in")
    with FaultyServer(schedule=lambda body, attempt: "400" if "الفقرة 1" in str(body) else "") as server:
        assert run(words(tmp_path, server, "--sample", "40")).returncode == 0
    assert manifest_of(tmp_path / "seeds")["counts"]["quarantined"] == {"no answer": 11}  # 1 and 10 to 19
    with FaultyServer(schedule=lambda body, attempt: "400") as server:
        done = run(words(tmp_path, server, "--sample", "3", output="few"))
    assert done.returncode == 2
    assert "no passage is taken" in done.stderr


def test_a_dry_run_asks_and_writes_nothing(tmp_path: Path, server: FaultyServer, run) -> None:
    texts = write(tmp_path / "in")
    prices = ("--price-input", "2", "--price-output", "8", "--json")
    done = run(words(tmp_path, server, "--dry-run", *prices))
    assert done.returncode == 0, done.stderr
    assert not server.ledger.events
    assert not (tmp_path / "seeds").exists()
    result = json.loads(done.stdout)
    assert (result["passages_there"], result["requests"], result["requests_at_most"]) == (len(texts), 30, 60)
    expected = result["expected"]
    assert expected["cost"] == pytest.approx((2 * expected["prompt_tokens"] + 8 * expected["output_tokens"]) / 1e6)
    assert expected["prompt_tokens"] < result["at_most"]["prompt_tokens"]
    assert run(words(tmp_path, server, "--json")).returncode == 0
    asked = seeds_of(tmp_path / "seeds")
    tokens = sum(seed["metadata"]["tokens"] for seed in asked)
    assert expected["output_tokens"] == pytest.approx(tokens, rel=0.1)


def test_a_finished_annotation_is_skipped_and_other_settings_are_refused(tmp_path: Path, server, run) -> None:
    write(tmp_path / "in")
    assert run(words(tmp_path, server)).returncode == 0
    events = len(server.ledger.events)
    again = run(words(tmp_path, server))
    assert again.returncode == 0
    assert "skipped" in again.stdout
    other = run(words(tmp_path, server, "--seed", "9"))
    assert other.returncode == 2
    assert "selection.seed" in other.stderr
    assert len(server.ledger.events) == events


def test_a_journal_of_its_own_serves_a_larger_sample(tmp_path: Path, server: FaultyServer, run) -> None:
    write(tmp_path / "in")
    journal = ("--journal", str(tmp_path / "paid.jsonl"))
    assert run(words(tmp_path, server, *journal, "--sample", "12", output="few")).returncode == 0
    assert sum(server.ledger.paid.values()) == 13  # and the question about schemas, which this server ignores
    assert run(words(tmp_path, server, *journal, "--sample", "30")).returncode == 0
    assert sum(server.ledger.paid.values()) == 31
    few, more = ({seed["id"] for seed in seeds_of(tmp_path / name)} for name in ("few", "seeds"))
    assert few < more


def test_gate_first_look_and_the_released_form_read_the_seeds(tmp_path: Path, run) -> None:
    write(tmp_path / "in", 130)
    content = (tmp_path / "in" / "a.jsonl").read_text(encoding="utf-8")
    (tmp_path / "in" / "a.jsonl").write_text(content.replace("فهل رأيتها?", "فهل ذهبت اليها?"), encoding="utf-8")
    released = tmp_path / "rewrite_seed_data.json"
    with FaultyServer(answer=lambda messages: sensible_answer(messages).replace("اليها", "إليها")) as server:
        done = run(words(tmp_path, server, "--sample", "130", "--export", str(released)))
    assert done.returncode == 0, done.stderr
    pairs = json.loads(released.read_text(encoding="utf-8"))
    seeds = seeds_of(tmp_path / "seeds")
    assert pairs == [{"origin": seed["origin"], "rewritten": seed["rewritten"]} for seed in seeds]
    gated = run(
        ["gate", "--input", str(tmp_path / "seeds"), "--output", str(tmp_path / "gated"), "--workers", "1", "--json"]
    )
    assert gated.returncode == 0, gated.stderr
    assert json.loads(gated.stdout)["counts"]["kept"] == len(seeds) == 130
    for place in (tmp_path / "seeds", released):
        look = run(
            ["train-first-look", "--seeds", str(place), "--output", str(tmp_path / "look.npz"), "--min-change", "0.01"]
        )
        assert look.returncode == 0, look.stderr


def test_perplexity_is_on_record(tmp_path: Path, server: FaultyServer, run) -> None:
    write(tmp_path / "in", 20)
    model = make_tiny_model(tmp_path / "model", "llama3.1")
    chosen = ("--select", "high-perplexity", "--perplexity-model", str(model), "--sample", "4", "--candidates", "12")
    done = run(words(tmp_path, server, *chosen))
    assert done.returncode == 0, done.stderr
    manifest = manifest_of(tmp_path / "seeds")
    values = [seed["metadata"]["selection"]["perplexity"] for seed in seeds_of(tmp_path / "seeds")]
    assert values == sorted(values, reverse=True)
    assert manifest["selection"]["perplexity"] == [min(values), max(values)]
    assert manifest["selection"]["candidates"] == 12
    assert manifest["parameters"]["selection"]["perplexity_model"] == "model"


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (["--model", ""], "--model"),
        (["--endpoint", "nowhere"], "http://host:8000/v1"),
        (["--sample", "0"], "--sample 0"),
        (["--least-tokens", "5000"], "no passage to annotate"),
        (["--tries", "0"], "--tries 0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_asked(
    tmp_path: Path, server: FaultyServer, run, others, said
) -> None:
    write(tmp_path / "in", 5)
    done = run([*words(tmp_path, server), *others])
    assert done.returncode == 2
    assert said in done.stderr
    assert not server.ledger.events


def test_options_that_servers_do_not_have_are_named(tmp_path: Path, server: FaultyServer, run) -> None:
    write(tmp_path / "in", 5)
    done = run([*words(tmp_path, server), "max_num_seqs=4"])
    assert done.returncode == 2
    assert "max_num_seqs" in done.stderr


def test_a_server_that_is_gone_ends_the_run_and_keeps_what_there_is(tmp_path: Path, server: FaultyServer, run) -> None:
    write(tmp_path / "in")
    server.die()
    done = run([*words(tmp_path, server), "give_up_seconds=0.5", "connect_seconds=0.5"])
    assert done.returncode == 2
    assert "0 of 30 passages are answered" in done.stderr
    server.revive()
    assert run(words(tmp_path, server)).returncode == 0
    assert len(seeds_of(tmp_path / "seeds")) == 30


@pytest.fixture
def server():
    with FaultyServer() as one:
        yield one
