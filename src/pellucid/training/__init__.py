"""Training: one resumable loop, its settings and checkpoints, and what is measured by training."""
