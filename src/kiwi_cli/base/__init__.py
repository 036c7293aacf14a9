"""What everything may use: text, hashes, this machine. No torch, no model, no terminal."""
