"""Conversions that don't get to their end: killed, out of disk, beside another. What is finished is kept; what results is
the same to the byte as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.conversion import Conversion
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.manifest import file_digest, write_json
from tests.checkpoint.another_process import another_at_work
from tests.checkpoint.test_refusals import refused
from tests.checkpoint.test_round_trip import assert_same_bits, tensors_of
from tests.tiny_models import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
FULL_DISK = """
import resource, sys
from pathlib import Path
from megatron_native.checkpoint.{module} import {module}
from megatron_native.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    {module}(Path({given!r}), Path({output!r}), workers=2, **{keywords})
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(Hugging Face folder in many shards, its checkpoint in many files)."""
    folder = tmp_path_factory.mktemp("made")
    source = make_tiny_model(folder / "hf", "llama3.1", max_shard_size="300KB", tokenizer=False)
    import_hf(source, folder / "checkpoint", reference_logits=False, max_file_bytes=60_000)
    return source, folder / "checkpoint"


def contents(folder: Path) -> dict[str, object]:
    """Every file's bytes; of manifests all but the time they were written at, which alone may differ."""
    found: dict[str, object] = {}
    for path in layout.files_of(folder):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes()
        if path.name == "manifest.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "created"}
        elif name == layout.CHECKSUMS_FILE:
            found[name] = {
                key: value for key, value in json.loads(path.read_text())["files"].items() if "manifest" not in key
            }
    return found


@pytest.mark.parametrize("direction", ["import", "export"])
def test_killed_at_ten_random_moments_the_result_is_the_same_and_finished_files_are_kept(direction, made, tmp_path):
    given = made[0] if direction == "import" else made[1]
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.killed_process", direction, str(given), str(tmp_path), "10"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 10 and found["redone"] == []
    assert found["finished"] > 0, "no kill came after a file was finished, so nothing was shown"
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert not (tmp_path / "killed" / layout.FINISHED_FOLDER).exists() and not (tmp_path / "killed.partial").exists()


@pytest.mark.parametrize("module", ["import_hf", "export_hf"])
def test_a_full_disk_is_one_paragraph_and_what_was_finished_is_used_once_there_is_room(module, made, tmp_path):
    given = made[0] if module == "import_hf" else made[1]
    keywords = (
        {"max_file_bytes": 60_000, "reference_logits": False} if module == "import_hf" else {"max_shard_bytes": 60_000}
    )
    script = FULL_DISK.format(
        module=module, limit=120_000, given=str(given), output=str(tmp_path / "out"), keywords=keywords
    )  # one tensor of the tiny model has 196,608 bytes
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stdout and "out.partial" in done.stdout and "\n\n" not in done.stdout.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    kept = {
        path.name: path.stat().st_mtime_ns
        for path in (tmp_path / "out.partial").iterdir()
        if (tmp_path / "out.partial" / layout.FINISHED_FOLDER / f"{path.name}.json").exists()
    }
    for workers in (1, 3):
        out = tmp_path / ("out" if workers == 1 else "fresh")
        if module == "import_hf":
            import_hf(given, out, workers=workers, **keywords)
        else:
            export_hf(given, out, workers=workers, **keywords)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_partial_folder_of_other_weights_or_settings_is_not_taken_up(made, tmp_path):
    source = make_tiny_model(tmp_path / "hf", "llama2", tokenizer=False)
    out = tmp_path / "out"
    import_hf(source, out, reference_logits=False, max_file_bytes=60_000)
    # As a kill just before the end would leave it, but the source has changed since.
    out.rename(layout.partial_path(out))
    records = layout.partial_path(out) / layout.FINISHED_FOLDER
    records.mkdir()
    (records / "identity.json").write_text(json.dumps({"stage": "import-hf", "sources": "others"}))
    name = "__0_0.distcp"
    (records / f"{name}.json").write_text(
        json.dumps({"bytes": (layout.partial_path(out) / name).stat().st_size, "xxh3_128": "0" * 32})
    )
    changed = {name: tensor + 1 for name, tensor in tensors_of(source).items()}
    save_file(changed, source / "model.safetensors", {"format": "pt"})
    import_hf(source, out, reference_logits=False, max_file_bytes=60_000)
    export_hf(out, tmp_path / "export")
    assert_same_bits(changed, tensors_of(tmp_path / "export"))
    layout.check_complete(out, full=True)


def test_what_an_export_finds_wrong_is_not_taken_up_by_the_next(made, tmp_path):
    out = tmp_path / "out"
    keywords = {"verify": True, "max_shard_bytes": 100_000, "workers": 1}
    export_hf(made[1], out, **keywords)
    good = contents(out)
    out.rename(layout.partial_path(out))
    shards = sorted(path.name for path in layout.partial_path(out).glob("*.safetensors"))
    parameters = {"dtype": None, "max_shard_bytes": 100_000}
    checksums = file_digest(made[1] / layout.CHECKSUMS_FILE)
    conversion = Conversion(
        out, "export-hf", {"parameters": parameters, "checkpoint": str(made[1]), "checksums": checksums}
    )
    (records := layout.partial_path(out) / layout.FINISHED_FOLDER).mkdir()
    write_json(records / "identity.json", conversion._identity)
    for name in shards:
        path = layout.partial_path(out) / name
        conversion.finish_file(name, {"bytes": path.stat().st_size, "xxh3_128": file_digest(path)})
    with open(path, "r+b") as file:  # of the last shard, after its record was written
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    refused(lambda: export_hf(made[1], out, **keywords), "differs from it in", "written anew")
    assert not out.exists()
    export_hf(made[1], out, **keywords)
    assert {name: contents(out)[name] for name in shards} == {name: good[name] for name in shards}


def test_two_conversions_to_one_output_do_not_mix(made, tmp_path):
    with another_at_work(tmp_path / "out"):
        refused(
            lambda: import_hf(made[0], tmp_path / "out", reference_logits=False), "another import-hf", "out.partial"
        )
    import_hf(made[0], tmp_path / "out", reference_logits=False)


def test_records_left_by_a_kill_after_the_rename_go_with_the_next_run(made, tmp_path):
    import_hf(made[0], tmp_path / "out", reference_logits=False)
    (tmp_path / "out" / layout.FINISHED_FOLDER).mkdir()
    layout.check_complete(tmp_path / "out", full=True)
    assert import_hf(made[0], tmp_path / "out", reference_logits=False).skipped
    assert not (tmp_path / "out" / layout.FINISHED_FOLDER).exists()


def test_the_number_of_workers_changes_no_byte(made, tmp_path):
    for workers in (1, 4):
        import_hf(made[0], tmp_path / f"c{workers}", reference_logits=False, workers=workers)
        export_hf(made[1], tmp_path / f"e{workers}", max_shard_bytes=100_000, workers=workers)
    assert contents(tmp_path / "c1") == contents(tmp_path / "c4")
    assert contents(tmp_path / "e1") == contents(tmp_path / "e4")
    refused(lambda: export_hf(made[1], tmp_path / "e0", workers=0), "at least 1")


def test_files_keep_to_the_size_asked_for(made, tmp_path):
    import_hf(made[0], tmp_path / "out", reference_logits=False, max_file_bytes=300_000)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.distcp")]
    assert len(sizes) > 3 and max(sizes) <= 300_000
    assert sum(path.stat().st_size for path in made[0].glob("*.safetensors")) <= sum(sizes)
