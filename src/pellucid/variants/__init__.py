"""Variants of a model: how its downsampling treats the gradient."""
