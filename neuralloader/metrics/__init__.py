"""Measures: quality of frames, bytes, speed, memory. They know no pack and no network."""
