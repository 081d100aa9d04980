"""Maps by pytorch-grad-cam, for pellucid to grade beside its own: --methods examples/gradcam_maps.py:layercam."""

import numpy as np
from pytorch_grad_cam import GradCAMPlusPlus, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import pellucid as pl


def layercam(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """LayerCAM at the last block, as large as the images (n, H, W)."""
    return _mapped(LayerCAM, model, images, targets)


def gradcam_plus_plus(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """Grad-CAM++ at the last block, as large as the images (n, H, W)."""
    return _mapped(GradCAMPlusPlus, model, images, targets)


def _mapped(kind: type, model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    last = model.get_submodule(pl.layer_names(model)[-1])
    with kind(model=model, target_layers=[last]) as cam:
        return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(target)) for target in targets])
