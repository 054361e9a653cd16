"""Speed and memory, side by side with named peers, in one run of one process.

Each section yields :class:`~benchmarks.measure.Figure` objects. A peer is written plainly here, or is a
published package that does the same work; its output is held against ours in the same run.
"""
