"""The hybrid language model: blocks, mixers and the pattern that lays them out."""
