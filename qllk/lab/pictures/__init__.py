"""Pictures as SVG: of a run, and of figures."""
