"""Model configurations and modeling files; they know ids and arrays, not music, and travel inside checkpoints."""
