"""Interventions on a tuned model: whose prefix it sees, and later which layer, which tokens."""
