"""What late and missing outcomes do to training: `python tests/benchmarks/labels_study.py [--seeds N]`.

Ten days of simulated traffic, 500 requests a day, one model each, in which failures are reported after an hour
and successes after half a day on average, or one failure in two is complained about and nothing else reported. Fitted
as it stands and as `train` handles it, judged on 1,500 other prompts whose true success is known.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain

import numpy as np
import pyarrow as pa

from router_ml.errors import InputError
from training import metrics
from training.dataset import build_dataset
from training.encoder import Encoder, EncoderSettings, prepare_encoder
from training.fit import FitSettings, fit_success
from training.labels import Labels, LabelSettings, Silence
from training.linear import LinearSettings
from training.operating import willingness_grid
from training.outcomes import OUTCOME_SCHEMA, prompt_id_of
from training.synthetic.prompts import Prompts
from training.synthetic.reporting import REPORTING
from training.synthetic.table import simulate
from training.synthetic.traffic import TrafficSettings
from training.synthetic.world import World
from training.trees import TreeSettings

SETTINGS = FitSettings(linear=LinearSettings(scale=0.2, own_scale=1.0), trees=TreeSettings(n_threads=1))
HELD = 1500
SUCCESS, UNKNOWN = {"": Silence.SUCCESS}, {"": Silence.UNKNOWN}
CASES = {
    "all outcomes, at once": ("at-once", LabelSettings()),
    "late, as it stands": ("late", LabelSettings(delay_hours=0.0)),
    "late, waited for (default)": ("late", LabelSettings()),
    "complaints, as they stand": ("complaints", LabelSettings(UNKNOWN)),
    "complaints (default)": ("complaints", LabelSettings()),
    "complaints, silence is success, not waited for": ("complaints", LabelSettings(SUCCESS, 0.0)),
    "complaints, silence is success": ("complaints", LabelSettings(SUCCESS)),
}


def held_rows(world: World, held: Prompts) -> Iterator[pa.RecordBatch]:
    """The prompts to judge on, without an outcome."""
    rows = [
        {"request_id": f"held-{i}", "prompt_id": prompt_id_of(text), "prompt": text, "model": world.models[0]}
        | {"segment": world.segments[segment].name}
        for i, (text, segment) in enumerate(zip(held.texts, held.segment.tolist(), strict=True))
    ]
    yield pa.RecordBatch.from_pylist(rows, schema=OUTCOME_SCHEMA)


def judge(world: World, held: Prompts, reporting: str, settings: LabelSettings, encoder: Encoder) -> np.ndarray:
    """AIQ over the single-model hull, mean of estimate minus truth, and number of outcomes learned from."""
    traffic = TrafficSettings(days=10, requests_per_day=500, reporting=REPORTING[reporting])
    labels = Labels(settings)
    data = build_dataset(chain(labels.watch(simulate(world, traffic)), held_rows(world, held)), encoder)
    index = data.rows.prompt[-HELD:]
    learned = data.where(np.concatenate([labels.mature()[0], np.zeros(HELD, dtype=bool)]))
    fit = fit_success(learned, vocabulary=encoder.tokenizer.vocabulary_size, settings=SETTINGS)
    logits = fit.model.linear.logits(data.prompts, index)
    p = fit.model.probabilities(logits, fit.model.features_of(logits, data.prompts, index))
    p = p[:, [data.models.index(name) for name in world.models]]
    truth, cost = world.true_success(held), world.true_cost(held)
    choices = np.stack([(p - level * cost).argmax(axis=1) for level in willingness_grid(cost)])
    points = metrics.sweep_points(truth, cost, choices)
    known = float((~np.isnan(learned.rows.success)).sum())
    return np.array([metrics.aiq(points) - metrics.single_model_aiq(points), (p - truth).mean(), known])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    encoder = prepare_encoder(EncoderSettings())
    print("| outcomes | AIQ over single models | estimate minus truth | outcomes learned from |\n|---|---|---|---|")
    for name, (reporting, settings) in CASES.items():
        found = []
        for seed in range(args.seeds):
            world = World.create(100 + seed)
            try:
                found.append(judge(world, world.sample_prompts(HELD), reporting, settings, encoder))
            except InputError as refused:
                print(f"| {name} | refused: {str(refused).split(';')[0].split(', which')[0]} | | |", flush=True)
                break
        else:
            gain, bias, rows = np.array(found).T
            error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.nan
            figures = f"{gain.mean():+.4f} (±{error:.4f}) | {bias.mean():+.3f} | {rows.mean():,.0f}"
            print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
