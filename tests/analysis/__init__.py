"""Pages and reports: what they show, what they refuse, their bytes."""
