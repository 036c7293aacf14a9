"""The Wan autoencoder's coders over one chunk of frames: the library's modules and weights, in fewer copies.

The library's convolution joins its cache to its input and pads the result on all sides, its norms work in fp32
copies, its blocks clone what they are given; at full resolution each of those copies is up to a GB. Here a
convolution's input is written once, behind the frames it saw before, and the convolution pads in space by itself.
The result is the library's to rounding: norms and averages sum in another order.

    for chunk in chunks:                        # one frame first, then as many as a latent frame covers
        x = run(layers, chunk, past)            # past = [] at first; updated in place

Both layouts: Wan 2.2 (residual stages with an averaged shortcut) and Wan 2.1 (flat).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AvgDown3D,
    DupUp3D,
    WanAttentionBlock,
    WanCausalConv3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanRMS_norm,
    WanUpBlock,
)
from torch import Tensor, nn

Frames = list[Tensor]
"""The frames that each convolution in time saw last, (B, C, 1 or 2, H, W), in order of execution."""

LayerRun = Callable[[Sequence[nn.Module], Tensor, Frames], Tensor]
"""`run`, or the same compiled."""


@torch.no_grad()
def run(layers: Sequence[nn.Module], x: Tensor, frames: Frames) -> Tensor:
    """One chunk (B, C, f, H, W) through layers, as `flatten` gives them.

    Args:
        frames: of these layers; empty before the first chunk, which is one frame. Filled, later updated in place.
    """
    past = Past(frames, layout_for(x.device))
    norm: Any = None
    shortcut: Any = None
    for layer in layers:
        if isinstance(layer, WanRMS_norm):
            norm = layer  # it belongs to the convolution that follows
        elif isinstance(layer, WanCausalConv3d):
            x = _convolve(layer, past.before(layer, x, norm))
        elif isinstance(layer, WanResidualBlock):
            x = _residual(layer, x, past)
        elif isinstance(layer, WanResample):
            x = _upsample(layer, x, past) if layer.mode.startswith("upsample") else _downsample(layer, x, past)
        elif isinstance(layer, AvgDown3D):
            shortcut = _averaged(layer, x)
        elif isinstance(layer, WanResidualDownBlock):
            x = x.add_(shortcut)
        elif isinstance(layer, DupUp3D):
            shortcut = x
        elif isinstance(layer, WanResidualUpBlock):
            x, shortcut = _add_repeated(layer.avg_shortcut, shortcut, x), None
        else:
            assert isinstance(layer, WanAttentionBlock), type(layer)
            x = layer(x)
    return x


def flatten(blocks: Iterable[nn.Module]) -> list[nn.Module]:
    """Blocks as the layers they consist of, in order, so that a layer's input can go when its result is there.

    A stage with a shortcut becomes the shortcut, its layers and itself: where it begins and where it is added.
    """
    layers: list[Any] = []
    for block in blocks:
        if isinstance(block, WanMidBlock):
            layers.append(block.resnets[0])
            for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
                layers += [attention, resnet]
        elif isinstance(block, WanUpBlock):
            layers += [*block.resnets, *(block.upsamplers or ())]
        elif isinstance(block, WanResidualUpBlock | WanResidualDownBlock):
            sampler = block.upsampler if isinstance(block, WanResidualUpBlock) else block.downsampler
            inner = [*block.resnets, *([] if sampler is None else [sampler])]
            layers += inner if block.avg_shortcut is None else [block.avg_shortcut, *inner, block]
        else:
            layers.append(block)
    return layers


LAYOUTS: dict[str, torch.memory_format] = {"cpu": torch.channels_last_3d, "cuda": torch.channels_last_3d}
"""Kind of device -> order of the dimensions in memory that convolutions are fastest in, measured on an H100: three
chunks of the decoder took 0.442 s against 0.526, of the encoder 0.304 against 0.317, and less memory."""


def layout_for(device: torch.device) -> torch.memory_format:
    """The order that convolutions work in on a device: the table's, else contiguous."""
    return LAYOUTS.get(device.type, torch.contiguous_format)


def ordered(weight: Tensor, device: torch.device) -> Tensor:
    """A coder's parameter in the order that convolutions work in on a device, where it is a convolution's."""
    layout = layout_for(device)
    if weight.ndim == 5:
        return weight.contiguous(memory_format=layout)
    if weight.ndim == 4:  # of one frame at a time
        flat = torch.channels_last if layout == torch.channels_last_3d else torch.contiguous_format
        return weight.contiguous(memory_format=flat)
    return weight


