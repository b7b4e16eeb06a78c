"""Native Hybrid Attention: from scratch beside other hybrids, and from a pretrained transformer."""
