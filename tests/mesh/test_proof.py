"""Explain never lies: random configurations on real proxies, what it says beside what requests did. `make proof` tries 300 of them.

Most seeds are other ones each time, so that all runs together prove more than one; a failure prints its seed, and `prove.py --seed N` makes it again.
"""

from __future__ import annotations

import random

from proof.prove import cells, prove

CONFIGURATIONS = 8
ONCE_WRONG = [620714]
"""Seeds with which explain was wrong: endpoints on a plain and a TLS port in a cluster that starts TLS."""


def test_explain_says_what_requests_do(own_mesh):
    seeds = [*ONCE_WRONG, *random.sample(range(10**6), CONFIGURATIONS - len(ONCE_WRONG))]
    with cells(2) as provers:
        results = prove(provers, seeds)
    wrong = [text for result in results for text in result.wrong]
    assert not wrong, "\n".join(wrong)
    assert sum(result.tried for result in results) == 10 * CONFIGURATIONS
