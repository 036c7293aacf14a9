"""The embedded model's training in minutes on a GPU: data made as it is learnt, nothing on disk, no step that waits."""
