"""Settings of any kind: frozen dataclasses, read from plain mappings and written back as such."""
