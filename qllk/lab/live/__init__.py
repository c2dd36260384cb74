"""The live trainer: a run in a thread, its curves, and the panel that shows it."""
