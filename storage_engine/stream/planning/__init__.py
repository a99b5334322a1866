"""Planning: from a parsed SELECT and a catalog to a plan that can run, or a refusal with clause and reason."""
