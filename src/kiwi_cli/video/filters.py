"""A chain of FFmpeg's filters, one frame in and one out."""

from __future__ import annotations

from fractions import Fraction

import av


class Chain:
    """Frames of one size and format through filters, one after the other; the graph is kept between frames.

    Args:
        like: a frame as those that will come.
        filters: (name, arguments), in order.
    """

    def __init__(self, like: av.VideoFrame, *filters: tuple[str, str]) -> None:
        self._graph = av.filter.Graph()  # kept: its parts die with it
        self._source = self._graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=like.time_base or Fraction(1, 25)
        )
        last = self._source
        for name, arguments in filters:
            step = self._graph.add(name, arguments)
            last.link_to(step)
            last = step
        self._sink = self._graph.add("buffersink")
        last.link_to(self._sink)
        self._graph.configure()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A new frame, with the frame's properties."""
        self._source.push(frame)
        return self._sink.pull()  # type: ignore[return-value]
