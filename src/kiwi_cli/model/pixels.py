"""Frames as people have them, (F, H, W, 3) uint8 RGB, and pixels as the autoencoder takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from kiwi_cli.errors import UsageError
from kiwi_cli.model.transfer import send


def check_frames(frames: np.ndarray, multiple: int) -> None:
    """Refuse what is not (F, H, W, 3) uint8 with H and W multiples of `multiple`.

    Raises:
        UsageError: with what would do.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise UsageError(
            f"frames must be (F, H, W, 3) uint8, not {tuple(frames.shape)} {frames.dtype}",
            "convert them to 8-bit RGB",
        )
    if frames.shape[1] % multiple or frames.shape[2] % multiple:
        raise UsageError(
            f"a size of {frames.shape[2]}x{frames.shape[1]} is not a multiple of {multiple}",
            "scale or crop the frames first; `kiwi edit` does it by itself",
        )


def chunk_frames(frames: np.ndarray, stride: int) -> Iterator[np.ndarray]:
    """One frame, then `stride` at a time; the last frame is repeated to fill the last chunk."""
    yield frames[:1]
    for start in range(1, len(frames), stride):
        chunk = frames[start : start + stride]
        if missing := stride - len(chunk):
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)])
        yield chunk


def to_pixels(frames: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """(f, H, W, 3) uint8 -> (1, 3, f, H, W) fp32 in [-1, 1], on a device."""
    # As bytes to the device, and converted there: a quarter of the transfer, no work on the host.
    pixels = send(torch.from_numpy(np.require(frames, requirements=["C", "W"])), torch.device(device))
    return pixels.permute(3, 0, 1, 2)[None].to(torch.float32) * (2.0 / 255.0) - 1.0


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """(1, 3, f, H, W) in [-1, 1] -> (f, H, W, 3) uint8, rounded, on the same device."""
    scaled = ((pixels[0] + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    # Bytes, in the order that files want, before they leave the device: a quarter of the transfer, no work on the host.
    return scaled.permute(1, 2, 3, 0).contiguous()


def to_host(chunks: Iterable[torch.Tensor]) -> Iterator[np.ndarray]:
    """Chunks on a device -> on the host, in order.

    On CUDA a chunk is handed over when the next one's work is queued, so that the device has something to do while the
    host copies, converts and writes. Elsewhere each is handed over at once.
    """
    waiting: tuple[torch.Tensor, torch.cuda.Event] | None = None
    for chunk in chunks:
        if chunk.device.type != "cuda":
            yield chunk.cpu().numpy()
            continue
        host = torch.empty(chunk.shape, dtype=chunk.dtype, pin_memory=True)
        host.copy_(chunk, non_blocking=True)
        there = torch.cuda.Event()
        there.record(torch.cuda.current_stream(chunk.device))
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0].numpy()
        waiting = host, there
    if waiting is not None:
        waiting[1].synchronize()
        yield waiting[0].numpy()
