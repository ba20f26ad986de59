"""Hyper-parameters in run.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import tracer
from tests.training import mlp
from tracer.log.run import open_run
from tracer.log.store import at


def recorded(path: Path, config: Any) -> Mapping[str, Any]:
    """What run.json holds of hyper-parameters; it has to be JSON as other languages read it."""
    tracer.attach(mlp(), path, config=config).close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"JSON has no {constant}")

    found: Mapping[str, Any] = json.loads((path / "run.json").read_text(), parse_constant=refuse)["config"]
    return found


def test_values_that_json_has_are_recorded_as_they_are(tmp_path: Path) -> None:
    """Numbers (numpy's, too), texts, truth values, None, lists and dicts come back as they were, unwarned."""
    given = {"lr": 0.1, "epochs": np.int64(3), "name": "ä", "amp": True, "decay": None, "betas": (0.9, np.float32(0.5))}
    expected = {**given, "epochs": 3, "betas": [0.9, 0.5], "optimizer": {"nesterov": False, "1": [1, 2]}}
    found = recorded(tmp_path / "a", {**given, "optimizer": {"nesterov": False, 1: [1, 2]}})
    assert found == expected
    assert found == open_run(at(tmp_path / "a")).config


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_what_json_has_not_is_recorded_by_its_repr_and_said_once(
    tmp_path: Path,
) -> None:
    """Objects, NaN, infinity and integers beyond 64 bits stand in run.json by their repr, which one warning names."""
    holds_itself: list[Any] = [1]
    holds_itself.append(holds_itself)
    given = {
        "path": Path("data"),
        "clip": float("inf"),
        "seed": 1 << 70,
        "lazy": Unspeakable(),
        "within": {"act": nn.ReLU()},
        "self": holds_itself,
        "long": b"x" * 5000,
    }
    with pytest.warns(tracer.TracerWarning) as warned:
        found = recorded(tmp_path / "a", given)
    assert found["path"] == repr(Path("data"))
    assert (found["clip"], found["seed"]) == ("inf", str(1 << 70))
    assert (found["lazy"], found["within"]) == ("<Unspeakable>", {"act": "ReLU()"})
    assert found["self"] == [1, "[1, [...]]"]
    assert len(found["long"]) < 1100
    (warning,) = [str(each.message) for each in warned]
    assert "path, clip, seed, lazy, within.act and 2 more" in warning


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [([("lr", 0.1)], TypeError, "must be a dict"), ({"data": "x" * (2 << 20)}, ValueError, "give hyper-parameters")],
)
def test_what_is_no_config_is_refused(tmp_path: Path, config: Any, error: type[Exception], words: str) -> None:
    """Refuse what is no mapping, or is so large that it must be data, before it makes a folder."""
    with pytest.raises(error, match=words):
        tracer.attach(mlp(), tmp_path / "a", config=config)
    assert not (tmp_path / "a").exists()


def test_a_run_that_goes_on_keeps_its_config(tmp_path: Path) -> None:
    """With another config, attach warns of what differs and run.json stays; with the same, or none, it says nothing."""
    assert recorded(tmp_path / "a", {"lr": 0.1, "epochs": 3}) == {"lr": 0.1, "epochs": 3}
    for config in ({"lr": 0.1, "epochs": 3}, None):
        tracer.attach(mlp(), tmp_path / "a", resume=True, config=config).close()
    with pytest.warns(tracer.TracerWarning, match="it differs in lr$"):
        tracer.attach(mlp(), tmp_path / "a", resume=True, config={"lr": 0.2, "epochs": 3}).close()
    assert open_run(at(tmp_path / "a")).config == {"lr": 0.1, "epochs": 3}


@pytest.mark.parametrize("damage", [{}, {"config": [1]}])
def test_a_log_without_a_config_is_read(tmp_path: Path, damage: dict[str, Any]) -> None:
    """An older log, or one whose config is no object, has no hyper-parameters."""
    recorded(tmp_path / "a", {"lr": 0.1})
    file = tmp_path / "a" / "run.json"
    info = json.loads(file.read_text())
    del info["config"]
    file.write_text(json.dumps({**info, **damage}))
    assert open_run(at(tmp_path / "a")).config == {}
