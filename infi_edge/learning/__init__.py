"""A gate that learns while it serves: from its own model's answers, audited at random."""
