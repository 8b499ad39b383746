import argparse
import json
import shutil
from pathlib import Path

import pytest

from megatron_native.alignment.backends.worker import Worker
from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.passages import estimated_tokens
from megatron_native.alignment.prompts import render_rewriting
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.commands.rewrite import _settings, add_arguments, prompt_of
from megatron_native.errors import UserError
from tests.alignment.rewriting.jobs import SENTENCES, text_of
from tests.alignment.rewriting.workers import write_conduct, write_worker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_worker(tmp_path_factory.mktemp("worker"))


def whole(worker: Worker, messages: list[dict[str, str]]) -> list[int]:
    """The chat as transformers encodes it."""
    return list(worker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


@pytest.mark.parametrize("examples", [0, 2])
def test_chats_are_encoded_as_transformers_does_it(folder: Path, examples: int) -> None:
    worker, conduct = Worker(folder), load_conduct("general")
    for number in range(40):
        messages = render_rewriting(conduct, text_of(number, 1), examples=examples)
        assert worker.chat_ids(messages) == whole(worker, messages)


def test_also_where_a_passage_holds_the_tokens_of_the_template_or_the_words_of_the_prompt(folder: Path) -> None:
    worker, conduct = Worker(folder), load_conduct("general")
    ask = render_rewriting(conduct, SENTENCES[0])[-1]["content"]
    for number in range(20):
        worker.chat_ids(render_rewriting(conduct, text_of(number, 1)))
    for text in (f"{ask} <|im_end|>", "<|im_start|>system", ask, f"<|im_end|>\n{ask}", " ", ","):
        if text.strip():
            messages = render_rewriting(conduct, text)
            assert worker.chat_ids(messages) == whole(worker, messages)


def test_the_hash_is_of_names_and_contents(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "renamed"
    shutil.copytree(folder, copy)
    assert Worker(copy).hash == Worker(folder).hash
    (copy / "README.md").write_text("for people", encoding="utf-8")
    assert Worker(copy).hash == Worker(folder).hash
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}), encoding="utf-8")
    assert Worker(copy).hash != Worker(folder).hash


def test_fertility_is_tokens_for_each_of_llama_3s(folder: Path) -> None:
    worker = Worker(folder)
    text = "\n".join(principle.rule.ar for principle in load_conduct("general").by_severity())
    tokens = len(worker.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    assert worker.fertility == pytest.approx(tokens / estimated_tokens(text))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no config\.json"):
        Worker(tmp_path)


TRAINED = {
    "format": "megatron-native/worker/1", "conduct": {"name": "gulf", "hash": load_conduct("gulf").hash}, "form": "edits",
    "language": "en", "detail": "brief", "context_tokens": 0, "seeds": 10,
}  # fmt: skip


def rewrite_arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--input", "a", "--output", "b", *words])


def test_a_worker_that_was_trained_here_says_how_it_is_asked(folder: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(folder, trained)
    defaults = {"conduct": "general", "form": "full", "language": "ar", "detail": "whole", "context_tokens": 64}
    assert Worker(trained).prompt == {}
    assert prompt_of(rewrite_arguments("--worker", str(trained))) == defaults
    assert prompt_of(rewrite_arguments()) == defaults
    (trained / "worker.json").write_text(json.dumps(TRAINED))
    learned = {"conduct": "gulf", "form": "edits", "language": "en", "detail": "brief", "context_tokens": 0}
    assert Worker(trained).prompt == learned | {"conduct": TRAINED["conduct"]}
    assert prompt_of(rewrite_arguments("--worker", str(trained))) == learned
    given = rewrite_arguments("--worker", str(trained), "--conduct", "general", "--detail", "whole", "--form", "full")
    assert prompt_of(given) == defaults | {"language": "en", "context_tokens": 0}
    assert prompt_of(rewrite_arguments("--worker", str(trained), "--context-tokens", "32"))["context_tokens"] == 32
    with pytest.raises(UserError, match=r"--conduct general: the worker in .* learned the code 'gulf'"):
        prompt_of(rewrite_arguments("--worker", str(trained), "--conduct", "general"))


def settings_of(*words: str) -> RewriteSettings:
    return _settings(rewrite_arguments("--engine", "transformers", *words))[0]


def test_a_worker_that_learned_origins_as_they_are_is_shown_no_others(folder: Path, tmp_path: Path) -> None:
    trained, rules = str(shutil.copytree(folder, tmp_path / "trained")), tmp_path / "rules.yaml"
    rules.write_text("without: [tatweel]")
    for content, expected in ((TRAINED, {}), (TRAINED | {"rules": True}, {}), (TRAINED | {"rules": False}, None)):
        (tmp_path / "trained" / "worker.json").write_text(json.dumps(content))
        assert settings_of("--worker", trained).rules == expected
        assert settings_of("--worker", trained, "--rules", str(rules)).rules == {"without": ["tatweel"]}
        assert settings_of("--worker", trained, "--no-rules").rules is None
    assert settings_of("--worker", str(folder)).rules == {}


def test_a_teams_own_code_is_found_in_the_folder_of_the_worker(folder: Path, tmp_path: Path) -> None:
    trained, own = shutil.copytree(folder, tmp_path / "trained"), load_conduct(write_conduct(tmp_path / "short.yaml"))
    (trained / "short.yaml").write_text(own.as_yaml(), encoding="utf-8")
    conduct = {"name": "short", "hash": own.hash, "file": "short.yaml"}
    (trained / "worker.json").write_text(json.dumps(TRAINED | {"conduct": conduct}))
    assert prompt_of(rewrite_arguments("--worker", str(trained)))["conduct"] == str(trained / "short.yaml")
    code = settings_of("--worker", str(trained)).code
    assert (code.name, code.hash) == ("short", own.hash)
    given = rewrite_arguments("--worker", str(trained), "--conduct", str(tmp_path / "short.yaml"))
    assert prompt_of(given)["conduct"] == str(tmp_path / "short.yaml")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": "megatron-native/worker/2"}', '{"format": "megatron-native/worker/1"}']
)
def test_a_damaged_account_of_how_it_is_asked_is_named(folder: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(folder, tmp_path / "trained")
    (tmp_path / "trained" / "worker.json").write_text(content)
    with pytest.raises(UserError, match=r"worker\.json can't be read"):
        _ = Worker(tmp_path / "trained").prompt
