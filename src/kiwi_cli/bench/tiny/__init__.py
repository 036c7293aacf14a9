"""How good the embedded model is, on scenes whose true edit is known."""
