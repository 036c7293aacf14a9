"""The order of the data: ratios, buckets and epochs, as a function of the seed and the step alone."""

from __future__ import annotations

from collections import Counter

import pytest

from kiwi_cli.errors import UsageError
from kiwi_cli.train.sampler import Interleaving, Sampler

# Sizes and buckets that do not divide evenly, and two data sets that share a bucket.
DATASETS = {
    "images": [("image", 1)] * 23 + [("image", 2)] * 4,
    "videos": [("video", 1)] * 31 + [("video", 2)] * 12,
    "references": [("reference", 1)] * 9,
    "more videos": [("video", 1)] * 17,
}
RATIOS = {"images": 1.0, "videos": 1.0, "references": 1.0, "more videos": 0.5}


def sampler(batch: int = 4, seed: int = 7, **changes: float) -> Sampler:
    return Sampler(DATASETS, RATIOS | changes, batch, seed)


def slots(found: Sampler, steps: int) -> list[tuple[str, int]]:
    return [slot for step in range(steps) for slot in found.batch(step)]


def test_a_batch_is_a_function_of_the_step_alone() -> None:
    """Asked in any order, by any number of processes, after any other steps: that is what resuming rests on."""
    straight = [sampler().batch(step) for step in range(400)]
    assert straight == [sampler().batch(step) for step in range(400)]
    jumping = sampler()
    assert [jumping.batch(step) for step in (399, 3, 250, 3)] == [straight[step] for step in (399, 3, 250, 3)]
    # What is worked out ahead of time does not depend on how far it has been asked for.
    far = sampler()
    far.batch(20_000)
    assert [far.batch(step) for step in range(400)] == straight


def test_the_order_of_the_names_does_not_matter() -> None:
    turned = Sampler(dict(reversed(DATASETS.items())), dict(reversed(RATIOS.items())), 4, 7)
    assert [turned.batch(step) for step in range(50)] == [sampler().batch(step) for step in range(50)]


def test_another_seed_gives_another_order() -> None:
    assert slots(sampler(seed=7), 20) != slots(sampler(seed=8), 20)


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_batch_stays_in_one_bucket(batch: int) -> None:
    found = sampler(batch)
    seen = set()
    for step in range(300):
        buckets = {DATASETS[name][row] for name, row in found.batch(step)}
        assert buckets == {found.bucket(step)}
        seen |= buckets
    assert seen == {bucket for rows in DATASETS.values() for bucket in rows}


def test_data_sets_that_share_a_bucket_share_batches() -> None:
    mixed = [{name for name, _ in sampler(8).batch(step)} for step in range(100)]
    assert {"videos", "more videos"} in mixed


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_the_ratios_hold_at_every_point(batch: int) -> None:
    """Each data set's share is never more than a few batches off, whatever the buckets' sizes."""
    found, counts = sampler(batch), Counter[str]()
    total = sum(RATIOS.values())
    for step in range(1500):
        counts.update(name for name, _ in found.batch(step))
        for name, ratio in RATIOS.items():
            assert abs(counts[name] - (step + 1) * batch * ratio / total) <= 4 * batch, (name, step)
    for name, ratio in RATIOS.items():
        assert counts[name] / (1500 * batch) == pytest.approx(ratio / total, rel=0.02)


def test_every_row_comes_once_before_any_comes_twice() -> None:
    """Within a data set's bucket, epoch after epoch, each in another order."""
    found = slots(sampler(4), 600)
    for name, buckets in DATASETS.items():
        for bucket in set(buckets):
            rows = [row for row, other in enumerate(buckets) if other == bucket]
            seen = [row for other, row in found if other == name and buckets[row] == bucket]
            epochs = [seen[start : start + len(rows)] for start in range(0, len(seen) - len(rows) + 1, len(rows))]
            assert len(epochs) >= 2
            assert all(sorted(epoch) == rows for epoch in epochs)
            if len(rows) > 8:
                assert epochs[0] != epochs[1]
                assert epochs[0] != rows


def test_buckets_of_a_data_set_advance_together() -> None:
    """A row of a rare bucket is seen as often as one of a common bucket."""
    counts = Counter(slots(sampler(2), 4000))
    for name, buckets in DATASETS.items():
        times = [counts[name, row] for row in range(len(buckets))]
        assert max(times) - min(times) <= 0.02 * max(times) + 2


def test_a_bucket_smaller_than_the_batch_repeats_its_rows() -> None:
    few = Sampler({"few": [("video", 1)] * 3}, {"few": 1.0}, 8, 0)
    for step in range(50):
        counts = Counter(few.batch(step))
        assert len(counts) == 3
        assert max(counts.values()) <= 4


def test_ratio_0_leaves_a_data_set_out() -> None:
    names = {name for name, _ in slots(sampler(images=0.0), 300)}
    assert names == set(DATASETS) - {"images"}


def test_epochs_and_shares_are_stated() -> None:
    found = sampler(4)
    assert found.shares == pytest.approx({"images": 2 / 7, "more videos": 1 / 7, "references": 2 / 7, "videos": 2 / 7})
    assert found.epochs(700)["references"] == pytest.approx(4 * 700 * 2 / 7 / 9)
    assert found.describe()[2] == "references: 9 rows, 28.57 % of the samples, 127 epochs in 1000 batches"


@pytest.mark.parametrize(
    ("datasets", "ratios", "batch", "words"),
    [
        ({"a": ["x"]}, {"a": 1.0, "b": 1.0}, 1, "a ratio for no data set: 'b'"),
        ({"a": ["x"], "b": ["x"]}, {"a": 1.0}, 1, "no ratio for the data set 'b'"),
        ({"a": ["x"]}, {"a": -1.0}, 1, "the ratio of 'a' is -1.0"),
        ({"a": ["x"]}, {"a": float("nan")}, 1, "the ratio of 'a' is nan"),
        ({"a": ["x"]}, {"a": 0.0}, 1, "no data set has a ratio above 0"),
        ({"a": []}, {"a": 1.0}, 1, "the data set 'a' has no rows"),
        ({"a": ["x"]}, {"a": 1.0}, 0, "at least 1 sample, not 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(datasets: dict, ratios: dict, batch: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sampler(datasets, ratios, batch, 0)
    assert words in caught.value.message


def test_interleaving_is_even() -> None:
    order = Interleaving([3, 1, 2])
    counts = [0, 0, 0]
    for position in range(5000):
        number, turns = order[position]
        assert turns == counts[number]
        counts[number] += 1
        for other, weight in enumerate((3, 1, 2)):
            assert abs(counts[other] - (position + 1) * weight / 6) <= 3 / 2 + 1