class Past:
    """Hands each convolution, in execution order, the frames it keeps from earlier chunks.

    Attributes:
        first: whether this is the first chunk: before it, all is zero.
    """

    def __init__(self, frames: Frames, layout: torch.memory_format) -> None:
        self.frames, self.layout = frames, layout
        self.first = not frames
        self._slot = 0

    def empty(self, x: Tensor, *shape: int) -> Tensor:
        """A new tensor of x's kind in the layout."""
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=self.layout)

    def before(self, conv: WanCausalConv3d, x: Tensor, norm: WanRMS_norm | None = None) -> Tensor:
        """A convolution's input: the frames that it saw before, then x, or silu(norm(x))."""
        batch, channels, count, height, width = x.shape
        old = conv.kernel_size[0] - conv.stride[0]
        if self.first:
            self.frames.append(self.empty(x, batch, channels, old, height, width).zero_())
        seen = self.frames[self._slot]
        self._slot += 1
        whole = self.empty(x, batch, channels, old + count, height, width)
        whole[:, :, :old] = seen
        if norm is None:
            whole[:, :, old:] = x
        else:
            _activate(norm, x, whole[:, :, old:])
        seen.copy_(whole[:, :, count:])
        return whole

    def start(self, seen: Tensor) -> None:
        """The first chunk skips this convolution; store the history that the second chunk needs."""
        self.frames.append(seen)
        self._slot += 1


def _convolve(conv: WanCausalConv3d, x: Tensor) -> Tensor:
    """A convolution that pads in space by itself, and in time not at all."""
    height, width = conv.kernel_size[1:]
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, (0, height // 2, width // 2))


def _activate(norm: WanRMS_norm, x: Tensor, out: Tensor) -> None:
    """out = silu(norm(x)), with the length of each pixel's channels in fp32."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    factor = norm.scale / length.clamp_min(1e-12)
    if torch.compiler.is_compiling():
        out.copy_(x * factor)  # one kernel once it is compiled; `out=` cannot be traced
    else:
        torch.mul(x, factor, out=out)
    F.silu(out.mul_(norm.gamma), inplace=True)


def _residual(block: WanResidualBlock, x: Tensor, past: Past) -> Tensor:
    hidden = _convolve(block.conv1, past.before(block.conv1, x, block.norm1))
    whole = past.before(block.conv2, hidden, block.norm2)
    del hidden
    result = _convolve(block.conv2, whole)
    del whole
    shortcut = block.conv_shortcut
    return result.add_(_convolve(shortcut, x) if isinstance(shortcut, WanCausalConv3d) else x)


def _upsample(layer: WanResample, x: Tensor, past: Past) -> Tensor:
    """Twice the size, and after the first chunk twice the frames where the layer has a convolution in time."""
    frames = x.unbind(2)
    if layer.mode == "upsample3d":
        if past.first:
            past.start(past.empty(x, *x.shape[:2], 2, *x.shape[3:]).zero_())  # the first frame is not doubled
        else:
            doubled = _convolve(layer.time_conv, past.before(layer.time_conv, x))
            frames = tuple(half for frame in doubled.unbind(2) for half in frame.chunk(2, dim=1))
    conv = layer.resample[1]
    batch, _, _, height, width = x.shape
    result = past.empty(x, batch, conv.out_channels, len(frames), 2 * height, 2 * width)
    for index, frame in enumerate(frames):
        large = F.interpolate(frame, scale_factor=2.0, mode="nearest-exact")
        result[:, :, index] = F.conv2d(large, conv.weight, conv.bias, padding=1)
    return result


def _downsample(layer: WanResample, x: Tensor, past: Past) -> Tensor:
    """Half the size, and after the first chunk half the frames where the layer has a convolution in time."""
    result = torch.stack([layer.resample(frame) for frame in x.unbind(2)], dim=2)
    if layer.mode == "downsample3d":
        if past.first:
            past.start(result.clone())
        else:
            result = _convolve(layer.time_conv, past.before(layer.time_conv, result))
    return result


def _averaged(shortcut: AvgDown3D, x: Tensor) -> Tensor:
    """Means over pixels, frames and channels, as large as the stage's result."""
    time, space = shortcut.factor_t, shortcut.factor_s
    if shortcut.group_size % space**2:
        return shortcut(x)
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).mean((4, 6))
    if missing := -x.shape[2] % time:
        x = F.pad(x, (0, 0, 0, 0, missing, 0))
    x = x.unflatten(2, (-1, time)).permute(0, 1, 3, 2, 4, 5).flatten(1, 2)
    return x.unflatten(1, (shortcut.out_channels, -1)).mean(2)


def _add_repeated(shortcut: DupUp3D, x: Tensor, y: Tensor) -> Tensor:
    """y += x with each channel's value in every pixel, frame and channel that it stands for."""
    time, space = shortcut.factor_t, shortcut.factor_s
    batch, channels, count, height, width = x.shape
    repeated = x[:, :, None].expand(batch, channels, shortcut.repeats, count, height, width)
    repeated = repeated.reshape(batch, shortcut.out_channels, time, space, space, count, height, width)
    if y.shape[2] == 1:
        time, repeated = 1, repeated[:, :, -1:]  # the first frame is not doubled
    repeated = repeated.permute(0, 1, 5, 2, 6, 3, 7, 4)
    y.view(batch, shortcut.out_channels, count, time, height, space, width, space).add_(repeated)
    return y
