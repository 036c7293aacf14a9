"""A model at work on one device: the pipeline, and what makes it fit and fast. Read `pipeline` first."""
