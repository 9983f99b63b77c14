"""How much is measured: in full for figures that stand, quickly to see that everything runs."""

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Effort"]


@dataclass(frozen=True, slots=True)
class Effort:
    """`rounds` of block jobs, each job so long; kills for each way of recovery; starts of a domain; guests alone,
    and twenty at a time; native guests; rounds of hypercalls and messages; native guests one by one, at once, and all
    together in a crowd, and for how long it is idle.
    """

    rounds: int
    job_s: float
    kills: int
    domain_starts: int
    guest_starts: int
    twenties: int
    native_starts: int
    words: int
    crowd_alone: int
    crowd: int
    crowd_whole: int
    idle_s: float


FULL = Effort(
    rounds=5,
    job_s=2.0,
    kills=120,
    domain_starts=100,
    guest_starts=25,
    twenties=5,
    native_starts=100,
    words=1000,
    crowd_alone=20,
    crowd=100,
    crowd_whole=500,
    idle_s=10.0,
)
QUICK = Effort(
    rounds=1,
    job_s=0.1,
    kills=3,
    domain_starts=3,
    guest_starts=2,
    twenties=1,
    native_starts=3,
    words=20,
    crowd_alone=2,
    crowd=4,
    crowd_whole=8,
    idle_s=0.5,
)
