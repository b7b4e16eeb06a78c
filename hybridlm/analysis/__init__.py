"""The records, figures, tables and report of a run; needs no accelerator."""
