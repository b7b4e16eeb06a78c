"""Settings: frozen dataclasses that are read from and written to plain mappings."""
