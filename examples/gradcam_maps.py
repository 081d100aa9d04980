"""Maps by pytorch-grad-cam, for pellucid to grade beside its own.

--methods "examples/gradcam_maps.py:layercam, examples/gradcam_maps.py:gradcam_plus_plus(layer=layer3.1)"
"""

import numpy as np
from pytorch_grad_cam import GradCAMPlusPlus, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import pellucid as pl


def layercam(model: nn.Module, images: Tensor, targets: Tensor, layer: str = "") -> np.ndarray:
    """LayerCAM at a layer, or the last block, as large as the images (n, H, W)."""
    return _mapped(LayerCAM, model, images, targets, layer)


def gradcam_plus_plus(model: nn.Module, images: Tensor, targets: Tensor, layer: str = "") -> np.ndarray:
    """Grad-CAM++ at a layer, or the last block, as large as the images (n, H, W)."""
    return _mapped(GradCAMPlusPlus, model, images, targets, layer)


def _mapped(kind: type, model: nn.Module, images: Tensor, targets: Tensor, layer: str) -> np.ndarray:
    module = model.get_submodule(layer or pl.layer_names(model)[-1])
    with kind(model=model, target_layers=[module]) as cam:
        return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(target)) for target in targets])
