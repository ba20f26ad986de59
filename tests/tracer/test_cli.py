import errno
import io
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import entry_points

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import tracer
from tests.commands import Said, tracer_says
from tests.disk import Disk
from tests.logs import age_heartbeat, close_run, events, extremes, flip_bit, metrics, new_run, publish_next
from tests.waiting import wait_until
from tracer import cli, scan
from tracer.log import schema
from tracer.log.parts import Part, all_parts, list_parts, merge, part_name
from tracer.log.ranks import beat, close_rank
from tracer.log.store import Local as Path


def facts(run: Path) -> dict[str, str]:
    """What ``tracer info`` says of a run, line by line."""
    said = tracer_says("info", run)
    assert (said.returncode, said.stderr) == (0, "")
    return {name: fact.strip() for name, _, fact in (line.partition(" ") for line in said.stdout.splitlines())}


def assert_one_line_error(said: Said, *parts: object) -> None:
    """The command failed with exit code 1 and one line on stderr that holds these parts, and said nothing else."""
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("tracer: ")
    assert said.stderr.count("\n") == 1
    assert all(str(part) in said.stderr for part in parts), said.stderr


def log_of(run: Path, count: int = 3) -> Path:
    """A run of so many steps, a part a step and table, and one event."""
    new_run(run, ["conv.weight", "fc.bias"])
    for step in range(count):
        publish_next(run, "extremes", extremes([step], ["conv.weight", "fc.bias"]))
        publish_next(run, "metrics", metrics([step], [1 / (step + 1)]))
    publish_next(run, "events", events([0]))
    return run


def stop(run: Path) -> Path:
    """Let a run's process have died an hour ago."""
    age_heartbeat(run, 3600)
    return run


def newer(run: Path) -> Path:
    """A run of a format that is yet to come."""
    return new_run(run, format=schema.FORMAT + 1)


def test_info_tells_what_a_running_run_holds(tmp_path: Path) -> None:
    """For a run being written, info tells status, model, start, ranks, steps, parameters, rows, size, last metrics."""
    run = log_of(tmp_path / "run")
    publish_next(run, "metrics", metrics([1, 2], [0.5, 0.875], name="accuracy"))
    size = sum(path.stat().st_size for path in run.rglob("*.parquet"))
    info = facts(run)
    assert info.pop("started").endswith(f" on {os.uname().nodename}")
    assert info == {
        "status": "running",
        "model": "Model",
        "ranks": "1",
        "steps": "3 recorded, 0 to 2",
        "params": "2",
        "rows": "extremes 6, metrics 5, events 1; dropped 0",
        "size": f"{size / 1e6:.2f} MB in 8 parts",
        "accuracy": "0.875 at step 2",
        "loss": "0.333333 at step 2",
    }


def test_info_tells_that_a_run_was_closed_and_what_it_dropped(tmp_path: Path) -> None:
    """For a closed run of several ranks, info counts what was dropped over ranks and tables."""
    run = log_of(tmp_path / "run")
    for rank, dropped in ((0, {"extremes": 1_000, "metrics": 1}), (1, {"extremes": 5})):
        beat(run, rank)
        close_rank(run, rank, {"rows_dropped": dropped})
    info = facts(run)
    assert (info["status"], info["ranks"]) == ("closed", "2")
    assert info["rows"] == "extremes 6, metrics 3, events 1; dropped 1,006"


def test_info_tells_that_a_run_stopped_without_closing(tmp_path: Path) -> None:
    """For a run whose process died, info says that it stopped without closing."""
    assert facts(stop(log_of(tmp_path / "run")))["status"] == "stopped without closing"


def test_info_tells_that_a_run_is_empty(tmp_path: Path) -> None:
    """For a run without a row, info says that there is no step yet."""
    info = facts(new_run(tmp_path / "run"))
    assert (info["steps"], info["rows"]) == ("none yet", "extremes 0, metrics 0, events 0; dropped 0")
    assert info["size"] == "0.00 MB in 0 parts"


