"""How much is measured: in full for figures that stand, quickly to see that everything runs."""

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Effort"]


@dataclass(frozen=True, slots=True)
class Effort:
    """`rounds` of block jobs, each job so long; kills for each way of recovery; starts of a domain; guests alone,
    and twenty at a time; native guests.
    """

    rounds: int
    job_s: float
    kills: int
    domain_starts: int
    guest_starts: int
    twenties: int
    native_starts: int


FULL = Effort(rounds=5, job_s=2.0, kills=120, domain_starts=100, guest_starts=25, twenties=5, native_starts=100)
QUICK = Effort(rounds=1, job_s=0.1, kills=3, domain_starts=3, guest_starts=2, twenties=1, native_starts=3)
