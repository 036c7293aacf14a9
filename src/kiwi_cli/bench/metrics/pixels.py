"""Figures that come from the pixels alone. Frames are (F, H, W, 3) uint8, source and edit of the same shape.

They say what moved, flickered or stayed, not whether an edit is good: a style change is meant to differ everywhere.
"""

from __future__ import annotations

import numpy as np

BLOCK = 8  # pixels: side of a block that moves as one
REACH = 6  # pixels: how far a block may have moved between two frames
MATCHED = 6.0  # mean absolute difference, of 255, up to which a block counts as found again
PEAK = 255.0


def psnr(source: np.ndarray, edit: np.ndarray) -> float:
    """Peak signal to noise of the edit against the source, dB; 100 for equal frames."""
    error = np.mean((source.astype(np.float64) - edit.astype(np.float64)) ** 2)
    return 100.0 if error == 0 else float(min(100.0, 10 * np.log10(PEAK**2 / error)))


def ssim(source: np.ndarray, edit: np.ndarray, window: int = 8) -> float:
    """Structural similarity of the luminance, mean over frames and windows of `window` pixels (Wang et al. 2004,
    with flat windows)."""
    values = []
    for first, second in zip(source, edit, strict=True):
        a, b = (_box(_luminance(frame), window) for frame in (first, second))
        mean_a, mean_b = a.mean(axis=(-2, -1)), b.mean(axis=(-2, -1))
        var_a, var_b = a.var(axis=(-2, -1)), b.var(axis=(-2, -1))
        both = ((a - mean_a[..., None, None]) * (b - mean_b[..., None, None])).mean(axis=(-2, -1))
        c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
        top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        values.append(float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))))
    return float(np.mean(values))


def flicker(frames: np.ndarray) -> float | None:
    """How unsteady the brightness is: mean absolute second difference over time, of 255; None below three frames.

    Even motion and slow fades cancel, jumps from frame to frame do not.
    """
    if len(frames) < 3:
        return None
    light = np.stack([_luminance(frame) for frame in frames])
    return float(np.abs(light[2:] - 2 * light[1:-1] + light[:-2]).mean())


def warp_error(source: np.ndarray, edit: np.ndarray) -> float | None:
    """Whether the edit moves as the source does: each edited frame against the one before it, moved by the source's
    own motion (by block matching); mean absolute difference, of 255, where the source's blocks were found again.
    None for pictures, and where nothing was found."""
    total, count = 0.0, 0
    for k in range(1, len(source)):
        shifts, residual = block_motion(_luminance(source[k - 1]), _luminance(source[k]))
        found = residual <= MATCHED
        if found.any():
            before, now = _luminance(edit[k - 1]), _luminance(edit[k])
            total += float(_moved_difference(before, now, shifts)[found].sum())
            count += int(found.sum())
    return total / count if count else None


def block_motion(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each block of `now` was in `before`.

    Args:
        before, now: (H, W) luminance.

    Returns:
        shifts (h, w, 2) in pixels, down and right, and what is left (h, w), mean absolute difference.
    """
    height, width = (side // BLOCK for side in now.shape)
    now = now[: height * BLOCK, : width * BLOCK]
    padded = np.pad(before, REACH, mode="edge")
    best = np.full((height, width), np.inf)
    shifts = np.zeros((height, width, 2), dtype=np.int64)
    steps = sorted(
        ((down, right) for down in range(-REACH, REACH + 1) for right in range(-REACH, REACH + 1)),
        key=lambda step: step[0] ** 2 + step[1] ** 2,  # where blocks look alike, the shortest way wins
    )
    for down, right in steps:
        top, left = REACH - down, REACH - right
        there = padded[top : top + now.shape[0], left : left + now.shape[1]]
        difference = np.abs(now - there).reshape(height, BLOCK, width, BLOCK).mean(axis=(1, 3))
        better = difference < best - 1e-9
        best[better] = difference[better]
        shifts[better] = (down, right)
    return shifts, best


def _moved_difference(before: np.ndarray, now: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(h, w) mean absolute difference of each block of `now` to `before` moved by `shifts`."""
    padded = np.pad(before, REACH, mode="edge")
    height, width = shifts.shape[:2]
    rows = np.arange(height * BLOCK) + REACH
    columns = np.arange(width * BLOCK) + REACH
    down = np.repeat(np.repeat(shifts[..., 0], BLOCK, 0), BLOCK, 1)
    right = np.repeat(np.repeat(shifts[..., 1], BLOCK, 0), BLOCK, 1)
    there = padded[rows[:, None] - down, columns[None] - right]
    difference = np.abs(now[: height * BLOCK, : width * BLOCK] - there)
    return difference.reshape(height, BLOCK, width, BLOCK).mean(axis=(1, 3))


def _luminance(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) float64, Rec. 601 weights."""
    return frame.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def _box(image: np.ndarray, window: int) -> np.ndarray:
    """(H, W) -> (h, w, window, window): windows half a side apart."""
    side = min(window, *image.shape)
    return np.lib.stride_tricks.sliding_window_view(image, (side, side))[:: max(side // 2, 1), :: max(side // 2, 1)]
