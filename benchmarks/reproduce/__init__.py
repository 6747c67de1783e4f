"""Tables of the papers that can be checked on one video: ``python -m benchmarks.reproduce.hnerv_sizes VIDEO``."""
