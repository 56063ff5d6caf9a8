"""What a metric is: a ratio of two sums over samples, with its unit, its denominator and what it leaves out.

Every metric here is f(sum of numerators / sum of denominators) over samples, f the identity or, for perplexity, exp.
So one bootstrap serves all of them, and a metric's own file only says what one sample adds to the two sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Part = tuple[float, float] | None
"""What one sample adds to numerator and denominator; None where the metric leaves the sample out."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric's definition.

    Attributes:
        name: as options and JSON write it.
        title: as people read it.
        better: which way is better; "neither" where a value can be too low and too high.
        unit: of the value.
        denominator: what is counted below the line.
        excludes: which samples or tokens are left out.
        source: where the definition is from.
        part: what one sample adds.
        binary: whether every sample is either 0 or 1 of 1, so that McNemar's test applies.
        exponential: whether the value is exp of the ratio.
        tokens: whether it counts the model's tokens, so that models with other tokenizers cannot be compared by it.
    """

    name: str
    title: str
    better: Literal["lower", "higher", "neither"]
    unit: str
    denominator: str
    excludes: str
    source: str
    part: Callable[[Any], Part]
    binary: bool = False
    exponential: bool = False
    tokens: bool = False

    def value(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metric from sums of numerators and denominators; NaN where nothing was counted. # [..., 2] -> [...]"""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.divide(sums[..., 0], sums[..., 1])
            return np.exp(ratio) if self.exponential else ratio

    def parts(self, samples: Sequence[Any]) -> list[Part]:
        """What each sample adds."""
        return [self.part(sample) for sample in samples]


def as_sums(parts: Sequence[Part]) -> NDArray[np.float64]:
    """Numerators and denominators; zeros where a sample is left out. # [N, 2]"""
    return np.array([(0.0, 0.0) if part is None else part for part in parts], dtype=np.float64).reshape(-1, 2)