def test_info_tells_of_attempts(tmp_path: Path) -> None:
    """For a run that was resumed, info says how often, and how many rows are of steps that were made again."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(10)))
    publish_next(run, "events", events([7], "restored", attempt=1))
    publish_next(run, "extremes", extremes(range(7, 9), attempt=1))
    info = facts(run)
    assert info["attempts"] == "2; 3 rows of extremes are of steps that a later one made again"
    assert info["steps"] == "9 recorded, 0 to 8"


def test_info_shows_names_as_they_are(tmp_path: Path) -> None:
    """A name with brackets is text, not markup, and one with colons names no emoji."""
    run = new_run(tmp_path / "run")
    publish_next(run, "metrics", metrics([0], [1.5], name="top:100:acc"))
    publish_next(run, "metrics", metrics([0], [0.5], name="[red]top[/5]"))
    assert facts(run)["[red]top[/5]"] == "0.5 at step 0"
    assert facts(run)["top:100:acc"] == "1.5 at step 0"


def test_info_shows_some_of_thousands_of_metrics(tmp_path: Path) -> None:
    """The first names have a line each, and the rest is counted."""
    run = new_run(tmp_path / "run")
    publish_next(run, "metrics", pa.concat_tables([metrics([0], [0.5], name=f"m{i:04d}") for i in range(1234)]))
    shown = facts(run)
    assert shown["m0099"] == "0.5 at step 0"
    assert "m0100" not in shown
    assert shown["…"] == "and 1,134 more metrics"


def test_info_reads_a_time_that_its_footer_hides(tmp_path: Path) -> None:
    """Where statistics are forged together with the checksum, a time of no year ends nothing."""
    hidden, shown = -(2**63), 1_790_000_000_000_000
    run, rows = new_run(tmp_path / "run"), metrics([0], [0.25])
    index = rows.schema.get_field_index("time")
    forged = rows.set_column(index, "time", pa.array([hidden]).cast(pa.timestamp("us", "UTC")))
    file = io.BytesIO()
    pq.write_table(forged, file, compression="none", use_dictionary=False)
    content = file.getvalue()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    hiding = content[footer:].replace(struct.pack("<q", hidden), struct.pack("<q", shown))
    assert hiding != content[footer:]
    content = content[:footer] + hiding
    (run / "metrics" / part_name(0, 0, 0, zlib.crc32(content))).write_bytes(content)
    assert facts(run)["loss"] == "0.25 at step 0"


def test_info_reads_around_a_damaged_part(tmp_path: Path) -> None:
    """A damaged part is named in one line on stderr, and info tells what the others hold."""
    run = log_of(tmp_path / "run")
    damaged = list_parts(run, "extremes")[1].path
    flip_bit(damaged)
    said = tracer_says("info", run)
    assert said.returncode == 0
    assert "2 recorded, 0 to 2" in said.stdout
    assert said.stderr.startswith(f"tracer: {damaged} has changed")
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["info", "verify", "merge"])
def test_what_is_no_run_is_one_line(tmp_path: Path, command: str) -> None:
    """Every command refuses a folder without a run in one line that names it, with exit code 1."""
    assert_one_line_error(tracer_says(command, tmp_path), tmp_path, "holds no run")


@pytest.mark.parametrize(
    ("command", "words"),
    [("info", "3 recorded"), ("verify", "every byte as it was"), ("merge", "parts before"), ("runs", "closed")],
)
def test_a_folder_of_runs_stands_for_all_of_them(tmp_path: Path, command: str, words: str) -> None:
    """Each of its runs is told of; one that cannot be read is named in one line, and costs no other."""
    for name in "abc":
        close_run(log_of(tmp_path / name))
    said = tracer_says(command, tmp_path)
    assert (said.returncode, said.stdout.count(words), said.stderr) == (0, 3, "")
    (tmp_path / "b" / "run.json").write_text("{")
    said = tracer_says(command, tmp_path)
    assert (said.returncode, said.stdout.count(words)) == (command != "runs", 2)
    assert said.stderr.count("\n") == said.stderr.count("run.json cannot be read") == 1


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_table_of_runs_fits_its_terminal(tmp_path: Path, columns: int) -> None:
    """Name, state and steps are there at any width; what finds no room is counted, and no number is cut."""
    for place, name in enumerate(("a-run-with-a-rather-long-name-and-an-end-1", "b")):
        run = new_run(tmp_path / name, config={"lr": 0.1 / (1 + place), "epochs": 3})
        publish_next(run, "metrics", metrics(range(12_345), [1 / (step + 1) for step in range(12_345)]))
        close_run(run)
    lines = tracer_says("runs", tmp_path, columns=columns).stdout.splitlines()
    head, first, *_ = lines
    assert max(map(len, lines[:3])) <= columns
    assert head.split()[:2] == ["run", "state"]
    assert "12,345" in first
    assert first.startswith("a-run" if columns < 200 else "a-run-with-a-")
    assert "end-1" in first
    assert ("best loss" in head) == (columns >= 80)
    assert ("lr" in head.split(), "epochs" in head) == (columns >= 80, False)
    assert ("more columns" in lines[-1]) == (columns == 40)


@pytest.mark.parametrize("command", ["info", "verify", "merge", "runs"])
def test_what_is_no_run_names_those_that_are_there(tmp_path: Path, command: str) -> None:
    """A name that is spelled wrong is answered with the runs beside it."""
    for name in ("resnet18", "vit"):
        log_of(tmp_path / name)
    assert_one_line_error(tracer_says(command, tmp_path / "resnet81"), "beside it are the runs resnet18, vit", "no run")


@pytest.mark.parametrize("command", ["info", "verify", "merge", "runs"])
def test_an_error_of_the_system_has_words_and_no_number(tmp_path: Path, command: str, disk: Disk) -> None:
    """Where run.json may not be read, the reason is said in words, and its name once."""
    run = log_of(tmp_path / "run")
    disk.open = refused
    said = tracer_says(command, run)
    assert said.stderr.count("Permission denied") == said.stderr.count("run.json") == 1
    assert not re.search("errno|PermissionError", said.stderr, re.IGNORECASE)


def refused(file: object, *_: object) -> int:
    """Open no file."""
    raise PermissionError(errno.EACCES, "Permission denied", str(file))


@pytest.mark.parametrize(
    ("command", "make", "reason"),
    [
        ("info", newer, "has log format 2"),
        ("verify", lambda run: run, "holds no run"),
    ],
    ids=["newer", "nowhere"],
)
def test_a_run_that_cannot_be_used_is_one_line(
    tmp_path: Path, command: str, make: Callable[[Path], Path], reason: str
) -> None:
    """A newer format and a path that does not exist are refused in one line."""
    assert_one_line_error(tracer_says(command, make(tmp_path / "run")), tmp_path / "run", reason)


def test_a_damaged_closed_mark_is_one_line(tmp_path: Path) -> None:
    """A closed mark that was cut off is named in one line."""
    run = log_of(tmp_path / "run")
    close_run(run)
    os.truncate(run / "closed-r00000.json", 0)
    assert_one_line_error(tracer_says("info", run), run / "closed-r00000.json", "cannot be read")


def test_a_run_that_is_being_written_is_merged_and_goes_on(tmp_path: Path) -> None:
    """A merge while the run goes on keeps every row, and the rank publishes on behind it."""
    run = log_of(tmp_path / "run")
    before = tracer.scan(run).collect()
    assert tracer_says("merge", run).returncode == 0
    assert len(all_parts(run, "extremes")) == 1
    assert tracer.scan(run).collect().equals(before)
    publish_next(run, "extremes", extremes([1_000]))
    assert tracer.scan(run).collect()["step"].to_list() == [*before["step"].to_list(), 1_000]


def test_a_wrong_command_line_has_its_own_exit_code() -> None:
    """A command without its run ends with exit code 2, and says what is missing."""
    said = tracer_says("info")
    assert said.returncode == 2
    assert "Missing argument" in said.stderr


def test_verify_finds_nothing_in_a_whole_run(tmp_path: Path) -> None:
    """For a run whose every byte is as published, verify counts the parts, and ends with exit code 0."""
    run = log_of(tmp_path / "run")
    merge(run, "metrics", 0)
    said = tracer_says("verify", run)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"{run}: 5 parts, every byte as it was published\n"


def test_verify_names_everything_that_is_wrong(tmp_path: Path) -> None:
    """Verify ends with exit code 1 and a line for each damaged part and each gap, in every table and rank."""
    run = log_of(tmp_path / "run", count=5)
    for step in range(2):
        publish_next(run, "extremes", extremes([step], rank=1), rank=1)
    parts = list_parts(run, "extremes")
    flip_bit(parts[1].path)
    os.truncate(list_parts(run, "metrics")[0].path, 10)
    for gone in (parts[2], parts[3], parts[5]):
        gone.file().unlink()
    said = tracer_says("verify", run)
    assert (said.returncode, said.stdout) == (1, "")
    changed, early, first, cut = said.stderr.splitlines()
    assert changed.startswith(f"{parts[1].path} has changed since it was published: CRC-32 ")
    assert early == f"{run / 'extremes'}: the parts 2 to 3 of rank 0 are missing"
    assert first == f"{run / 'extremes'}: the parts 0 to 0 of rank 1 are missing"
    assert cut.startswith(f"{list_parts(run, 'metrics')[0].path} has changed")


@pytest.mark.parametrize("offset", [0, 4, 1_000, -1])
def test_verify_finds_a_flipped_bit_wherever_it_is(tmp_path: Path, offset: int) -> None:
    """A single flipped bit in a part's magic, data or footer ends verify with exit code 1 and the part's name."""
    run = log_of(tmp_path / "run")
    damaged = list_parts(run, "extremes")[1].path
    flip_bit(damaged, offset)
    said = tracer_says("verify", run)
    assert said.returncode == 1
    assert str(damaged) in said.stderr


def test_verify_is_not_confused_by_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where parts are merged away while verify looks at them, it looks at what replaced them."""
    run = log_of(tmp_path / "run")

    def overtaken(path: Path, table: str) -> list[Part]:
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr("tracer.log.parts.list_parts", list_parts)
            found = list_parts(path, table)
            merge(path, table, 0)
        return found

    monkeypatch.setattr("tracer.log.parts.list_parts", overtaken)
    cli.verify(str(run))
    assert capsys.readouterr().out == f"{run}: 3 parts, every byte as it was published\n"
    flip_bit(list_parts(run, "extremes")[0].path)
    with pytest.raises(typer.Exit) as ended:
        cli.verify(str(run))
    assert ended.value.exit_code == 1


