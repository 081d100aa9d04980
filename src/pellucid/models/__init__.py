"""Networks to explain: where they come from, the papers' own, and how one is trained."""
