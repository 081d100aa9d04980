"""Clear saliency maps of CNN image classifiers, at every layer, and how far each can be trusted.

The public names stand in ``__init__.pyi``. They are imported when first used, so that the command line can
answer, and reports can be drawn, without waiting for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
