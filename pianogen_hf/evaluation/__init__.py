"""Measures of music models: likelihood, statistics of the music, copying, comparison."""
