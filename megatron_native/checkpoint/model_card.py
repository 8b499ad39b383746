"""What an exported folder says of itself: the model card `README.md`, `lineage.json`, `verification.json`.

Everything comes from the checkpoint's `run/` folder: the base model as recorded at import, what training did, the tokens that
were added. What is in none of these files reads "not recorded"; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.vocabulary import VOCABULARY_FILE, carried_record
from megatron_native.errors import UserError
from megatron_native.manifest import write_json

CARD = "README.md"
LINEAGE = "lineage.json"
VERIFICATION = "verification.json"
BASE_FORMAT = "megatron-native/base-model/1"
UNKNOWN = "not recorded"
_GENERATION_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ARABIC = """\
<div dir="rtl" lang="ar">

هذا نموذج لغوي أُعِدَّت ملفاته بأداة megatron-native، وهي أداة لمواصلة تدريب النماذج اللغوية الكبيرة على النصوص العربية. {origin}
وقد يخطئ النموذج في الوقائع وفي اللغة، وقد تظهر في إجاباته تحيزات مصدرها نصوص التدريب؛ لذا ينبغي التحقق مما يولّده قبل الاعتماد
عليه. وما لم يُسجَّل من المعلومات أدناه كُتب مكانه «not recorded»، أي «غير مسجَّل».

