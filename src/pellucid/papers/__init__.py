"""The four papers as recipes: experiments at a scale, what is drawn of them, and what the papers claim."""
