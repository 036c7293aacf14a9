"""Many edits: what is done and what is not, over the GPUs of one machine."""
