"""Metrics that other tools wrote, judged by ``viewer check`` and ``viewer.check``; files as these tools write them."""

import json
import math
from typing import Any

import pytest

import viewer
from tests.viewing import view
from tracer.log.run import LogError
from tracer.log.store import Local as Path


def state(path: Path, log: list[dict[str, Any]]) -> Path:
    """What Hugging Face's Trainer leaves in a checkpoint."""
    path.write_text(json.dumps({"epoch": 1.0, "global_step": len(log), "log_history": log}))
    return path


def kinds(path: Path) -> list[tuple[str, int, Any]]:
    """What is found, at which step, and how bad it is."""
    return [(row["kind"], row["first_step"], row["severity"]) for row in viewer.check(path).frame.iter_rows(named=True)]


def test_a_loss_that_became_nan_is_found_in_a_trainer_state(tmp_path: Path) -> None:
    """At its step; a line without a loss, and a last one of totals, are no mistake."""
    log = [{"loss": 3 / (1 + step), "grad_norm": 2.0, "epoch": step / 50, "step": 10 * step} for step in range(50)]
    log[20] = {"eval_loss": 2.0, "eval_runtime": 0.1, "step": 200}
    log.append({"loss": math.nan, "grad_norm": math.nan, "step": 500})
    log.append({"train_runtime": 3.0, "total_flos": 1e12, "step": 500})
    path = state(tmp_path / "trainer_state.json", log)
    assert kinds(path) == [("nonfinite", 500, "error")]
    assert "loss became NaN or infinite at step 500" in repr(viewer.check(path))


def test_a_validation_that_rises_is_found_in_a_csv(tmp_path: Path) -> None:
    """Its columns have gaps, as training and validation are logged in lines of their own."""
    lines = ["epoch,step,train_loss,val_loss"]
    for epoch in range(60):
        lines += [
            f"{epoch},{50 * epoch + 49},{2 / (1 + epoch)},",
            f"{epoch},{50 * epoch + 49},,{1.5 + abs(epoch - 10) / 20}",
        ]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(lines))
    assert kinds(path) == [("overfitting", 549, "warning")]


@pytest.mark.parametrize("steps", ["step", "Step", "global_step", "_step", " epoch"])
def test_steps_are_found_under_the_names_that_tools_give_them(steps: str, tmp_path: Path) -> None:
    """Whatever stands around the name, and whatever other columns hold."""
    path = tmp_path / "results.csv"
    path.write_text(
        f"name,{steps},train/loss,value\n"
        + "".join(f"monday,{step},{'nan' if step == 30 else 1},\n" for step in range(31))
    )
    assert ("nonfinite", 30, "error") in kinds(path)


def test_a_healthy_file_has_no_finding(tmp_path: Path) -> None:
    """Nor one on what only a trace could have recorded."""
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,accuracy\n" + "".join(f"{step},{2 / (1 + step)},{step / 400}\n" for step in range(300)))
    assert kinds(path) == []
    assert repr(viewer.check(path)) == f"{path}: closed at step 299; nothing found"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "loss,accuracy\n1,2\n", "has no column of steps: one must be called step, "),
        ("a.csv", "step,name\n1,x\n", "has no number of any metric"),
        ("a.csv", "step\n1\n", "has no number of any metric"),
        ("a.csv", "", "is no table of metrics: "),
        ("a.json", "{}", "is no table of metrics: "),
        ("a.json", "[1]", "is no table of metrics: "),
        ("a.json", '{"log_history": [1]}', "is no table of metrics: "),
        ("a.json", '{"log_history": []}', "has no column of steps: "),
        ("a.json", "{", "is no table of metrics: "),
    ],
)
def test_a_file_without_metrics_is_one_sentence(name: str, content: str, words: str, tmp_path: Path) -> None:
    """That names it, and says what there must be."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(LogError, match=words) as caught:
        viewer.check(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_takes_files_beside_runs(tmp_path: Path) -> None:
    """With their findings' exit code; one that cannot be judged is named, and not followed for ever."""
    good = state(tmp_path / "trainer_state.json", [{"loss": 1 / (1 + step), "step": step} for step in range(9)])
    bad = tmp_path / "bad.csv"
    bad.write_text("step,loss\n1,1\n2,inf\n")
    code, said, errors = view(tmp_path, "check", good.name, bad.name)
    assert (code, errors) == (2, "")
    assert f"{good.name}: closed at step 8; nothing found" in said
    assert "loss became NaN or infinite at step 2" in said
    code, said, errors = view(tmp_path, "check", bad.name, "--follow")
    assert (code, said) == (3, "")
    assert "cannot be followed: leave out --follow" in errors
