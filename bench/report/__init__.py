"""Pages from analysis rows. Renderers do no arithmetic."""
