"""The view of activations: each cell is what the log says of a module's outputs, on every surface."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

import viewer
from tests.figures import canvas, check_texts
from tests.logs import activations, close_run, extremes, metrics, new_run, publish_next
from tests.viewing import shown, view
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from viewer.draw.layers import Layers
from viewer.options import OF_OUTPUTS, View, ViewOptions, XAxis
from viewer.read.live import Live
from viewer.snapshot import Finding, Heatmap, Severity, Snapshot

MODULES = ("stem.conv", "stem.relu", "stem", "head", "")
ROWS = [*MODULES[:-1], "(model)"]
OUTPUTS = ViewOptions(view=View.ACTIVATIONS)
STEPS = range(30)


def write(path: Path, older: bool = False) -> dict[str, npt.NDArray[np.float64]]:
    """A run with modules' outputs, and a validation every ten steps; by column its numbers, (steps, modules)."""
    generator = np.random.default_rng(0)
    run = new_run(path, ["stem.conv.weight", "head.weight"])
    columns = {name: generator.random((30, 5)) for name in ("mean", "std", "zeros", "dead")}
    columns |= {"min": -generator.random((30, 5)) * 3, "max": generator.random((30, 5)) * 2}
    columns["max"][20:, 3:], columns["std"][20:, 3:] = math.inf, math.nan
    publish_next(run, "extremes", extremes(range(40), ["stem.conv.weight", "head.weight"]))
    publish_next(run, "metrics", metrics(STEPS, [1.0] * 30))
    for piece in np.array_split(np.arange(30), 3):
        values = {name: of[piece].ravel().tolist() for name, of in columns.items()}
        validation = {"max": [1e6] * 5, "std": [1e6] * 5}
        for rows in (
            activations(piece.tolist(), MODULES, values),
            activations([int(piece[-1])], MODULES, validation, training=False),
        ):
            publish_next(run, "activations", rows.drop_columns(["zeros", "saturated", "dead"]) if older else rows)
    close_run(run, 39)
    return columns


def layers_of(path: Path, look: ViewOptions) -> Heatmap:
    """The heat map of a run."""
    live = Live(path, look)
    layers = shown(live).layers
    live.close()
    assert layers is not None
    return layers


def rows_of(strip: Layers) -> list[str]:
    """What is written beside the rows."""
    return [label.get_text() for label in strip.figure.axes[0].get_yticklabels() if label.get_text()]


@pytest.mark.parametrize("statistic", [name for name in OF_OUTPUTS if name != "saturated"])
def test_a_cell_is_what_the_training_gave_out(statistic: str, tmp_path: Path) -> None:
    """The magnitude of what was asked for, of each module in the order in which it ran; validations are left out."""
    columns = write(tmp_path / "run")
    found = layers_of(tmp_path / "run", dataclasses.replace(OUTPUTS, statistic=statistic))
    wanted = np.maximum(-columns["min"], columns["max"]) if statistic == "absmax" else np.abs(columns[statistic])
    assert found.params == ROWS
    assert np.array_equal(found.nonfinite.T, ~np.isfinite(wanted))
    assert np.array_equal(found.magnitudes.T, np.where(np.isfinite(wanted), wanted, np.nan), equal_nan=True)


def test_the_run_goes_on_beyond_its_activations(tmp_path: Path) -> None:
    """The last step is that of the run, of which not every step is recorded here; the choice is of what there is."""
    write(tmp_path / "run")
    live = Live(tmp_path / "run", OUTPUTS)
    snapshot = shown(live)
    live.close()
    assert (snapshot.last_step, snapshot.state) == (39, "closed")
    assert snapshot.statistics == ("absmax", "min", "max", "mean", "std", "zeros", "dead")


def test_modules_are_selected_by_name(tmp_path: Path) -> None:
    """The filter is one of modules, and the title says it."""
    write(tmp_path / "run")
    look = dataclasses.replace(OUTPUTS, params=r"^stem\.")
    assert layers_of(tmp_path / "run", look).params == ["stem.conv", "stem.relu"]
    figure = viewer.figure(tmp_path / "run", view="activations", params=r"^stem\.")
    assert "modules that match ^stem" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("plain --view activations", "no activations are recorded: attach(model, activations=True) records them"),
        ("run --view activations --params nothing", "no module's name matches nothing"),
        (
            "run --view activations --statistic saturated",
            "run has no 'saturated': recorded were absmax, min, max, mean",
        ),
        ("older --view activations --statistic dead", "older has no 'dead': recorded were absmax, min, max, mean, std"),
    ],
)
@pytest.mark.parametrize("how", ["--save figure.png", "--text"])
def test_what_there_is_not_is_said_in_a_sentence(arguments: str, words: str, how: str, tmp_path: Path) -> None:
    """A log without activations says how to record them; an older one has no dead units; a pattern may find nothing."""
    write(tmp_path / "run")
    write(tmp_path / "older", older=True)
    publish_next(new_run(tmp_path / "plain"), "extremes", extremes(STEPS))
    close_run(tmp_path / "plain", 29)
    code, _, complained = view(tmp_path, *arguments.split(), *how.split())
    assert (code, words in complained) == (1, True), complained


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--view layers --statistic dead", "the view layers has no statistic 'dead'"),
        ("--view activations --statistic grad_norm", "the view activations has no statistic 'grad_norm'"),
        ("--view activations --statistic nothing", "there is no statistic 'nothing'"),
    ],
)
def test_a_statistic_of_another_view_is_wrong_use(arguments: str, words: str, tmp_path: Path) -> None:
    """It is refused, in the command and in the notebook, and never answered with another one."""
    write(tmp_path / "run")
    code, _, complained = view(tmp_path, "run", *arguments.split(), "--save", "figure.png")
    assert (code, words in " ".join(complained.split())) == (2, True), complained
    _, name, _, statistic = arguments.split()
    with pytest.raises(ValueError, match=words):
        viewer.figure(tmp_path / "run", view=name, statistic=statistic)


