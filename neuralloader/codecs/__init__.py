"""Arrays to bytes and back: quantised weights, entropy-coded latents, key-frame images. No file, no model."""