@pytest.mark.parametrize("end", [stop, lambda run: close_run(run)], ids=["stopped", "closed"])
def test_merge_leaves_a_part_a_table_and_rank(tmp_path: Path, end: Callable[[Path], object]) -> None:
    """Merging a run that has ended leaves one part for each table and rank, with the same rows."""
    run = log_of(tmp_path / "run")
    for step in range(2):
        publish_next(run, "extremes", extremes([step], rank=1), rank=1)
    end(run)
    before = {table: scan(run, table).collect().to_dicts() for table in schema.TABLES}
    said = tracer_says("merge", run)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == f"{run}: 9 parts before, 4 now\n"
    found = [
        (part.file().parent.name, part.rank, part.last) for table in schema.TABLES for part in all_parts(run, table)
    ]
    assert found == [("extremes", 0, 2), ("extremes", 1, 1), ("metrics", 0, 2), ("events", 0, 0)]
    assert {table: scan(run, table).collect().to_dicts() for table in schema.TABLES} == before


def test_merge_leaves_a_damaged_part_for_verify_to_name(tmp_path: Path) -> None:
    """Merging around a damaged part succeeds; verify names it before and after."""
    run = stop(log_of(tmp_path / "run", count=5))
    damaged = list_parts(run, "extremes")[2].path
    flip_bit(damaged)
    assert tracer_says("merge", run).stdout == f"{run}: 11 parts before, 5 now\n"
    said = tracer_says("verify", run)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith(str(damaged))
    assert said.stderr.count("\n") == 1


