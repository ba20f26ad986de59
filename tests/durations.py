"""How long the tests take, by file: ``make durations`` writes it into tests/durations.md."""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

_HEAD = """# How long the tests take

`make durations` wrote this, on two cores, with three files at a time: each test's seconds, with what was set up for it.
All files: {tests} tests, {seconds:.0f} seconds.

| file | tests | seconds |
| --- | --- | --- |
"""
_PAGE = Path(__file__).parent / "durations.md"


def seconds() -> dict[Path, int]:
    """How many seconds each file took when the page was written."""
    found = re.findall(r"^\| (\S+\.py) \| \d+ \| (\d+) \|$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {_PAGE.parent / file: int(taken) for file, taken in found}


def table(report: Path) -> str:
    """The page, from what pytest reported with ``--junitxml``: the longest file first."""
    seconds: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):
        file = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + ".py"
        seconds[file] += float(case.attrib["time"])  # type: ignore[assignment]
        tests[file] += 1
    rows = "".join(f"| {file} | {tests[file]} | {taken:.0f} |\n" for file, taken in seconds.most_common())
    return _HEAD.format(tests=tests.total(), seconds=sum(seconds.values())) + rows


if __name__ == "__main__":
    _PAGE.write_text(table(Path(sys.argv[1])), encoding="utf-8")
