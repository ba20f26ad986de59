"""Several nodes: each has its own torchrun, and all they share is a folder."""

from collections.abc import Callable

import polars as pl
import pytest

import tracer
from tests.distributed.exact import STEPS, Network, batch, sgd
from tests.distributed.launch import RANKS, finish, lose, nodes
from tests.distributed.oracle import Merged, merged
from tests.logs import age_heartbeat
from tests.versions import needs_fully_shard
from tests.waiting import wait_until
from tracer import cli
from tracer.log.parts import all_parts
from tracer.log.ranks import HEARTBEAT_STALE_SECONDS, closed_summaries, state
from tracer.log.store import Local as Path

pytestmark = [needs_fully_shard, pytest.mark.slow]


def of_one_process(path: Path) -> Merged:
    """What one process records that trains with the data of all ranks."""
    model = Network(with_side=False)
    optimizer = sgd(model)
    with tracer.attach(model, path, applied=True):
        for step in range(STEPS):
            optimizer.zero_grad()
            (sum(model(batch(step, 0, rank)).sum() for rank in range(RANKS)) / RANKS).backward()
            optimizer.step()
    return merged(path)


def steps_of(run: Path, rank: int) -> list[int]:
    """The steps that a rank recorded."""
    rows = tracer.scan(run).filter(pl.col("rank") == rank).select(pl.col("step").unique().sort())
    return rows.collect()["step"].to_list()


def test_nodes_that_share_a_folder_write_one_run(tmp_path: Path, figures: Callable[..., None]) -> None:
    """Ranks of two nodes need a common path and nothing else: one run, which reads as that of one process."""
    with nodes("worker_nodes", tmp_path, "run") as agents:
        ended = [finish(agent) for agent in agents]
    assert [each.code for each in ended] == [0] * RANKS, ended
    run = tmp_path / "run"
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert len([line for each in ended for line in each.stderr.splitlines() if "gradwatch traces" in line]) == 1
    assert [summary["rank"] for summary in closed_summaries(run)] == list(range(RANKS))
    assert state(run) == "closed"
    assert [steps_of(run, rank) for rank in range(RANKS)] == [list(range(STEPS))] * RANKS
    found, alone = merged(run), of_one_process(tmp_path / "alone")
    figures(ranks=RANKS, rows_lost_or_of_another_rank=sum(found.get(key) != row for key, row in alone.items()))
    assert found == alone
    cli.verify(str(run))


def test_a_node_that_is_lost_takes_no_published_row_with_it(tmp_path: Path, figures: Callable[..., None]) -> None:
    """Where one node loses power, what was published stays, the other rank closes, and the run counts as stopped."""
    run = tmp_path / "run"
    with nodes("worker_nodes", tmp_path, "run", "endless") as agents:
        wait_until(lambda: all(_parts(run, rank) >= 2 for rank in range(RANKS)))
        published = [steps_of(run, rank) for rank in range(RANKS)]
        killed = lose(agents[1])
        survivor = finish(agents[0])
    assert survivor.code != 0
    (lost,) = (rank for rank in range(RANKS) if int((run / f"heartbeat-r{rank:05d}").read_text().split()[1]) in killed)
    (summary,) = closed_summaries(run)
    assert summary["rank"] != lost
    assert summary["reason"]
    figures(ranks_killed=1)
    for rank, before in enumerate(published):
        after = steps_of(run, rank)
        figures(ranks=1, published_steps_lost=len(set(before) - set(after)))
        assert after == list(range(len(after)))
        assert len(after) >= len(before)
    assert steps_of(run, summary["rank"])[-1] == summary["last_step"]
    first = {key: row for key, row in merged(run).items() if key[0] < STEPS}
    assert first == of_one_process(tmp_path / "alone")
    age_heartbeat(run, 0, lost)
    assert state(run) == "running"
    age_heartbeat(run, HEARTBEAT_STALE_SECONDS + 1, lost)
    assert state(run) == "stopped"
    cli.verify(str(run))


def _parts(run: Path, rank: int) -> int:
    return len([part for part in all_parts(run, "extremes") if part.rank == rank])
