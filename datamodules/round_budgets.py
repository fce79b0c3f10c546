"""The number of rollouts of each prompt in a round.

Axes: P prompts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def needed_counts(effective_positives_P: Sequence[float], per_prompt: int, cap: float, least: int = 2) -> list[int]:
    """Distribute ``per_prompt`` rollouts per prompt, more to prompts with few effective accepted rollouts.

    The method is that of highest averages (D'Hondt): a prompt's claim is 1 / (1 + its effective accepted rollouts),
    so that the first of them counts most.

    Args:
        effective_positives_P: effective number of accepted rollouts of each prompt so far.
        per_prompt: the even share, at least ``least``.
        cap: largest number of rollouts of a prompt, as a multiple of the even share.
        least: smallest number of rollouts of a prompt.
    """
    claim_P = [1 / (1 + positives) for positives in effective_positives_P]
    most = max(least, int(cap * per_prompt))
    count_P = [least] * len(claim_P)
    queue = [(-claim / least, index) for index, claim in enumerate(claim_P)]
    heapq.heapify(queue)
    for _ in range(per_prompt * len(claim_P) - sum(count_P)):
        if not queue:
            break
        _, index = heapq.heappop(queue)
        count_P[index] += 1
        if count_P[index] < most:
            heapq.heappush(queue, (-claim_P[index] / count_P[index], index))
    return count_P
