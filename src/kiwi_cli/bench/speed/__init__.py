"""How fast an edit is, where its time and memory go, and what the library takes for the same."""
