"""Rows of data: files of other trainers, conversations rendered by a template, built-in tasks, batches."""
