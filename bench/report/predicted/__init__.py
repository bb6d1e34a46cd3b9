"""What plans, searches of what fits and predicted speeds look like."""
