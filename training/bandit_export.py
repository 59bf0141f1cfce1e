"""Logged requests in the formats of other tools, so that anyone can check the estimates: Open Bandit Pipeline, VW.

Both hold the rows that `evaluate` judges by, one metric of them, and what the version would have done.
Array letters: n rows, m models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.types import Estimates
from training.atomic import fresh_file
from training.dataset import Dataset
from training.off_policy.logged import LoggedRows
from training.off_policy.policy_rows import PolicyRows

LOWER_IS_BETTER = ("cost_usd", "latency_ms")


def export_bandit(path: Path, form: str, found: PolicyRows, metric: str, data: Dataset, estimates: Estimates) -> int:
    """Write one file, whole or not at all: `obp` as .npz without pickles, `dsjson` as lines; returns its rows."""
    n_rows = int(_known(found, metric)[1].sum())
    with fresh_file(path) as scratch, scratch.open("wb") as stream:
        if form == "obp":
            np.savez_compressed(stream, allow_pickle=False, **obp_arrays(found, metric, data, estimates))
        else:
            stream.writelines(dsjson_lines(found, metric, data, estimates))
    return n_rows


def obp_arrays(found: PolicyRows, metric: str, data: Dataset, estimates: Estimates) -> dict[str, NDArray[Any]]:
    """The `bandit_feedback` dictionary of Open Bandit Pipeline, as arrays.

    `n_rounds`, `n_actions` (scalars) · `context` [n, m + 1 + s]: estimated success of each model, then a one for an
    unknown segment or for one of the s known · `action` [n] · `reward` [n] · `position` [n], zeros ·
    `pscore` [n] · `action_context` [m, m], the identity · `expected_reward` [n, m], NaN: of real logs it is unknown.
    Besides `action_dist` [n, m, 1] of the version and `estimated_rewards_by_reg_model` [n, m, 1], as its estimators
    take them, and `model` [m], the names. Rows whose reward is unknown are left out.
    """
    rows, known = _known(found, metric)
    m = len(data.models)
    segment = np.eye(len(data.segments) + 1)[found.segment[known]]
    p_success = estimates.p_success[found.at[known]].astype(np.float64)
    return {
        "n_rounds": np.array(int(known.sum())),
        "n_actions": np.array(m),
        "context": np.column_stack([p_success, segment]),
        "action": rows.action[known],
        "reward": rows.reward[known],
        "position": np.zeros(int(known.sum()), dtype=np.int64),
        "pscore": rows.propensity[known],
        "action_context": np.eye(m, dtype=np.int64),
        "expected_reward": np.full((int(known.sum()), m), np.nan),
        "action_dist": rows.target[known][:, :, None],
        "estimated_rewards_by_reg_model": rows.q[known][:, :, None],
        "model": np.array(data.models),
    }


def dsjson_lines(found: PolicyRows, metric: str, data: Dataset, estimates: Estimates) -> Iterator[bytes]:
    """Lines of Vowpal Wabbit's dsjson, with `--cb_adf --dsjson`; one action per model, in the bundle's order.

    `_label_cost` is the cost or latency, or minus the success; `_label_Action` counts from 1 and `_labelIndex` from
    0. `a` lists the logged action first; `p` holds its probability alone, for of the others' the log tells nothing.
    Names that VW does not know are left alone by it: `_target_probability` of the version, `_q` its estimate of the
    logged action. The order of the names is that of VW's own logs, which some of its parsers rely on.
    Rows whose reward is unknown are left out.
    """
    rows, known = _known(found, metric)
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    segments = ("unknown", *data.segments)
    for i in np.flatnonzero(known).tolist():
        action, probability = int(rows.action[i]), float(rows.propensity[i])
        line = {
            "_label_cost": sign * float(rows.reward[i]),
            "_label_probability": probability,
            "_label_Action": action + 1,
            "_labelIndex": action,
            "Timestamp": _timestamp(int(found.rows.time_us[i])),
            "Version": "1",
            "EventId": f"{data.fingerprint[:12]}-{i}",
            "a": [action + 1, *(k + 1 for k in range(len(data.models)) if k != action)],
            "c": {
                "Shared": {"segment": segments[found.segment[i]]},
                "_multi": [
                    {"Model": {"name": name, "p_success": float(p)}}
                    for name, p in zip(data.models, estimates.p_success[found.at[i]].tolist(), strict=True)
                ],
            },
            "p": [probability],
            "_target_probability": float(rows.target[i, action]),
            "_q": float(rows.q[i, action]),
        }
        yield orjson.dumps({name: value for name, value in line.items() if value is not None}) + b"\n"


def _known(found: PolicyRows, metric: str) -> tuple[LoggedRows, NDArray[np.bool_]]:
    if metric not in found.metrics:
        raise InputError(f"`{metric}` is known of too few requests to export; known: {', '.join(found.metrics)}")
    rows = found.metrics[metric].rows
    return rows, rows.known


def _timestamp(time_us: int) -> str | None:
    return None if time_us < 0 else f"{np.datetime64(time_us, 'us')}Z"
