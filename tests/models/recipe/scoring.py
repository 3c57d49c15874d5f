"""Word errors: the distance between the words that were recognised and those that were spoken."""

import numpy as np


def matched(a: list[str], b: list[str]) -> tuple[int, list[tuple[int, int]]]:
    """Levenshtein distance and the pairs of equal words on one shortest path."""
    cost = np.zeros((len(a) + 1, len(b) + 1), int)
    cost[:, 0], cost[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (x != y), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j, pairs = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1] and cost[i, j] == cost[i - 1, j - 1]:
            pairs.append((i - 1, j - 1))
        step = min((cost[i - 1, j - 1], 0), (cost[i - 1, j], 1), (cost[i, j - 1], 2))[1]
        i, j = i - (step != 2), j - (step != 1)
    return int(cost[-1, -1]), pairs
