"""The experiment on real text: windows, positions and paired seeds on one accelerator."""
