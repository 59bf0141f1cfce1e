"""What a policy would have been worth, from logs of another: value, interval, overlap, verdict.

One row is one request of which the outcome of one model was seen, the one that the logging policy drew.
Array letters: n rows, m models, k clusters (rows that depend on each other), b resamples. For row i the
logging policy chose `action[i]` with probability `propensity[i]`, and `target[i, j]` is the probability with
which the policy that is judged would have chosen model j. Their ratio at the chosen model is the weight
``w = target[i, action[i]] / propensity[i]``; over all rows its mean is 1 where the logging policy could have
made every choice that the judged one makes.
"""

from training.off_policy.clusters import clusters_of
from training.off_policy.compare import OffPolicyEstimate, Verdict, compare, estimate
from training.off_policy.estimators import DEFAULT, ESTIMATORS, Contribution
from training.off_policy.logged import LoggedRows
from training.off_policy.overlap import Overlap, SegmentOverlap

__all__ = [
    "DEFAULT",
    "ESTIMATORS",
    "Contribution",
    "LoggedRows",
    "OffPolicyEstimate",
    "Overlap",
    "SegmentOverlap",
    "Verdict",
    "clusters_of",
    "compare",
    "estimate",
]
