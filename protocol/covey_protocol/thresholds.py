"""How many of a roster are needed for what; all of it follows from the roster's size n alone.

With c = ⌈n/3⌉ − 1 colluders tolerated and at least ``H_MIN`` = 3 honest members in every sum:

- t = ⌊2n/3⌋ + 1 signatures or shares. Two certificates on different sets would need 2t > n + c signers, so some honest
  device would have had to sign both, which it never does.
- a_min = c + H_MIN members in a sum, so that no colluders can subtract themselves down to fewer than three others.
"""

from __future__ import annotations

H_MIN = 3
ROSTER_MIN = 4
ROSTER_MAX = 32


def colluders(n: int) -> int:
    """Return c, the number of colluding members a roster of n tolerates."""
    return -(-n // 3) - 1


def threshold(n: int) -> int:
    """Return t, the number of members whose shares or signatures are needed."""
    return 2 * n // 3 + 1


def accepted_min(n: int) -> int:
    """Return a_min, the smallest set whose sum may be unmasked."""
    return colluders(n) + H_MIN


def honest_min(n: int, a_min: int = 0) -> int:
    """Return how many honest members every sum over a roster of at most n holds.

    Args:
        n: Members of the largest roster.
        a_min: Smallest set that is summed, where it exceeds the formula's.
    """
    return max(accepted_min(n), a_min) - colluders(n)