def test_options_keep_a_statistic_of_their_view() -> None:
    """Whoever goes from one view to the other gets what is usual there."""
    look = ViewOptions(view=View.LAYERS, statistic="value_norm")
    there = dataclasses.replace(look, view=View.ACTIVATIONS)
    assert there.statistic == "std"
    assert dataclasses.replace(there, statistic="dead").statistic == "dead"
    assert dataclasses.replace(there, view=View.LAYERS).statistic == "grad_absmax"
    assert dataclasses.replace(look, view=View.OVERVIEW).statistic == "value_norm"


def test_a_notebook_without_activations_says_so(tmp_path: Path) -> None:
    """As the command does."""
    publish_next(new_run(tmp_path / "run"), "extremes", extremes(STEPS))
    close_run(tmp_path / "run", 29)
    with pytest.raises(LogError, match="no activations are recorded"):
        viewer.figure(tmp_path / "run", view="activations")


def test_a_live_run_without_activations_shows_the_sentence(tmp_path: Path) -> None:
    """In a window, or on a page, it stands in the figure; before the first step, nobody knows yet."""
    run = new_run(tmp_path / "run")
    publish_next(run, "metrics", metrics([0], [1.0]))
    strip, live = Layers(canvas(), OUTPUTS), Live(run, OUTPUTS)
    strip.update([shown(live)], 1e9)
    note = strip.figure.axes[0].texts[0]
    assert note.get_text() == "no step recorded yet"
    publish_next(run, "extremes", extremes(STEPS))
    strip.update([shown(live)], 1e9)
    assert note.get_text() == "no activations are recorded: attach(model, activations=True) records them"
    check_texts(strip.figure)
    publish_next(run, "activations", activations(STEPS, MODULES))
    strip.update([shown(live)], 1e9)
    live.close()
    assert not note.get_visible()
    assert rows_of(strip) == ROWS


def test_a_finding_is_marked_in_the_row_of_its_module() -> None:
    """In this view alone: in that of the layers, rows are parameters."""
    layers = Heatmap(ROWS, 0, 1, np.ones((5, 9)), np.zeros((5, 9), bool), [1.0] * 9)
    findings = tuple(
        Finding("dead_units", f"Dead units: {name}", Severity.WARNING, None, 3, 8, "", "", {"module": name})
        for name in ("stem.relu", "")
    )
    for look, rows in ((OUTPUTS, [1, 4]), (ViewOptions(view=View.LAYERS), [])):
        strip = Layers(canvas(), look)
        strip.update([Snapshot("run", "running", 8, layers=layers, findings=findings)], 1e9)
        assert [flag.get_position()[1] for flag in strip._flags] == rows


@pytest.mark.parametrize("x", list(XAxis))
def test_numbers_can_be_saved(x: XAxis, tmp_path: Path) -> None:
    """A file with the numbers of each module has a row for each cell."""
    columns = write(tmp_path / "run")
    code, _, complained = view(tmp_path, "run", "--view", "activations", "--x", x, "--save", "figure.csv")
    assert (code, complained) == (0, "")
    table = pl.read_csv(tmp_path / "figure.csv")
    of_relu = table.filter(pl.col("curve") == "stem.relu")
    assert of_relu["value"].to_list() == pytest.approx(columns["std"][:, 1].tolist())


def test_the_terminal_shows_modules(tmp_path: Path) -> None:
    """In a pipe, the newest and what is not finite; a picture has a row for each."""
    write(tmp_path / "run")
    code, said, complained = view(tmp_path, "run", "--view", "activations", "--text")
    assert (code, complained) == (0, "")
    assert "NaN or inf in 2 modules, head the first" in said


def test_a_click_on_a_module_leads_nowhere_and_one_on_many_to_them() -> None:
    """A module is no parameter; a row of many modules opens to these."""
    strip = Layers(canvas(), OUTPUTS)
    few = Heatmap(ROWS, 0, 1, np.ones((5, 2)), np.zeros((5, 2), bool))
    strip.update([Snapshot("run", "running", 1, layers=few)], 1e9)
    assert strip.picked(strip.figure.axes[0], 1.0) is None
    names = [f"block{block}.{part}" for block in range(200) for part in "ab"]
    strip.update(
        [Snapshot("run", "running", 1, layers=Heatmap(names, 0, 1, np.ones((400, 2)), np.zeros((400, 2), bool)))], 1e9
    )
    picked = strip.picked(strip.figure.axes[0], 7.0)
    assert picked is not None
    assert (picked.view, picked.params) == (View.ACTIVATIONS, r"^block7\.")
