"""Logits of the model as `transformers` computes them, on fixed Arabic and English texts, recorded at import.

They travel with the checkpoint, so that any later moment (the first batch of a run, an export) can be compared with
the model that was imported, without its folder. The file is safetensors; for each text NAME of n tokens:

    NAME.ids         int64   [n]        the input
    NAME.positions   int64   [p]        the last few positions, p ≤ 8
    NAME.logits      float32 [p, vocab] every logit there
    NAME.top_ids     int64   [n, 32]    the best tokens at every position, best first
    NAME.top_logits  float32 [n, 32]
    NAME.logsumexp   float32 [n]        over the vocabulary, so top_logits - logsumexp are log-probabilities

and in its metadata `format`, `texts` (names, in order), `input` ("tokenizer", or "random ids" for a model without
one) and the version of transformers. The model runs in FP32 on the CPU.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_native.checkpoint.layout import in_one_line
from megatron_native.errors import UserError

FORMAT = "megatron-native/reference-logits/1"
FULL_POSITIONS = 8
TOP = 32
MAX_TOKENS = 256
RANDOM_IDS_SEED = 20240601

TEXTS = {
    "ar-prose": (
        "تقع المدينة القديمة على ضفة النهر، وتحيط بها أسوار من الحجر بناها أهلها قبل قرون طويلة. وفي كل صباح يفتح التجار "
        "دكاكينهم في السوق الكبير، فتمتلئ الأزقة برائحة القهوة والخبز الساخن، ويتبادل الناس أخبار اليوم قبل أن يمضوا إلى "
        "أعمالهم."
    ),
    "ar-science": (
        "تدور الأرض حول الشمس في مدار بيضوي يستغرق إتمامه 365 يومًا وربع اليوم تقريبًا، ويميل محورها بنحو 23.5 درجة، وهذا "
        "الميل هو سبب تعاقب الفصول الأربعة، لا القرب من الشمس أو البعد عنها."
    ),
    "en-prose": (
        "The library opened at nine, but the old man was always there before the doors were unlocked, standing under the "
        "elm with a newspaper folded beneath his arm. Nobody remembered when he had first come, and he never said what he "
        "was looking for among the shelves."
    ),
    "mixed-code": (
        "def mean(values):\n    return sum(values) / len(values)\n\n# المتوسط الحسابي هو مجموع القيم مقسومًا على عددها.\n"
        "print(mean([3, 5, 7]))  # 5.0\n"
    ),
}
"""Written for this purpose. Changing one changes what old checkpoints can be compared with: add, don't edit."""


@dataclass(frozen=True)
class ReferenceText:
    """One text's recorded logits; shapes as in the module's description."""

    name: str
    ids: Tensor
    positions: Tensor
    logits: Tensor
    top_ids: Tensor
    top_logits: Tensor
    logsumexp: Tensor


@dataclass(frozen=True)
class LogitComparison:
    """How far a model's logits are from recorded ones, over one or more texts."""

    max_abs_difference: float
    """Largest |Δ| over the full rows of the last positions and the recorded best tokens of all; inf for a NaN."""
    mean_kl: float
    """Mean over the last positions of KL(recorded ‖ new), in nats."""
    top1_agreement: float
    """Share of positions whose best token is the recorded one."""
    positions: int


def record_reference_logits(
    hf_folder: Path, tokenizer_folder: Path | None, output: Path, vocab_size: int, max_position_embeddings: int
) -> None:
    """Run `hf_folder` in FP32 on the CPU over the fixed texts and write their logits to `output`.

    Without a tokenizer (None) fixed pseudo-random ids stand for the texts. Raises `UserError` when the model or the
    tokenizer does not load, when a token lies outside the vocabulary, or when memory would not suffice.
    """
    import transformers

    limit = min(MAX_TOKENS, max_position_embeddings)
    inputs = _inputs(tokenizer_folder, vocab_size, limit)
    tensors: dict[str, Tensor] = {}
    for name, logits in run_transformers(hf_folder, inputs).items():
        if not torch.isfinite(logits).all():
            raise UserError(f"{hf_folder} gives logits that are not finite on '{name}'; its weights are damaged.")
        tensors |= {f"{name}.{part}": value for part, value in _compact(inputs[name], logits).items()}
    metadata = {
        "format": FORMAT,
        "texts": json.dumps(list(inputs)),
        "input": "random ids" if tokenizer_folder is None else "tokenizer",
        "transformers": transformers.__version__,
    }
    save_file(tensors, output, metadata)


