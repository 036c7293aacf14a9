"""The networks and their arithmetic, as modules of torch. No paths of people, no terminal."""
