"""Pictures and pages of heatmaps; NumPy arrays in, files out, no torch."""
