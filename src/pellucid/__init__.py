"""Clear saliency maps of CNN image classifiers, at every layer, and how far each can be trusted."""
