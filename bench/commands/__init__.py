"""One module a subject, one function a command: it parses, calls and prints. Nothing heavy at start."""
