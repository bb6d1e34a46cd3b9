"""Scripts of the user's, run unchanged and watched."""
