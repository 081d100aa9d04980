"""The trained bilinear surrogate: paths in place of strided convolutions, their training, save and load."""