def test_a_merge_that_cannot_write_is_one_line(tmp_path: Path) -> None:
    """Where the system does not take the merged part, merge says so in one line, and every row stays readable."""
    run = stop(log_of(tmp_path / "run"))
    shutil.rmtree(run / "staging")
    assert_one_line_error(tracer_says("merge", run), "No such file or directory", "staging")
    assert scan(run).collect()["step"].to_list() == [0, 0, 1, 1, 2, 2]


def test_ctrl_c_ends_a_command_quietly(tmp_path: Path) -> None:
    """Ctrl-C ends a command with exit code 130 and no traceback."""
    slow = "import pathlib, time\n\ndef make():\n    pathlib.Path('begun').touch()\n    time.sleep(600)\n"
    (tmp_path / "slow.py").write_text(slow)
    command = [sys.executable, "-m", "tracer", "doctor", "slow:make"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            wait_until((tmp_path / "begun").exists)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_the_command_is_installed() -> None:
    """Installing the package gives the command ``tracer``, the same as ``python -m tracer``."""
    (script,) = entry_points(group="console_scripts", name="tracer")
    assert script.load() is cli.main


def test_looking_after_a_log_does_not_load_torch() -> None:
    """The command line answers without importing torch."""
    code = "import sys, tracer.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def doctor_says(folder: Path, code: str, target: str) -> Said:
    """Run ``tracer doctor`` in a folder with a module ``net``."""
    (folder / "net.py").write_text("import torch\nfrom torch import nn\n" + code)
    try:
        return tracer_says("doctor", target, folder=folder, columns=120)
    finally:
        sys.modules.pop("net", None)


def test_doctor_tells_of_a_model_in_the_current_folder(tmp_path: Path) -> None:
    """The table has a line a parameter, and a summary; a factory is called, a model taken as it is."""
    code = (
        "def make():\n    net = nn.Linear(3, 2)\n    net.bias.requires_grad_(False)\n    return net\nmodel = make()\n"
    )
    for target in ("net:make", "net:model"):
        said = doctor_says(tmp_path, code, target)
        assert (said.returncode, said.stderr) == (0, "")
        lines = [line.split() for line in said.stdout.splitlines()]
        assert lines[0] == ["param", "state", "shape", "dtype", "records", "note"]
        assert lines[1] == ["weight", "traced", "2", "x", "3", "float32", "value,", "grad"]
        assert lines[2] == ["bias", "frozen", "2", "float32", "value"]
        assert said.stdout.endswith("2 parameters: 1 traced, 1 frozen\n")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("net", "'net' is not of the form MODULE:FACTORY"),
        ("nonet:make", "nonet:make gives no model: ModuleNotFoundError"),
        ("net:other", "net:other gives no model: AttributeError"),
        ("net:broken", "net:broken gives no model: ZeroDivisionError"),
        ("net:number", "net:number gives a int, not a torch.nn.Module"),
    ],
)
def test_doctor_says_in_one_line_why_there_is_no_model(target: str, words: str, tmp_path: Path) -> None:
    """Whatever is wrong with the target, one line names it, and the exit code is 1."""
    said = doctor_says(tmp_path, "def broken():\n    1 / 0\ndef number():\n    return 1\n", target)
    assert_one_line_error(said, words)


