"""Comparing how often something happened with how often it should have. Needs no pytest."""

import numpy as np

ERROR = 1e-9  # probability that what is right fails one comparison


def chi_square_bound(degrees):
    """What a chi-square variable exceeds with probability :data:`ERROR` (Wilson and Hilferty's approximation; z = 6)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 6 * spread**0.5) ** 3


def assert_counts(counts, expected):
    """Counts of independent draws are those expected, by chi-square; cells with less than 5 expected are thrown together."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    assert np.isclose(counts.sum(), expected.sum()), "as many draws as are expected"
    rare = expected < 5
    counts, expected = (np.append(column[~rare], column[rare].sum()) for column in (counts, expected))
    assert counts[expected == 0].sum() == 0, "what is never expected never happens"
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi_square_bound(max(1, len(counts) - 1))
