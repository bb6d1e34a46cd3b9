"""What to measure: scenario files, the cells they expand into, and the catalogues they refer to."""
