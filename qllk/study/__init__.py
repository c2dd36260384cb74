"""Things to study: the published models, a GPT with its gradients by hand, and the race."""
