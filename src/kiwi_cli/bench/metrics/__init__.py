"""Scores that need no judge: of pixels, and of models that look at pictures."""