</div>"""
_ARABIC_BASE = "وهو النموذج الأصلي «{base}» كما استُورد، من غير تدريب إضافي."
_ARABIC_TRAINED = "وأصله النموذج «{base}»، وعدد خطوات تدريبه هنا {steps}."
_ARABIC_FROM_NOTHING = "وعدد خطوات تدريبه هنا {steps}، ولم يُسجَّل النموذج الأصلي الذي بدأ منه التدريب."
_ARABIC_ORIGIN = "وأصله النموذج «{base}»."
_ARABIC_NO_BASE = "ولم يُسجَّل النموذج الأصلي."
_ARABIC_AVERAGED = "وأوزانه متوسط أوزان عدة نقاط حفظ."
_ARABIC_ADOPTED = "وقد سبق تدريبه بأداة Megatron-LM."
_ARABIC_UNKNOWN = "ولم يُسجَّل أصله ولا تاريخ تدريبه."


def base_model_record(hf_folder: Path) -> dict[str, Any]:
    """What a Hugging Face folder says of its own origin: name, licence and languages, each None where it doesn't.

    The licence and the languages are those of its model card's front matter; the name is the card's, config.json's
    `_name_or_path`, or the folder's.
    """
    config = layout.read_json(hf_folder / "config.json") or {}
    vocabulary = carried_record(hf_folder) or {}
    front = _front_matter(hf_folder / CARD)
    stated = config.get("_name_or_path")
    named = stated if isinstance(stated, str) and stated and not Path(stated).is_absolute() else None
    languages = front.get("language")
    return {
        "format": BASE_FORMAT,
        "name": named or vocabulary.get("base_folder") or hf_folder.name,
        "licence": _words(front.get("license_name")) or _words(front.get("license")),
        "licence_link": _words(front.get("license_link")),
        "languages": [str(one) for one in languages] if isinstance(languages, list) else _listed(languages),
        "before": _listed(front.get("base_model")),
    }


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is none or it can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
        head = text.removeprefix("---\n").split("\n---", 1)[0] if text.startswith("---\n") else ""
        found = yaml.safe_load(head)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _words(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def describe_export(checkpoint: Path, folder: Path, verify: bool = False) -> None:
    """Write into an exported `folder`, otherwise whole, what it says of itself.

    With `verify` the folder is compared with the checkpoint first, and its logits with those recorded at import.

    Raises:
        UserError: the comparison found a difference.
    """
    if not (folder / layout.GENERATION_CONFIG).exists():
        config = layout.read_json(folder / "config.json") or {}
        found = {name: config[name] for name in _GENERATION_FIELDS if config.get(name) is not None}
        write_json(folder / layout.GENERATION_CONFIG, {"_from_model_config": True, **found})
    what_to_do = "nothing was left at the output. Check the disk, and export again: every file will be written anew."
    (folder / VERIFICATION).unlink(missing_ok=True)  # of a run that was broken off
    verification = verify_export(checkpoint, folder, what_to_do) if verify else None
    write_json(folder / LINEAGE, _lineage(checkpoint))
    write_card(checkpoint, folder, verification)


def verify_export(checkpoint: Path, folder: Path, what_to_do: str) -> dict[str, Any]:
    """Compare an exported `folder` with its checkpoint; the report, which is then in `verification.json`.

    Raises:
        UserError: they differ; `what_to_do` ends the message.
    """
    from megatron_native.checkpoint.verify_hf import verify_hf

    result = verify_hf(checkpoint, folder)
    result.checkpoint, result.folder = checkpoint.name, "."
    report = result.as_dict()
    if not result.passed:
        tensors = [*result.missing, *result.unexpected, *result.shapes, *result.different]
        found = ", ".join(tensors[:3]) or "its settings or logits"
        raise UserError(f"the export of {checkpoint} differs from it in {found}; {what_to_do}")
    write_json(folder / VERIFICATION, report)
    return report


def write_card(checkpoint: Path, folder: Path, verification: Mapping[str, Any] | None) -> None:
    """Write the model card of an export; `verification` is the report of `verify_export`, if there was one."""
    config = layout.read_json(folder / "config.json") or {}
    template = (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists()
    (folder / CARD).write_text(model_card(_lineage(checkpoint), config, verification, template), encoding="utf-8")


def _lineage(checkpoint: Path) -> dict[str, Any]:
    return {
        "base": layout.read_json(checkpoint / layout.BASE_MODEL_FILE),
        "vocabulary": _vocabulary_summary(checkpoint),
        **(layout.read_json(checkpoint / layout.LINEAGE_FILE) or {"runs": []}),
    }


def _vocabulary_summary(checkpoint: Path) -> dict[str, Any] | None:
    record = layout.read_json(checkpoint / VOCABULARY_FILE)
    if record is None:
        return None
    parts = sum(token["part"] for token in record["tokens"])
    kept = {
        name: record[name] for name in ("old_vocab_size", "vocab_size", "first_id", "noise", "noise_seed", "fertility")
    }
    return {**kept, "new_tokens": len(record["tokens"]) - parts, "parts": parts}


def model_card(
    lineage: Mapping[str, Any], config: Mapping[str, Any], verification: Mapping[str, Any] | None, chat_template: bool
) -> str:
    """The model card: front matter as the Hugging Face Hub reads it, then sections in English and a paragraph in Arabic.

    Args:
        lineage: what `lineage.json` holds.
        config: the exported config.json.
        verification: the report of `verify-hf`, or None where there was none.
        chat_template: whether the tokenizer has one.
    """
    base, runs, made = lineage["base"] or {}, lineage["runs"], lineage.get("made", [])
    sections = [
        _front(base),
        "# Model card",
        _ARABIC.format(origin=_arabic_origin(base, runs, made)),
        _summary(base, config, runs),
    ]
    if lineage["vocabulary"]:
        sections.append(_vocabulary(lineage["vocabulary"]))
    if not runs:
        said = "None recorded" + ("." if made else ": the weights are those that were imported.")
        sections.append(f"## Training\n\n{said}")
    sections += [*map(_run, runs), *map(_made, made)]
    sections += [_checked(verification), _use(chat_template)]
    return "\n\n".join(sections) + "\n"


def _front(base: Mapping[str, Any]) -> str:
    fields: dict[str, Any] = {"language": list(dict.fromkeys(["ar", *base.get("languages", [])]))}
    if base.get("licence"):
        fields["license"] = base["licence"]
    if base.get("licence_link"):
        fields["license_link"] = base["licence_link"]
    if base.get("name"):
        fields["base_model"] = base["name"]
    fields |= {"pipeline_tag": "text-generation", "library_name": "transformers", "tags": ["arabic", "megatron-native"]}
    return f"---\n{yaml.safe_dump(fields, allow_unicode=True, sort_keys=False)}---"


def _arabic_origin(
    base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]
) -> str:
    steps = runs[-1]["steps"] if runs else 0
    if base.get("name"):
        said = _ARABIC_TRAINED if steps else _ARABIC_ORIGIN if made else _ARABIC_BASE
    else:
        said = _ARABIC_FROM_NOTHING if steps else _ARABIC_NO_BASE if made else _ARABIC_UNKNOWN
    sentences = {_ARABIC_AVERAGED if one["by"] == "average" else _ARABIC_ADOPTED: None for one in made}
    return " ".join([said.format(base=base.get("name"), steps=steps), *sentences])


def _made(made: Mapping[str, Any]) -> str:
    if made["by"] == "average":
        rows = [(one["checkpoint"], one.get("step"), f"{one['share']:.4f}", one["averaged"]) for one in made["of"]]
        return f"## Average ({made['method']})\n\n" + _table(("checkpoint", "step", "share", "averaged"), rows)
    figures = [
        ("iteration of Megatron-LM", made["iteration"]), ("samples", made.get("samples")), ("tokens", made.get("tokens")),
        ("optimizer", "left behind" if made["weights_only"] else "came along"),
    ]  # fmt: skip
    return "## Adopted from Megatron-LM\n\n" + _table(("", ""), figures)


def _summary(base: Mapping[str, Any], config: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    last = runs[-1] if runs else {}
    rows = [
        ("base model", base.get("name")), ("licence of the base model", base.get("licence")),
        ("architecture", ", ".join(config.get("architectures") or []) or config.get("model_type")),
        ("layers, hidden size, vocabulary",
         ", ".join(str(config.get(name, UNKNOWN)) for name in ("num_hidden_layers", "hidden_size", "vocab_size"))),
        ("dtype of the weights", config.get("dtype")), ("steps trained here", last.get("steps", 0)),
        ("tokens consumed here", f"{last['consumed_tokens']:,}" if runs else 0),
    ]  # fmt: skip
    return "## Summary\n\n" + _table(("", ""), rows)


def _vocabulary(found: Mapping[str, Any]) -> str:
    fertility = found["fertility"]
    rows = [
        ("vocabulary before", found["old_vocab_size"]), ("vocabulary", found["vocab_size"]),
        ("new tokens", found["new_tokens"]), ("parts that they are joined from", found["parts"]),
        ("rows began as", "the mean of the old sub-tokens' rows" + (f", noise {found['noise']}" if found["noise"] else "")),
        ("tokens a word, before", f"{fertility['tokens_a_word_before']:.3f}" if fertility else None),
        ("tokens a word", f"{fertility['tokens_a_word_after']:.3f}" if fertility else None),
    ]  # fmt: skip
    return "## New tokens\n\n" + _table(("", ""), rows)


def _run(run: Mapping[str, Any]) -> str:
    software = ", ".join(f"{name} {version}" for name, version in run["software"].items())
    commit = f"{run['commit']}{' with local changes' if run['modified'] else ''}" if run["commit"] else None
    rows = [
        ("began from", run["began_from"]), ("last step", run["steps"]), ("tokens consumed", f"{run['consumed_tokens']:,}"),
        ("seed", run["seed"]), ("samples passed over", run["passed_over"]), ("steps without an update", run["not_learned"]),
        ("commit of megatron-native", commit), ("software", software), ("saved", run["saved"]),
    ]  # fmt: skip
    parts = [f"## Training: {run['name']}", _table(("", ""), rows), "Phases:"]
    header = (
        "phase",
        "from step",
        "planned tokens",
        "sequence length",
        "batch",
        "peak learning rate",
        "trained",
        "blend",
    )
    phases = []
    for phase in run["phases"]:
        blend = ", ".join(f"{name} {weight:g}" for name, weight in phase["weights"].items())
        phases.append(
            (phase["name"], phase["first_step"], f"{phase['planned_tokens']:,}", phase["seq_length"],
             phase["global_batch_size"], f"{phase['lr']:g}", phase["trainable"], blend)
        )  # fmt: skip
    data = [
        (
            name,
            f"{one['documents']:,}",
            f"{one['tokens']:,}",
            f"`{one['digest'][:16]}`",
            _manifests(one),
            _licences(one),
        )
        for name, one in run["datasets"].items()
    ]
    data_header = ("dataset", "documents", "tokens", "xxh3_128 of the index", "manifests (stage, xxh3_128)", "licence")
    parts += [_table(header, phases), "Data (hashes in full are in `lineage.json`):", _table(data_header, data)]
    evaluation = run["evaluation"]
    if evaluation:
        figures = [(name, f"{bits:.4f}") for name, bits in evaluation["sets"].items()]
        parts += [f"Held-out sets after step {evaluation['step']}:", _table(("set", "bits per byte"), figures)]
    else:
        parts.append(f"Evaluation: {UNKNOWN}.")
    return "\n\n".join(parts)


def _manifests(dataset: Mapping[str, Any]) -> str:
    return ", ".join(f"{one.get('stage')} `{one['xxh3_128'][:16]}`" for one in dataset["manifests"])


def _licences(dataset: Mapping[str, Any]) -> str:
    found: dict[str, None] = {}
    for manifest in dataset["manifests"]:
        for name in ("licence", "licences"):
            value = manifest.get(name)
            found |= dict.fromkeys(map(str, value if isinstance(value, list | dict) else [value] if value else []))
    return ", ".join(found)


def _checked(verification: Mapping[str, Any] | None) -> str:
    if verification is None:
        return f"## Verification\n\n{UNKNOWN.capitalize()}: the folder was not compared with its checkpoint when it was made."
    changes = ", ".join(f"{count} × {change}" for change, count in verification["converted"].items())
    converted = f", converted ({changes})" if changes else ""
    lines = [f"All {verification['tensors']} tensors have the checkpoint's bits{converted} ({VERIFICATION})."]
    if (logits := verification["logits"]) is not None:
        lines.append(
            f"Logits under transformers against those recorded at import: largest |Δ| {logits['max_abs_difference']:.3g}, "
            f"same best token at {logits['top1_agreement']:.2%} of {logits['positions']} positions."
        )
    if verification["logits_note"]:
        lines.append(f"Logits: {verification['logits_note']}.")
    return "## Verification\n\n" + " ".join(lines)


def _use(chat_template: bool) -> str:
    said = "The tokenizer has a chat template." if chat_template else "The tokenizer has no chat template."
    return f"""## Use

{said}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
ids = tokenizer("تقع المكتبة في", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))
```"""


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        shown = (UNKNOWN if cell in (None, "") else str(cell) for cell in cells)
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in shown) + " |"

    head = "| " + " | ".join(header) + " |"
    return "\n".join([head, "|" + "---|" * len(header), *(line(row) for row in rows)])
