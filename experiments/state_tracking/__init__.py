"""Which mixers track a state, and which recall associations: tiny models on generated tasks."""
