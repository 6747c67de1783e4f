"""From an opened pack to clips in a training loop."""
