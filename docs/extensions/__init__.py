"""What the documentation site adds to Sphinx, an extension a file; docs/conf.py names them."""
