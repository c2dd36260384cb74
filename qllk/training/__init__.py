"""Training: recipes, devices, optimizers, the trainer, checkpoints, costs, previews and reports."""
