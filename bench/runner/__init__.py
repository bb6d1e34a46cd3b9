"""Running a sweep: order, resume, worker processes, supervision, outcomes."""
