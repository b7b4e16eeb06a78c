"""Large-Window Laziness (arXiv 2606.15378): larger windows delay the formation of retrieval heads."""
