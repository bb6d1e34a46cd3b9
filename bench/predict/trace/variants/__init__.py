"""Models and kernels as other versions and projects have them: litgpt, Liger, older transformers."""
