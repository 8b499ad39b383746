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
from collections.abc import Mapping
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

    Where memory does not suffice for the whole model it is run a layer at a time. Without a tokenizer (None) fixed
    pseudo-random ids stand for the texts. Raises `UserError` when the model or the tokenizer does not load, when a token
    lies outside the vocabulary, or when not even a layer fits in memory.
    """
    import transformers

    inputs = reference_inputs(tokenizer_folder, vocab_size, max_position_embeddings)
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


def run_transformers(
    hf_folder: Path, inputs: dict[str, Tensor], layer_by_layer: bool | None = None
) -> dict[str, Tensor]:
    """Logits [n, vocab] in FP32 for each input of ids [n], by `transformers` on the CPU.

    With `layer_by_layer` one layer is in memory at a time (`layerwise.py`); None decides by the memory that is free.
    Raises `UserError` when the model does not load, or when not even a layer fits in memory.
    """
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if layer_by_layer if layer_by_layer is not None else not fits_in_memory(hf_folder):
        from megatron_native.checkpoint.layerwise import TransformersLayers, run_layers

        return run_layers(TransformersLayers(hf_folder), inputs)
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
        raise UserError(
            f"{path} is no readable reference file ({in_one_line(error)}); import the model again."
        ) from error


def compare_logits(references: list[ReferenceText], logits: dict[str, Tensor]) -> LogitComparison:
    """Compare new logits, [n, vocab] by text name, with the recorded ones; columns beyond the vocabulary are ignored."""
    largest, divergence, agreed, positions, full = 0.0, 0.0, 0, 0, 0
    for text in references:
        new = logits[text.name].float()[:, : text.logits.shape[1]]
        rows = new[text.positions]
        difference = torch.stack(
            [
                (rows - text.logits).abs().max(),
                (new.gather(1, text.top_ids) - text.top_logits).abs().max(),
            ]
        ).max()
        largest = max(largest, difference.item()) if torch.isfinite(difference) else math.inf
        expected = text.logits.double().log_softmax(-1)
        divergence += (expected.exp() * (expected - rows.double().log_softmax(-1))).sum().item()
        agreed += int((new.argmax(-1) == text.top_ids[:, 0]).sum())
        positions += len(text.ids)
        full += len(text.positions)
    mean_kl = max(divergence / full, 0.0) if math.isfinite(divergence) else math.inf
    return LogitComparison(largest, mean_kl, agreed / positions, positions)


def compare_full_logits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> LogitComparison:
    """Compare logits [length, vocab_size] text by text, over every logit of every position."""
    largest, divergence, agreed, positions = 0.0, 0.0, 0, 0
    for name, reference in expected.items():
        new = found[name]
        difference = (new - reference).abs().max()
        largest = max(largest, difference.item()) if torch.isfinite(difference) else math.inf
        log_expected, log_new = reference.double().log_softmax(-1), new.double().log_softmax(-1)
        divergence += float((log_expected.exp() * (log_expected - log_new)).sum())
        agreed += int((new.argmax(-1) == reference.argmax(-1)).sum())
        positions += len(reference)
    mean_kl = max(divergence / positions, 0.0) if math.isfinite(divergence) else math.inf
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


def reference_inputs(tokenizer_folder: Path | None, vocab_size: int, max_position_embeddings: int) -> dict[str, Tensor]:
    """Ids [n] of the fixed texts, by their names; fixed pseudo-random ids where there is no tokenizer (None).

    Raises `UserError` when the tokenizer does not load, or gives an id outside the vocabulary.
    """
    limit = min(MAX_TOKENS, max_position_embeddings)
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


def fits_in_memory(hf_folder: Path) -> bool:
    """Whether the whole model in FP32 fits in the memory that is free; yes where that is not known."""
    from megatron_native.checkpoint.safetensors_files import HfWeights

    values = sum(spec.bytes // max(1, _width(spec.dtype)) for spec in HfWeights(hf_folder).specs.values())
    available = available_memory()
    return available is None or int(values * 4 * 1.1) <= available


def _width(dtype: str) -> int:
    from megatron_native.checkpoint.safetensors_files import DTYPES

    return DTYPES[dtype].itemsize


def available_memory() -> int | None:
    """Bytes that this process could use without swapping, or being killed by its control group; None where unknown."""
    known = [size for size in (_free_of_the_machine(), _free_of_the_control_group()) if size is not None]
    return min(known, default=None)


def _free_of_the_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _free_of_the_control_group(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """What control groups (version 2) leave of their limits: the least of this process's group and those around it."""
    try:
        path = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    free = []
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            files = next(
                int(line.split()[1]) for line in (folder / "memory.stat").read_text().splitlines()
                if line.startswith("inactive_file ")
            )  # fmt: skip
        except (OSError, ValueError, StopIteration):  # "max" is no number: no limit
            continue
        free.append(limit - used + files)
    return min(free, default=None)
