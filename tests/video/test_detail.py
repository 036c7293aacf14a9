"""The source's detail in the result: what is recovered, what must not come back, and that a stream is a stream."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from kiwi_cli.bench.tiny.quality import edge_correlation, edge_strength, psnr
from kiwi_cli.video.detail import Detail, DetailSettings, Triple, transfer
from kiwi_cli.video.detail.cores import Cores
from kiwi_cli.video.detail.moments import block_moments
from kiwi_cli.video.detail.stream import jumps

FULL, WORKING = (384, 216), (128, 72)  # width, height


def picture(seed: int, size: tuple[int, int] = FULL) -> np.ndarray:
    """Colours at many scales, sharp down to the pixel."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for cell, weight in ((96, 60), (24, 40), (8, 25), (3, 18), (1, 8)):
        small = rng.uniform(-1, 1, (-(-size[1] // cell), -(-size[0] // cell), 3))
        total += weight * small.repeat(cell, 0).repeat(cell, 1)[: size[1], : size[0]]
    return np.clip(total + 127, 0, 255).astype(np.uint8)


def coded(frame: np.ndarray, blur: float = 1.0) -> np.ndarray:
    """A frame at the working size as a blurring autoencoder gives it back."""
    small = Image.fromarray(frame).resize(WORKING, Image.Resampling.LANCZOS)
    return np.asarray(small.filter(ImageFilter.GaussianBlur(blur)))


def plain(edited: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(edited).resize(FULL, Image.Resampling.LANCZOS))


def grade(frame: np.ndarray) -> np.ndarray:
    mixed = frame @ np.array([[0.7, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.5]]) + (5.0, 12.0, 40.0)
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def disc(x: int = 190, y: int = 108, radius: int = 45) -> np.ndarray:
    rows, columns = np.mgrid[: FULL[1], : FULL[0]]
    return np.hypot(columns - x, rows - y) < radius


def result_of(edited: np.ndarray, source: np.ndarray, **settings: object) -> np.ndarray:
    """One frame with detail; both pictures at full size go through the autoencoder."""
    (result,) = transfer([Triple(coded(edited), coded(source), source)], DetailSettings(**settings))  # type: ignore[arg-type]
    return result


@pytest.mark.parametrize("steady", [False, True])
def test_an_edit_that_changes_nothing_gives_the_source_back(steady: bool) -> None:
    frames = [picture(seed) for seed in range(3)]
    results = list(transfer(((coded(f), coded(f), f) for f in frames), DetailSettings(steady=steady)))
    np.testing.assert_array_equal(results, frames)


def test_sixteen_bits_stay_sixteen() -> None:
    source = picture(0).astype(np.uint16) * 257 + 77
    small = coded(picture(0))
    (same,) = transfer([(small, small, source)])
    np.testing.assert_array_equal(same, source)
    (negative,) = transfer([(255 - small, small, source)])
    assert negative.dtype == np.uint16
    error = negative.astype(np.float64) / 257 - (255 - source / 257)
    assert np.sqrt(np.mean(error**2)) < 2.5


def test_a_grade_is_recovered_at_full_size() -> None:
    source = picture(1)
    truth = grade(source)
    assert psnr(plain(coded(truth)), truth) < 29
    assert psnr(result_of(truth, source), truth) > 44


def test_what_is_far_from_a_local_edit_is_the_sources() -> None:
    source, other = picture(2), picture(3)
    truth = np.where(disc()[..., None], other, source)
    result = result_of(truth, source)
    far = ~disc(radius=110)
    np.testing.assert_array_equal(result[far], source[far])


def test_an_inserted_thing_survives() -> None:
    source, other = picture(2), np.roll(picture(3), 40, axis=1)
    truth = np.where(disc()[..., None], other, source)
    inside = disc(radius=35)
    assert psnr(result_of(truth, source), truth, inside) > psnr(plain(coded(truth)), truth, inside) - 0.3
    # It is there in full strength, not a trace of it.
    smooth = [
        np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(6)))[inside].astype(float).ravel()
        for f in (result_of(truth, source), truth, source)
    ]
    assert np.abs(smooth[0] - smooth[1]).mean() < 0.15 * np.abs(smooth[2] - smooth[1]).mean()


def test_a_removed_thing_leaves_no_edges() -> None:
    truth, thing = picture(4), np.roll(picture(5), (13, 37), (0, 1))  # edges in other places
    source = np.where(disc()[..., None], thing, truth)
    inside = disc(radius=35)
    result = result_of(truth, source)

    def edges(frame: np.ndarray) -> np.ndarray:
        return edge_strength(frame[None])[0][inside]

    assert abs(np.corrcoef(edges(result), edges(source))[0, 1]) < 0.1
    assert edge_correlation(result[None], truth[None]) > 0.8  # and the rest is sharp
    assert edge_correlation(plain(coded(truth))[None], truth[None]) < 0.6


def moving(count: int = 9) -> Iterator[Triple]:
    """A panning picture whose edit is another one in each frame's light."""
    whole = picture(6, (FULL[0] + 60, FULL[1]))
    for number in range(count):
        source = np.ascontiguousarray(whole[:, 5 * number : 5 * number + FULL[0]])
        edited = np.clip(coded(grade(source)).astype(int) + (number * 7) % 5 - 2, 0, 255).astype(np.uint8)
        yield Triple(edited, coded(source), source)


@pytest.mark.parametrize("steady", [False, True])
def test_each_frame_comes_a_few_late_and_equals_what_its_neighbours_alone_give(steady: bool) -> None:
    settings = DetailSettings(steady=steady)
    triples = list(moving())
    detail = Detail(settings)
    due, results = [], []
    for edited, round_trip, _ in triples:
        detail.add(edited, round_trip)
        due.append(detail.due)
        if detail.due:
            results.append(detail.result(triples[len(results)].source))
    while detail.waiting:
        results.append(detail.result(triples[len(results)].source))
    late = 4 if steady else 2
    assert due == [False] * late + [True] * (9 - late) and len(results) == 9
    for number in (0, 4, 8):
        near = triples[max(0, number - late) : number + late + 1]
        alone = list(transfer(near, settings))[min(number, late)]
        np.testing.assert_array_equal(results[number], alone)


def test_a_stream_can_begin_again_and_may_be_empty() -> None:
    detail = Detail()
    edited, round_trip, source = next(moving())
    detail.add(edited, round_trip)
    first = detail.result(source)
    assert not detail.waiting
    detail.add(edited, round_trip)
    np.testing.assert_array_equal(first, detail.result(source))
    assert list(transfer([])) == []


def test_strips_equal_the_whole() -> None:
    from kiwi_cli.video.detail.apply import apply
    from kiwi_cli.video.detail.cores import Cores

    triple = next(moving())
    edited, round_trip, source = (torch.from_numpy(x.copy()) for x in triple)
    maps = torch.rand(10, 18, 32, generator=torch.Generator().manual_seed(0))
    whole = apply(maps, edited, round_trip, source, Cores(1), strip=10**6)
    for strip, count in ((1, 1), (7, 3), (64, 2)):
        np.testing.assert_array_equal(apply(maps, edited, round_trip, source, Cores(count), strip=strip), whole)


@pytest.mark.parametrize("size", [(64, 96), (150, 100), (31, 40), (70, 256), (151, 80), (400, 300), (3, 2)])
def test_a_frame_is_enlarged_in_strips_as_torch_does_it_whole(size: tuple[int, int]) -> None:
    from kiwi_cli.video.detail.enlarge import Enlarged, resized

    height, width = 151, 256
    noise = torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    frame = (noise * 120 + 60).to(torch.uint8)  # overshoots are no matter here: bytes are clipped on the way
    whole = resized(frame.float(), height, width, "bicubic").transpose(1, 2)
    cases = {
        "bytes": (frame, {}, 0.7),  # rounded once
        "exact bytes": (frame, {"exact": True}, 0.05),
        "floats": (frame.float(), {}, 0.05),
        "sums": (frame.to(torch.int16) * 9, {"scale": 9.0}, 0.05),
    }
    everything = slice(0, height)
    for name, (given, how, most) in cases.items():
        at_once = Enlarged((given,), (height, width), everything, **how).rows(everything)[:, 0]
        torch.testing.assert_close(at_once, whole, atol=most, rtol=0)
        strips = []
        for top in range(0, height, 40):
            enlarged = Enlarged((given,), (height, width), slice(top, min(top + 40, height)), **how)
            strips += [
                enlarged.rows(slice(row, min(row + 7, top + 40, height)))[:, 0]
                for row in range(top, min(top + 40, height), 7)
            ]
        torch.testing.assert_close(torch.cat(strips), at_once, atol=0 if name == "bytes" else 1e-3, rtol=0)


@pytest.mark.parametrize(("count", "width"), [(160, 1920), (32, 384), (9, 1447), (40, 37), (1, 5)])
def test_maps_are_stretched_as_torch_does_it(count: int, width: int) -> None:
    """In pieces: several, and one where the width has no divisor. What is the same everywhere stays so, exactly."""
    from kiwi_cli.video.detail.enlarge import stretched

    rows = torch.rand(7, count, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(rows[None], size=width, mode="linear")[0]
    torch.testing.assert_close(stretched(rows, width).transpose(0, 1).flatten(1), expected, atol=1e-4, rtol=0)
    assert (stretched(torch.ones_like(rows), width) == 1).all()


def test_cores_share_the_work_and_say_what_went_wrong() -> None:
    from kiwi_cli.video.detail.cores import Cores

    def halved(number: int) -> int:
        if number % 2:
            raise ValueError(f"{number} is odd")
        return number // 2

    for cores in (Cores(1), Cores(3)):
        assert cores.each(halved, range(0, 40, 2)) == list(range(20))
        with pytest.raises(ValueError, match="is odd"):
            cores.each(halved, range(20))
        before = torch.get_num_threads()
        with cores.alone():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == before


def test_a_cut_starts_anew() -> None:
    """Around a cut, results are those of each shot alone."""
    first = [Triple(255 - coded(picture(7)), coded(picture(7)), picture(7))] * 4
    second = [Triple(coded(grade(picture(8))), coded(picture(8)), picture(8))] * 4
    together = list(transfer([*first, *second]))
    np.testing.assert_array_equal(together, [*transfer(first), *transfer(second)])


@pytest.mark.parametrize("steady", [False, True])
def test_where_the_edit_becomes_another_one_each_keeps_its_detail(steady: bool) -> None:
    """As within a part that was made anew with other words: bright, then dark, over one source."""
    source, settings = picture(7), DetailSettings(steady=steady)
    bright = [Triple((coded(source) * 0.4 + 150).astype(np.uint8), coded(source), source)] * 4
    dark = [Triple((coded(source) * 0.3).astype(np.uint8), coded(source), source)] * 4
    together = list(transfer([*bright, *dark], settings))
    np.testing.assert_array_equal(together, [*transfer(bright, settings), *transfer(dark, settings)])


def test_a_fast_clip_in_negative_is_one_edit() -> None:
    clip = [np.roll(picture(7), 90 * number, axis=1) for number in range(3)]
    moments = [block_moments(*map(torch.tensor, (255 - coded(f), coded(f))), Cores(1)) for f in clip]
    assert not any(jumps(*pair) for pair in pairwise(moments))


def test_a_flickering_edit_is_steadied() -> None:
    """A model whose frames jump in brightness, over a source that stands still."""
    source = picture(9)
    jumps = (0, 6, -5, 4, -6) * 4
    edited = [np.clip(coded(grade(source)).astype(int) + jump, 0, 255).astype(np.uint8) for jump in jumps]
    triples = [(one, coded(source), source) for one in edited]

    def unrest(frames: list[np.ndarray]) -> float:
        means = np.array([frame.mean() for frame in frames[4:-4]])
        return float(np.abs(np.diff(means)).mean())

    assert unrest(list(transfer(triples, DetailSettings(steady=True)))) < 0.1 * unrest(edited)
    assert unrest(list(transfer(triples))) <= 1.05 * unrest(edited)


@pytest.mark.parametrize("size", [(33, 31), (16, 40), (130, 70)])
def test_any_size_will_do(size: tuple[int, int]) -> None:
    small = picture(10, size)
    source = picture(11, (size[0] * 3 + 1, size[1] * 2 + 1))
    (result,) = transfer([(255 - small, small, source)])
    assert result.shape == source.shape and result.dtype == np.uint8


def noisy(frame: np.ndarray, seed: int) -> np.ndarray:
    """A frame as an autoencoder gives it back that adds noise of 1 %."""
    noise = np.random.default_rng(seed).normal(0, 2.55, (WORKING[1], WORKING[0], 3))
    return np.clip(coded(frame) + noise + 0.5, 0, 255).astype(np.uint8)


def test_noise_of_the_autoencoder_is_left_out() -> None:
    """A grade of a picture that stands still, through noise of another kind in every frame of edit and round trip."""
    source = picture(12)
    truth = grade(source)
    edited = [noisy(truth, 2 * number) for number in range(7)]
    triples = [Triple(one, noisy(source, 2 * number + 1), source) for number, one in enumerate(edited)]
    results = list(transfer(triples))
    assert min(psnr(result, truth) for result in results[2:-2]) > 42
    assert psnr(result_of(truth, source), truth) - psnr(results[3], truth) < 8  # of what there is without noise

    def unrest(frames: list[np.ndarray]) -> float:
        return float(np.abs(np.diff(np.stack(frames[2:-2]).astype(np.float32), axis=0)).mean())

    assert unrest(results) < 0.5 * unrest([plain(one) for one in edited])


def test_a_clean_autoencoder_has_no_noise() -> None:
    from kiwi_cli.video.detail.noise import noise_of

    small = np.asarray(Image.fromarray(picture(13)).resize(WORKING, Image.Resampling.LANCZOS))
    frames = coded(picture(13)), noisy(picture(13), 0), small
    tensors = [torch.from_numpy(frame.copy()) for frame in frames]
    clean, grainy = (noise_of(one, tensors[2], Cores(1)) for one in tensors[:2])
    assert clean == pytest.approx(0, abs=1e-5) and grainy == pytest.approx(1e-4, rel=0.3)


def test_a_frame_of_one_colour_has_no_noise() -> None:
    """A flash, a fade to black: nothing that a mixture could be told from."""

    from kiwi_cli.video.detail.noise import noise_of

    for level in (1.0, 0.37, 0.0):
        frame = torch.full((80, 144, 3), 255 * level)
        assert noise_of(frame, frame, Cores(1)) == 0 and noise_of(frame * 0.99, frame, Cores(1)) == 0


@pytest.mark.parametrize("blur", [2, 2.5])
def test_a_removed_thing_leaves_no_edges_where_its_surroundings_are_trusted(blur: float) -> None:
    """Things hardly larger than the box of a map, through an autoencoder that leaves little of them: on average."""
    inside, found = disc(radius=29), []
    for seed in range(14, 26, 2):
        truth, thing = picture(seed), np.roll(picture(seed + 1), (13, 37), (0, 1))
        source = np.where(disc(radius=36)[..., None], thing, truth)
        (result,) = transfer([Triple(coded(truth, blur), coded(source, blur), source)], DetailSettings(steady=True))
        edges = [edge_strength(frame[None])[0][inside] for frame in (result, source)]
        found.append(np.corrcoef(*edges)[0, 1])
    assert abs(np.mean(found)) < 0.1


@pytest.mark.parametrize("steady", [False, True])
def test_no_frame_at_full_size_is_kept(steady: bool) -> None:
    """A source is asked for when its result is due, and let go with it."""
    detail = Detail(DetailSettings(steady=steady))
    sources = []
    for edited, round_trip, source in moving():
        detail.add(edited, round_trip)
        if detail.due:
            frame = source.copy()
            sources.append(weakref.ref(frame))
            assert detail.result(frame).shape == frame.shape
            del frame
            assert not any(source() is not None for source in sources)
    assert sources


def test_what_windows_repeat_is_averaged_out() -> None:
    """An edit whose windows of four frames all have the same unrest: of each but the first and last nothing is left."""
    frame = picture(31)
    unrest = (0, 6, 3, -4)
    triples = [Triple(grade(coded(frame)) + np.uint8(unrest[n % 4] + 8), coded(frame), frame) for n in range(20)]

    def left(period: int) -> float:
        results = list(transfer(triples, DetailSettings(steady=True, period=period)))
        return float(np.abs(np.diff(np.stack(results[4:-4]).astype(np.float32), axis=0)).mean())

    assert left(4) < 0.001 and left(5) > 0.1
