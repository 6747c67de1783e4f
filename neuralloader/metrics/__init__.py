"""Measures: quality of frames, bytes, speed. They know no pack and no network."""
