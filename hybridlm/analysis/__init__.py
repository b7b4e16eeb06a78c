"""Opening a run on a laptop: its records, figures, tables and report."""
