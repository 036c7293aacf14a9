"""Training data: rows, their clips, and the latents that are kept of them."""
