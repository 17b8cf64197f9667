"""Controls of Tables 1 and 2: edges without a cloud, FedAvg of a baseline, constants."""

import json

import jax
import numpy as np
import pytest
from small_mega import DATA, toys, values

from mlecs_jax.data import sentiment
from mlecs_jax.mega import config, controls, runner
from mlecs_jax.models import sentiment_zoo


def parsed(name, **changes):
    return config.parse(values(method__name=name, **changes))


def test_the_constant_is_the_median_and_the_majority_its_sign():
    train = DATA.labels[DATA.canonical == sentiment.TRAIN]
    test = DATA.labels[DATA.canonical == sentiment.TEST]
    seen = []
    found = controls.run(parsed("constant"), DATA, seen.append)
    assert found["server"]["mae"] == pytest.approx(np.abs(test - np.median(train)).mean())
    assert found["server"]["corr"] is None and len(seen) == found["rounds"] == 1
    found = controls.run(parsed("majority"), DATA, seen.append)
    positive = (train > 0).sum() >= (train < 0).sum()
    assert (found["extra"]["answer"] > 0) == positive
    assert found["server"]["acc2_non0"] == pytest.approx(
        ((test[test != 0] > 0) == positive).mean())


def test_edges_alone_train_as_often_as_with_a_cloud_and_never_meet():
    """A slower clock of one edge changes that edge's answers alone; every segment is scored."""
    with toys():
        seen = []
        found = controls.run(parsed("edges_alone", clock__jitter=0.0, train__rounds=2), DATA,
                             seen.append)
        assert found["rounds"] == len(seen) > 2 and "server" not in found
        assert np.isfinite(found["client"]["mae"])
        assert seen[-1]["eval"]["val"]["mae"] < 3 and seen[0]["train"]["mae"] > 0
        again = controls.run(parsed("edges_alone", clock__jitter=0.0, train__rounds=2), DATA,
                             lambda record: None)
        assert again["client"] == found["client"]


def test_like_ours_is_as_many_passes_as_the_three_tiers_make():
    """Synchronous rounds are passes; asynchronous ones are weighed by the edges' segments."""
    with toys():
        one = controls.tiers_recipe(parsed("mult", method__mode="sync", train__rounds=4), DATA)
        other = controls.tiers_recipe(parsed("mult", clock__jitter=0.0, train__rounds=4), DATA)
    assert (one.epochs, one.batch_size, one.patience) == (4, 8, 4)
    assert one.final_rate_fraction == 0.1 and other.epochs > 4


def test_baselines_train_as_long_as_published_where_nothing_cuts_them(tmp_path, monkeypatch):
    """Through the runner, with training itself replaced: what it is asked for."""
    asked = []

    def train(model, data, split, options, seed, on_epoch):
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.centralised, "train_centralised", train)
    for name, limit in (("raven", 0), ("mctn", 0), ("mctn", 7)):
        with pytest.raises(KeyboardInterrupt):
            runner._centralised(parsed(name, train__centralised_epochs=limit), DATA,
                                lambda record: None)
    assert [options.epochs for options in asked] == [500, 200, 7]
    mult = sentiment_zoo.published_options("mult", "mosi")
    assert mult.plateau_patience < mult.patience < mult.epochs


@pytest.mark.slow
def test_a_baseline_is_averaged_over_the_ends(tmp_path):
    """Through the runner: LF-LSTM in synchronous rounds, its summary and page."""
    options = values(method__name="fedavg_lf_lstm", train__rounds=2, data__simulated_segments=120)
    runner.run(options, tmp_path / "run", (), lambda complete, total: None)
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    lines = [json.loads(line)
             for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == found["rounds"] == 2 and "client" not in found
    best = min(lines, key=lambda line: line["eval"]["val"]["mae"])
    assert found["server"] == best["eval"]["test"]
    assert found["extra"]["best_round"] == best["round"] + 1
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lf_lstm"])
def test_a_baseline_runs_through_the_runner(tmp_path, name):
    options = values(method__name=name, data__simulated_segments=120)
    runner.run(options, tmp_path / "run", (), lambda complete, total: None)
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert found["rounds"] == 2 and 0 < found["server"]["mae"] < 4
    assert jax.tree.leaves(found["validation"]["server"])
