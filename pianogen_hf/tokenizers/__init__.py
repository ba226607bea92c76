"""Music <-> ids. Every file here travels inside checkpoints, so it imports only its siblings."""
