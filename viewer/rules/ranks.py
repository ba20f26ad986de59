"""Rules on ranks: the one that is unlike the others."""

import numpy as np

from viewer.reduce.cells import Floats
from viewer.reduce.rank_history import Spread
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Case, Limits, Threshold, rule
from viewer.snapshot import Severity

_BINS_AROUND = 8
_SPREADS = "beyond so many times the ranks' own spread (the median distance from their median)"


@rule(
    "odd_rank",
    title="Rank {rank} is unlike the others: {what}",
    severity=Severity.WARNING,
    sentence="Rank {rank} is unlike the others since step {first_step:,}: its {what} is about {own:.3g}, where the "
    "median of {ranks} ranks is {median:.3g}; for {rows:,.0f} measured steps.",
    advice="Look at what this rank alone reads and does: its part of the data, its seed, its device, and whether it "
    "takes part in the reduction of gradients.",
    factor=Threshold(2, "a rank's gradient is so many times larger or smaller than the ranks' median", "a choice"),
    share=Threshold(0.5, "or its metric is off by this share of the ranks' median", "as odd_rank.factor"),
    spreads=Threshold(4, _SPREADS, "of normal numbers one in a hundred is so far away, and not for long"),
    rows=Threshold(50, "for so many measured steps", "a few steps prove nothing"),
)
def odd_rank(evidence: Evidence, limits: Limits) -> list[Case]:
    """A rank whose own gradients or metrics part from those of all others, for long."""
    tables = evidence.ranks
    if tables is None or len(tables.ranks) < 3:
        return []
    cases = []
    least = np.full(len(tables.gradients.mean), np.log(limits["factor"]))
    for place, first, last, rows in _apart(tables.gradients, least, limits):
        own, median = (float(np.exp(number)) for number in _usual(tables.gradients, place, first, last))
        cases.append((place, first, last, rows, "largest gradient", own, median))
    for curve in evidence.losses + evidence.accuracies:
        spread = tables.metrics.get(curve.name)
        if spread is None:
            continue
        least = limits["share"] * np.abs(np.nanmedian(spread.mean, axis=1))
        for place, first, last, rows in _apart(spread, least, limits):
            cases.append((place, first, last, rows, curve.name, *_usual(spread, place, first, last)))
    return [
        Case(
            None,
            first,
            last,
            {"rank": tables.ranks[place], "metric": what, "own": own, "median": median, "rows": rows},
            words={"what": what, "ranks": len(tables.ranks)},
        )
        for place, first, last, rows, what, own, median in cases
    ]


def _apart(spread: Spread, least: Floats, limits: Limits) -> list[tuple[int, int, int, float]]:
    """The ranks that are apart for long: place, first step, last step, and in how many rows."""
    mean = _around(spread)
    known = (~np.isnan(mean)).sum(axis=1) > 2
    distance = np.abs(mean - np.nanmedian(mean, axis=1, keepdims=True))
    usual = np.nanmedian(distance, axis=1)
    odd = known[:, None] & (distance > np.maximum(least, limits["spreads"] * usual)[:, None])
    found = []
    for place in range(spread.mean.shape[1]):
        rows, best, begun = 0.0, (0.0, 0, 0), 0
        for at in np.flatnonzero(spread.count[:, place] > 0).tolist():
            begun = at if rows == 0 else begun
            rows = rows + float(spread.count[at, place]) if odd[at, place] else 0.0
            best = max(best, (rows, begun, at))
        if best[0] >= limits["rows"]:
            found.append((place, int(spread.begins[best[1]]), int(spread.ends[best[2]]), best[0]))
    return found


def _around(spread: Spread) -> Floats:
    """Each bin's means together with those of the bins beside it: of single steps the noise of batches is all."""
    count = np.pad(spread.count, ((1, 0), (0, 0))).cumsum(axis=0)
    total = np.pad(np.where(spread.count > 0, spread.mean * spread.count, 0.0), ((1, 0), (0, 0))).cumsum(axis=0)
    places = np.arange(len(spread.count))
    begins, ends = np.maximum(places - _BINS_AROUND, 0), np.minimum(places + _BINS_AROUND + 1, len(places))
    counts = count[ends] - count[begins]
    around: Floats = np.divide(total[ends] - total[begins], counts, where=counts > 0, out=np.full(counts.shape, np.nan))
    return around


def _usual(spread: Spread, place: int, first: int, last: int) -> tuple[float, float]:
    """A rank's own number, and the ranks' median, between two steps."""
    within = spread.mean[(spread.begins >= first) & (spread.ends <= last)]
    return float(np.nanmean(within[:, place])), float(np.nanmean(np.nanmedian(within, axis=1)))
