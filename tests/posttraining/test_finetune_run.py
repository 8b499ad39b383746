"""How long a fine-tuning is, how large its batch, and whose settings win."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_native.config.model import ModelConfig
from megatron_native.data.indexed import IndexedWriter
from megatron_native.errors import UserError
from megatron_native.models.families import read_hf_config, to_model_config
from megatron_native.posttraining.finetune_run import PreparedData, check_run, finetune_run
from megatron_native.posttraining.finetune_settings import DataSource, FinetuneSettings
from tests.tiny_models import make_tiny_model

SETTINGS = FinetuneSettings(Path("base"), Path("out"), (DataSource("chats.jsonl"),))
BASE, HELD = Path("base"), Path("held")


def dataset(folder: Path, name: str, conversations: int, length: int, weight: float = 1.0) -> PreparedData:
    with IndexedWriter(folder / name, np.uint16) as writer:
        for _ in range(conversations):
            writer.add_document(np.arange(length, dtype=np.uint16))
    tokens = conversations * length
    return PreparedData(name, folder / name, weight, conversations, tokens, tokens // 4)


def test_steps_are_sequences_times_epochs_by_batch(tmp_path: Path) -> None:
    # four conversations of 30 fill a sequence of 128, so 8,000 are 2,000 sequences, and 128 of them 32 sequences
    run, plan = finetune_run(SETTINGS, BASE, [dataset(tmp_path, "a", 8000, 30)], HELD, 128)
    assert (plan.sequences, plan.batch, plan.conversations) == (2000, 32, 8000)
    assert plan.steps == 188, "3 × 2,000 / 32 = 187.5"
    assert plan.epochs == pytest.approx(188 * 32 / 2000)
    assert plan.fill == pytest.approx(120 / 128)
    assert plan.evaluation_interval == 16, "2,000 / 32 = 62.5 steps an epoch, four evaluations in each"
    assert (run.optimizer.lr, run.optimizer.min_lr, run.optimizer.schedule) == (1e-5, pytest.approx(1e-6), "cosine")
    assert run.optimizer.warmup_steps == 6, "three percent of 188"
    assert run.training.precision == "bf16"
    rule = run.evaluation.early_stop
    assert rule is not None and (rule.set, rule.patience) == ("conversations", 4)
    assert (run.checkpointing.save_interval, run.checkpointing.keep_last) == (16, 1)


def test_few_conversations_are_not_learned_in_two_large_steps(tmp_path: Path) -> None:
    run, plan = finetune_run(SETTINGS, BASE, [dataset(tmp_path, "a", 100, 120)], HELD, 128)
    assert (plan.sequences, plan.batch, plan.steps) == (100, 12, 25)
    _, tiny = finetune_run(SETTINGS, BASE, [dataset(tmp_path, "b", 3, 120)], None, 128)
    assert (tiny.batch, tiny.steps, tiny.evaluation_interval) == (1, 9, 0)
    assert run.evaluation.heldout and tiny.epochs == 3


def test_weights_say_how_often_a_conversation_is_seen(tmp_path: Path) -> None:
    data = [dataset(tmp_path, "a", 100, 120), dataset(tmp_path, "b", 50, 120, weight=3.0)]
    run, plan = finetune_run(replace(SETTINGS, epochs=2.0), BASE, data, HELD, 128)
    assert (plan.conversations, plan.sequences) == (250, 250)
    assert [entry.weight for entry in run.data.blend] == [100, 150], "of the sequences that are drawn"
    assert plan.steps == -(-2 * 250 // plan.batch)


@pytest.mark.parametrize(("processes", "overrides", "multiple"), [
    (4, (), 4),
    (4, ("parallel.tensor_model_parallel_size=2",), 2),
    (2, ("training.micro_batch_size=8",), 16),
    (2, ("parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"), 2),
])  # fmt: skip
def test_a_batch_divides_over_the_layout(
    tmp_path: Path, processes: int, overrides: tuple[str, ...], multiple: int
) -> None:
    settings = replace(SETTINGS, processes=processes, overrides=overrides, conversations_per_step=9)
    _, plan = finetune_run(settings, BASE, [dataset(tmp_path, "a", 1000, 120)], HELD, 128)
    assert plan.batch == -(-9 // multiple) * multiple


def test_a_plan_that_is_gone_on_with_is_the_same_in_another_layout(tmp_path: Path) -> None:
    data = [dataset(tmp_path, "a", 1000, 120)]
    settings = replace(SETTINGS, processes=8, conversations_per_step=9)
    run, plan = finetune_run(settings, BASE, data, HELD, 128)
    assert (plan.batch, plan.batch_multiple) == (16, 8)
    fewer = replace(settings, processes=4)
    assert finetune_run(fewer, BASE, data, HELD, 128)[1].batch == 12
    assert finetune_run(fewer, BASE, data, HELD, 128, plan.batch_multiple) == (run, plan)
    longer = finetune_run(replace(fewer, epochs=6.0), BASE, data, HELD, 128, plan.batch_multiple)[1]
    assert (longer.batch, longer.steps) == (16, 375), "6 × 1,000 / 16: what is asked for still counts"


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    data = [dataset(tmp_path, "a", 1000, 120)]
    settings = replace(
        SETTINGS, config={"optimizer": {"lr": 2e-5, "schedule": "linear"}, "training": {"global_batch_size": 10}},
        overrides=("training.steps=40", "data.seq_length=256", "data.packing=single", "evaluation.early_stop.patience=2"),
    )  # fmt: skip
    run, plan = finetune_run(settings, BASE, data, HELD, 128)
    assert (run.optimizer.lr, run.optimizer.schedule) == (2e-5, "linear")
    assert run.optimizer.min_lr == pytest.approx(2e-6), "a tenth of the rate that was asked for"
    assert (plan.steps, plan.batch, plan.seq_length, plan.sequences) == (40, 10, 256, 1000)
    assert plan.epochs == pytest.approx(0.4)
    assert run.evaluation.early_stop is not None and run.evaluation.early_stop.patience == 2
    never = finetune_run(replace(SETTINGS, patience=0), BASE, data, HELD, 128)[0].evaluation.early_stop
    assert never is not None and never.patience is None, "the best is kept, the run goes to its end"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = make_tiny_model(tmp_path_factory.mktemp("model"), "tied-llama", tokenizer=False)
    return to_model_config(read_hf_config(folder))


@pytest.mark.parametrize(("overrides", "said"), [
    (("optimizer.lrr=1",), "did you mean 'lr'?"),
    (("training.precision=fp7",), "training.precision = 'fp7'"),
    (("parallel.tensor_model_parallel_size=2",), "--nproc 2"),
    (("data.seq_length=1024",), "max_position_embeddings 512"),
    (("preset=nonsense",), "there is no such preset"),
    (("phases=[{name: a, steps: 3}]",), "a fine-tuning has no phases"),
])  # fmt: skip
def test_a_wrong_run_is_refused_before_any_work(model: ModelConfig, overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as error:
        check_run(replace(SETTINGS, overrides=overrides), model, 128)
    assert said in str(error.value)
    check_run(SETTINGS, model, 128)
