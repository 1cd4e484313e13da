"""Keys: canonical bytes, the key model, digests, explanations and differences."""
