"""Procedural clips with exact truth: scenes, their edits, and the words for them. numpy and PIL only."""