def run_transformers(hf_folder: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits [n, vocab] in FP32 for each input of ids [n], by `transformers` on the CPU."""
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    _check_memory(hf_folder)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            hf_folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(
            f"transformers {transformers.__version__} can't load {hf_folder}: {in_one_line(error)}. Logits can't be computed; "
            "--no-reference-logits goes on without them."
        ) from error
    model.eval()
    with torch.inference_mode():
        return {name: model(input_ids=ids[None], use_cache=False).logits[0].float() for name, ids in inputs.items()}


def load_reference_logits(path: Path) -> list[ReferenceText]:
    """The recorded texts of a checkpoint; `UserError` when the file is damaged or of another format."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is not a {FORMAT} file; import the model again to record its logits.")
            parts = [field for field in ReferenceText.__dataclass_fields__ if field != "name"]
            return [
                ReferenceText(name, **{part: file.get_tensor(f"{name}.{part}") for part in parts})
                for name in json.loads(metadata["texts"])
            ]
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable reference file ({in_one_line(error)}); import the model again.") from error


def compare_logits(references: list[ReferenceText], logits: dict[str, Tensor]) -> LogitComparison:
    """Compare new logits, [n, vocab] by text name, with the recorded ones; columns beyond the vocabulary are ignored."""
    largest, divergence, agreed, positions, full = 0.0, 0.0, 0, 0, 0
    for text in references:
        new = logits[text.name].float()[:, : text.logits.shape[1]]
        rows = new[text.positions]
        difference = torch.stack([
            (rows - text.logits).abs().max(),
            (new.gather(1, text.top_ids) - text.top_logits).abs().max(),
        ]).max()
        largest = max(largest, difference.item()) if torch.isfinite(difference) else math.inf
        expected = text.logits.double().log_softmax(-1)
        divergence += (expected.exp() * (expected - rows.double().log_softmax(-1))).sum().item()
        agreed += int((new.argmax(-1) == text.top_ids[:, 0]).sum())
        positions += len(text.ids)
        full += len(text.positions)
    mean_kl = max(divergence / full, 0.0) if math.isfinite(divergence) else math.inf
    return LogitComparison(largest, mean_kl, agreed / positions, positions)


def _compact(ids: Tensor, logits: Tensor) -> dict[str, Tensor]:
    positions = torch.arange(max(0, len(ids) - FULL_POSITIONS), len(ids))
    top = logits.topk(min(TOP, logits.shape[1]), dim=-1)
    return {
        "ids": ids.contiguous(),
        "positions": positions,
        "logits": logits[positions].contiguous(),
        "top_ids": top.indices.contiguous(),
        "top_logits": top.values.contiguous(),
        "logsumexp": logits.logsumexp(-1),
    }


def _inputs(tokenizer_folder: Path | None, vocab_size: int, limit: int) -> dict[str, Tensor]:
    if tokenizer_folder is None:
        generator = torch.Generator().manual_seed(RANDOM_IDS_SEED)
        return {
            f"random-{number}": torch.randint(vocab_size, (min(96, limit),), generator=generator) for number in range(2)
        }
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            tokenizer_folder, local_files_only=True, trust_remote_code=False
        )
        inputs = {name: torch.tensor(tokenizer(text)["input_ids"][:limit]) for name, text in TEXTS.items()}
    except Exception as error:  # tokenizers raise plain Exception for a damaged file
        raise UserError(
            f"the tokenizer beside the weights does not load ({type(error).__name__}: {in_one_line(error)}); "
            "repair its files, or import with --no-reference-logits."
        ) from error
    highest = max(int(ids.max()) for ids in inputs.values())
    if highest >= vocab_size:
        raise UserError(
            f"the tokenizer gives the id {highest}, but the model has only {vocab_size} tokens: they don't belong together."
        )
    return inputs


def _check_memory(hf_folder: Path) -> None:
    from megatron_native.checkpoint.safetensors_files import HfWeights

    values = sum(spec.bytes // max(1, _width(spec.dtype)) for spec in HfWeights(hf_folder).specs.values())
    needed = int(values * 4 * 1.1)
    available = available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"running {hf_folder} in FP32 needs about {needed / 1e9:.1f} GB of memory, but {available / 1e9:.1f} GB are "
            "free; use a larger machine, or --no-reference-logits to go on without recorded logits."
        )


def _width(dtype: str) -> int:
    from megatron_native.checkpoint.safetensors_files import DTYPES

    return DTYPES[dtype].itemsize


def available_memory() -> int | None:
    """Bytes that a new process could use without swapping, from /proc/meminfo; None where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
