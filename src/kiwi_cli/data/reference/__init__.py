"""From triplets to quadruplets: stages that give an edit's row the picture that shows what was edited."""
