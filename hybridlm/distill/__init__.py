"""From a pretrained transformer to a hybrid: transfer, distillation and the choice of layers."""
