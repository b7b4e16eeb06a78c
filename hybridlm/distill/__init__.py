"""From a pretrained transformer to a hybrid: transfer, distillation and the choice of layers.

Importing this package imports nothing else, so that `python -m hybridlm.distill.select` starts fast.
"""
