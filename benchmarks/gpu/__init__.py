"""What decoding costs on a GPU, measured in one run: ``python -m benchmarks.gpu -o DIR``, see ``__main__``."""
