"""Where music comes from: one file per source, and `listing.py`, which knows them all."""
