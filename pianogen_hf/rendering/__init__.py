"""Notes made visible and audible: piano-roll pictures and WAV files."""