def test_doctor_fails_where_attach_would_refuse(tmp_path: Path) -> None:
    """A model without anything to train is said to be one, with exit code 1."""
    said = doctor_says(tmp_path, "", "torch.nn:ReLU")
    assert said.returncode == 1
    assert said.stderr == "tracer: there is no gradient to trace in this model, so attach would refuse it\n"


def test_json_is_what_is_said(tmp_path: Path) -> None:
    """Of each run its facts, also of one that is damaged; NaN, of which JSON has none, is null."""
    run = new_run(tmp_path / "runs" / "a")
    publish_next(run, "extremes", extremes(range(3)))
    publish_next(run, "metrics", metrics([0, 1], [0.5, math.nan]))
    close_run(run, 2)
    flip_bit(publish_next(new_run(tmp_path / "runs" / "b"), "extremes", extremes(range(3))).path)
    found = {command: tracer_says(command, tmp_path / "runs", "--json") for command in ("info", "verify", "runs")}
    assert [found[command].returncode for command in found] == [0, 1, 0]
    infos, verified, runs = (json.loads(found[command].stdout, parse_constant=pytest.fail) for command in found)
    assert [Path(each["run"]).name for each in infos] == ["a", "b"]
    assert (infos[0]["steps"], infos[0]["last_step"], infos[0]["rows"]["extremes"]) == (3, 2, 3)
    assert infos[0]["metrics"] == [{"name": "loss", "value": None, "step": 1}]
    assert [len(each["problems"]) for each in infos] == [len(each["problems"]) for each in verified] == [0, 1]
    assert [each["name"] for each in runs] == ["a", "b"]


def test_json_of_a_model_is_a_row_for_each_parameter() -> None:
    """As the table has them."""
    rows = json.loads(tracer_says("doctor", "torchvision.models:resnet18", "--json").stdout)
    assert len(rows) == 62
    assert {row["state"] for row in rows} == {"traced"}
