"""An exported folder in both programs that people load it with: the same greedy tokens, in FP32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.vocabulary import ExtensionSettings
from tests.real_models import smollm2
from tests.tiny_models import make_tiny_model

PROMPTS = [
    "اللغة العربية لغة جميلة",
    "ذهب الولد إلى المدرسة في الصباح",
    "The quick brown fox jumps over",
    "ما عاصمة المملكة العربية السعودية؟",
]
TOKENS = 32
HEAD = 32
"""The CPU build has no attention for the heads of 16 that the tiny models have."""
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, prompts, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    model = LLM(folder, dtype="float32", max_model_len=256, max_num_seqs=4, enforce_eager=True, kv_cache_memory_bytes=1 << 28)
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], sampling)
    print("TOKENS " + json.dumps([list(output.outputs[0].token_ids) for output in outputs]), flush=True)
"""


def exported(folder: Path, hf: Path) -> Path:
    """`hf` with new tokens, through a checkpoint, as a folder in FP32."""
    (folder / "tokens.txt").write_text(" المدرسة\n على\nلغة\n", encoding="utf-8")
    import_hf(hf, folder / "imported", reference_logits=False, add_tokens=ExtensionSettings(folder / "tokens.txt"))
    export_hf(folder / "imported", folder / "export", dtype="float32")
    return folder / "export"


def with_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens one at a time by the whole context, so that no cache or batch stands between."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    with torch.no_grad():
        for ids in prompts:
            sequence = torch.tensor([ids])
            out = model.generate(sequence, attention_mask=torch.ones_like(sequence), do_sample=False, max_new_tokens=TOKENS,
                                 min_new_tokens=TOKENS, eos_token_id=None, repetition_penalty=1.0)  # fmt: skip
            answers.append(out[0, len(ids) :].tolist())
    return answers


def with_vllm(folder: Path, prompts: list[list[int]], script: Path) -> list[list[int]]:
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), json.dumps(prompts), str(TOKENS)]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert lines, done.stderr[-3000:]
    answers: list[list[int]] = json.loads(lines[0].removeprefix("TOKENS "))
    return answers


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["llama3.1", "tied-llama", "smollm2"])
def test_transformers_and_vllm_generate_the_same_greedy_tokens(tmp_path: Path, model: str) -> None:
    hf = smollm2() if model == "smollm2" else make_tiny_model(tmp_path / "hf", model, head_dim=HEAD)
    folder = exported(tmp_path, hf)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    new = {token["id"] for token in json.loads((tmp_path / "imported/run/hf/vocabulary.json").read_text())["tokens"]}
    assert new & {index for prompt in prompts for index in prompt}, "no prompt has a new token in it"
    expected = with_transformers(folder, prompts)
    found = with_vllm(folder, prompts, tmp_path / "generate.py")
    assert [len(answer) for answer in expected] == [TOKENS] * len(PROMPTS)
    assert found == expected
