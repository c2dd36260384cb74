"""Training: recipes, devices, optimizers, the trainer, checkpoints, costs and previews."""
