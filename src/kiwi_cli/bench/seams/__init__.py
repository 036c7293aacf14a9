"""How well windows meet: figures, drawn clips, a plot."""
