"""The only place that joins stages: from arguments to models, music, figures and files."""
