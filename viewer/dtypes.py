"""The numbers that dtypes hold: their ends, for figures and rules, which import no PyTorch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The magnitudes of a floating dtype.

    Attributes:
        largest: The largest finite number.
        normal: The smallest number of full precision.
        smallest: The smallest number that is not 0; half of it, and what is below, becomes 0.
    """

    largest: float
    normal: float
    smallest: float

    @property
    def bits(self) -> float:
        """The powers of two from the smallest to the largest: the dynamic range."""
        return math.log2(self.largest) - math.log2(self.smallest)


# By the names of run.json. IEEE 754, for bfloat16 Kalamkar et al. 2019, for float8 Micikevicius et al. 2022 (fn, e5m2)
# and Noune et al. 2022 (fnuz): the numbers of torch.finfo.
RANGES = {
    "float64": Range((2 - 2.0**-52) * 2.0**1023, 2.0**-1022, 5e-324),
    "float32": Range((2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149),
    "float16": Range(65504.0, 2.0**-14, 2.0**-24),
    "bfloat16": Range((2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133),
    "float8_e4m3fn": Range(448.0, 2.0**-6, 2.0**-9),
    "float8_e4m3fnuz": Range(240.0, 2.0**-7, 2.0**-10),
    "float8_e5m2": Range(57344.0, 2.0**-14, 2.0**-16),
    "float8_e5m2fnuz": Range(57344.0, 2.0**-15, 2.0**-17),
}
