"""Job scripts as text: what is committed is what is made, shellcheck finds nothing, and a real sbatch takes them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from megatron_native.cli import main
from megatron_native.slurm.cluster import load_cluster
from tests.conftest import Done
from tests.distributed import REPOSITORY
from tests.slurm.conftest import write_run
from tests.slurm.one_machine import Slurm

EXAMPLES = {"llama3_70b": "Meta-Llama-3-70B", "llama3_8b": "Meta-Llama-3-8B", "qwen1.5_32b": "Qwen1.5-32B"}
SITES = {"container": "cluster.yaml", "bare_metal": "cluster-bare-metal.yaml"}
COMMITTED = sorted(REPOSITORY.glob("examples/*/slurm/*/*.sbatch"))
APPTAINER = {
    "gpus_per_node": 4,
    "container": {"kind": "apptainer", "image": "$HOME/my image.sif", "mounts": ["/a", "/b:/c"]},
}


def shellcheck(files: list[Path]) -> str:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed here")
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("example", EXAMPLES)
def test_the_scripts_of_examples_are_what_launch_writes(
    example: str, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = ["launch", "--slurm", f"examples/{SITES[site]}", "--config", f"examples/{example}/run.yaml", "--nodes", "8"]
    words += ["--what", "all", "--hf", f"models/{EXAMPLES[example]}", "--write"]
    assert main([*words, str(tmp_path)]) == 0
    committed = REPOSITORY / "examples" / example / "slurm" / site
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        path.name: path.read_text() for path in committed.iterdir()
    }, f"megatron-native {' '.join(words)} {committed.relative_to(REPOSITORY)}"


def test_shellcheck_finds_nothing_in_the_examples() -> None:
    assert len(COMMITTED) == 18
    assert shellcheck(COMMITTED) == ""


def test_a_real_sbatch_takes_every_example(slurm: Slurm) -> None:
    for script in COMMITTED:
        done = subprocess.run(
            ["sbatch", "--test-only", script], env=slurm.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        wanted = 8 if script.name == "pretrain.sbatch" else 1
        assert f"using {wanted * 96 if script.name == 'pretrain.sbatch' else 32} processors" in done.stderr, done.stderr


def written(tmp_path: Path, site: dict[str, object], *words: str) -> list[Path]:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    assert main(["launch", "--slurm", str(tmp_path / "site.yaml"), "--write", str(tmp_path / "scripts"), *words]) == 0
    return sorted((tmp_path / "scripts").iterdir())


@pytest.mark.parametrize("requeue", [True, False])
def test_arrays_of_corpus_and_rewriting(slurm: Slurm, tmp_path: Path, requeue: bool) -> None:
    site = {**APPTAINER, "requeue": requeue, "partition": "gpu"}
    recipe = str(REPOSITORY / "examples" / "quickstart" / "recipe.yaml")
    written(tmp_path, site, "--what", "corpus", "--recipe", recipe, "--tasks", "4")
    files = written(
        tmp_path, site, "--what", "rewrite", "--input", "in", "--output", "it's out", "--worker", "w", "--tasks", "3"
    )
    assert [file.name for file in files] == ["corpus.sbatch", "rewrite.sbatch"]
    assert shellcheck(files) == ""
    for file in files:
        slurm.run("sbatch", "--test-only", str(file))


OTHER_SITES: list[dict[str, object]] = [
    {**APPTAINER, "gpu_option": "gres", "cpus_per_task": 8, "environment": {"CACHE": '$HOME/a "b" `c`'}},
    {
        "health": {"enabled": False},
        "bare_metal": {"venv": "/a b/venv", "modules": ["cuda/12"], "setup": ["ulimit -c 0"]},
    },
    {
        "requeue": False,
        "chain_jobs": 4,
        "container": {"kind": "pyxis", "image": "a/b:c", "options": ["--container-writable"]},
    },
]


@pytest.mark.parametrize("site", [{**site, "partition": "gpu"} for site in OTHER_SITES])
def test_scripts_of_other_sites(slurm: Slurm, tmp_path: Path, site: dict[str, object]) -> None:
    training = {"steps": 9, "global_batch_size": 128}
    run = write_run(tmp_path, platform="cuda", run_dir=str(tmp_path / "it's a run"), training=training)
    files = written(tmp_path, site, "--config", str(run.config), "--nodes", "4", "optimizer.lr=2e-4")
    assert shellcheck(files) == ""
    slurm.run("sbatch", "--test-only", str(files[0]))


def test_the_dry_run_prints_what_would_be_submitted_and_leaves_nothing(
    tmp_path: Path, run: Callable[[list[str]], Done]
) -> None:
    tiny = write_run(tmp_path, {"chain_jobs": 2})
    words = ["launch", "--slurm", str(tiny.cluster), "--config", str(tiny.config), "--nodes", "2", "--what", "all"]
    shown = run([*words, "--hf", "hf", "--dry-run", "model.hf_config=null", f"model.checkpoint={tmp_path}/imported"])
    assert shown.returncode == 0, shown.stderr
    assert not tiny.run_dir.exists()
    scripts, commands = shown.stdout.split("==> commands <==\n")
    folder = tiny.run_dir / "slurm"
    assert commands.splitlines() == [
        f"mkdir -p {tiny.run_dir}/logs/slurm",
        f"sbatch --parsable {folder}/import.sbatch",
        *[
            f"sbatch --parsable --dependency=afterok:<import>,singleton --kill-on-invalid-dep=yes {folder}/pretrain.sbatch"
        ]
        * 2,
        f"sbatch --parsable --dependency=afterok:<pretrain> --kill-on-invalid-dep=yes {folder}/export.sbatch",
    ]
    main(
        [
            *words,
            "--hf",
            "hf",
            "--write",
            str(tmp_path / "written"),
            "model.hf_config=null",
            f"model.checkpoint={tmp_path}/imported",
        ]
    )
    for name in ("import", "pretrain", "export"):
        assert f"==> {folder}/{name}.sbatch <==\n{(tmp_path / 'written' / f'{name}.sbatch').read_text()}" in scripts


def refused(
    tmp_path: Path, run: Callable[[list[str]], Done], *words: str, site: dict[str, object] | None = None
) -> str:
    tiny = write_run(tmp_path, site)
    done = run(["launch", "--slurm", str(tiny.cluster), "--config", str(tiny.config), "--dry-run", *words])
    assert done.returncode == 2, done.stdout
    return done.stderr


def test_what_could_not_run_is_refused(tmp_path: Path, run: Callable[[list[str]], Done]) -> None:
    said = refused(tmp_path, run, "--nodes", "3")
    assert "global_batch_size 4 is no multiple of micro_batch_size 1 × data-parallel size 3" in said
    said = refused(tmp_path, run, "--nodes", "2", "parallel.tensor_model_parallel_size=4")
    assert "are 2, which cannot be split by tensor × pipeline × context parallelism 4 ×" in said
    said = refused(
        tmp_path, run, "parallel.pipeline_model_parallel_size=3", "training.global_batch_size=3", "--nodes", "3"
    )
    assert "layers cannot be split evenly over parallel.pipeline_model_parallel_size 3" in said
    assert "set it to 0, or platform=cuda" in refused(tmp_path, run, site={"gpus_per_node": 8})
    assert "--what import needs --hf" in refused(tmp_path, run, "--what", "all")
    assert "told to save 600 s before its end" in refused(tmp_path, run, site={"time": "10"})
    assert "--recipe FILE" in refused(tmp_path, run, "--what", "corpus")
    assert "--output, --worker" in refused(tmp_path, run, "--what", "rewrite", "--input", "a")


def test_the_example_of_a_site_has_every_key() -> None:
    text = (REPOSITORY / "examples" / "cluster.yaml").read_text()
    cluster = load_cluster(REPOSITORY / "examples" / "cluster.yaml")
    for section in (cluster, cluster.health, cluster.port, cluster.cpu_jobs, cluster.container):
        for key in type(section).model_fields:
            assert f"{key}:" in text or key == "bare_metal", key
