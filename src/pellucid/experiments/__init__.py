"""Experiments: models x variants x methods x layers x metrics x images -> one results table."""
