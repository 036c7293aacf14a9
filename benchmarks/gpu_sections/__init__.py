"""The sections of gpu.py: each measures one thing on a `Bench` and returns its figures as one JSON object.

Weights are random, drawn on the device and kept for the sections that follow. A section that raises leaves a line with
its error, and the next begins with what is left of the device's memory.
"""
