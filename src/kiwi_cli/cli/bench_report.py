"""`kiwi bench report`."""

from __future__ import annotations
